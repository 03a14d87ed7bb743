"""The configuration of the endpoint: what it serves, and where it says no."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mapstack.config import make_method_from
from mapstack.config_files import at_least, one_of
from mapstack.errors import ConfigError
from mapstack.methods import METHODS, Method
from mapstack.prompts import MAX_TEXT_LENGTH


@dataclass
class LimitsConfig:
    """Where a request is refused.

    Attributes:
        max_prompts: Texts a request.
        max_prompt_length: Characters a text.
        max_image_bytes: Of the picture's file.
        max_pixels: Of the picture, height times width.
        max_answer_bytes: Of an answer's body.
        max_passes: Gradients or runs of the image model that one call may cost, all its instances together; a GPU takes
            ten times as many.
        max_instances: Requests that one call in KServe's form may hold.
    """

    max_prompts: int = 64
    max_prompt_length: int = MAX_TEXT_LENGTH
    max_image_bytes: int = 16 * 1024**2
    max_pixels: int = 50_000_000
    max_answer_bytes: int = 32 * 1024**2
    max_passes: int = 5000  # the 14 classes of MIMIC-CXR, at the 320 points that `n_steps: auto` may take, are 4,480
    max_instances: int = 4

    def __post_init__(self) -> None:
        for key in ("max_prompts", "max_prompt_length", "max_image_bytes", "max_pixels", "max_passes", "max_instances"):
            at_least(f"limits.{key}", getattr(self, key), 1)
        at_least("limits.max_answer_bytes", self.max_answer_bytes, 1024)
        if self.max_prompt_length > MAX_TEXT_LENGTH:
            raise ConfigError(
                f"limits.max_prompt_length is {self.max_prompt_length}; no text may be longer than {MAX_TEXT_LENGTH} "
                "characters; lower it."
            )


@dataclass
class CacheConfig:
    """Where stacks are kept for the next text about the same picture.

    Attributes:
        folder: Shared by the workers of a host, private to the server's user; None for one that `serve start` makes.
        max_bytes: Of all files in it; 0 keeps nothing.
        max_open: Stacks that a worker keeps mapped into memory.
    """

    folder: str | None = None
    max_bytes: int = 2 * 1024**3
    max_open: int = 8

    def __post_init__(self) -> None:
        at_least("cache.max_bytes", self.max_bytes, 0)
        at_least("cache.max_open", self.max_open, 1)


@dataclass
class EndpointConfig:
    """What the endpoint serves.

    After loading, the values of `methods` are `Method`s.

    Attributes:
        methods: The methods that requests may name, each with its parameters; the keys are the names. What is
            configured adds to these, or changes their parameters.
        method: The one that a request without `method` gets.
        normalize: What a request without `normalize` gets: true explains the logit, false the raw embedding.
        map_size: Side of the maps [px]; None for the model's frame.
        use: How the class set is asked: by its "prompts" or its "labels".
        ensemble: How the prompts of a class are joined: "mean", "max" or "none".
        store: Folder of a stack store on the server, whose samples can be asked for by key; None for none.
        span_tolerance: Largest share of a text that may lie outside the span of that store's basis.
        seed: Of every random draw, as in the offline job.
        limits: Where a request is refused.
        cache: Where stacks are kept for the next text about the same picture.
    """

    methods: dict[str, Any] = field(
        default_factory=lambda: {
            name: {"name": name}
            for name in ("gradient", "saliency", "occlusion", "integrated_gradients", "gradient_shap")
        }
    )
    method: str = "integrated_gradients"
    normalize: bool = True
    map_size: int | None = None
    use: str = "prompts"
    ensemble: str = "mean"
    store: str | None = None
    span_tolerance: float = 0.01
    seed: int = 0
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        self.methods = {name: make_method_from(block) for name, block in self.methods.items()}
        _require_own_names(self.methods)
        one_of("endpoint.method", self.method, tuple(self.methods))
        one_of("endpoint.use", self.use, ("labels", "prompts"))
        one_of("endpoint.ensemble", self.ensemble, ("none", "mean", "max"))
        at_least("endpoint.map_size", self.map_size, 1)
        at_least("endpoint.span_tolerance", self.span_tolerance, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON carries it; `mapstack.config_files.merge` reads it back."""
        methods = {name: {"name": method.name, **asdict(method)} for name, method in self.methods.items()}
        return {**asdict(self), "methods": methods}


def _require_own_names(methods: Mapping[str, Method]) -> None:
    """Refuse a method under the name of another: who asks for that one would be answered by this one."""
    for name, method in methods.items():
        if name in METHODS and method.name != name:
            raise ConfigError(
                f"endpoint.methods.{name} has the name '{method.name}'; under {name} stands the method of that name, "
                "whose parameters may be changed; configure the other under a key of its own."
            )
