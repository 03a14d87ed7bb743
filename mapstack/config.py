"""The configuration of an extraction: dataclasses that a YAML file and `key=value` overrides are checked against."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mapstack.baselines import BASELINES
from mapstack.codecs import CODECS, Encoding
from mapstack.config_files import at_least, merge, one_of
from mapstack.config_files import load_config as load_config
from mapstack.errors import ConfigError, unknown_name
from mapstack.methods import METHODS, Method
from mapstack.models import PRECISIONS
from mapstack.prompts import TextGroup, load_prompt_set, text_groups
from mapstack.store import COMPRESSIONS


@dataclass
class ModelConfig:
    """Which model explains.

    Attributes:
        name: "medclip-vit", "medclip-resnet50" or "clip".
        checkpoint: Folder of its weights, configuration and tokenizer, such as `weights` and `fit` write.
        prompt_padding: "none" embeds each text alone; "longest" pads all texts of a run to the longest, as upstream
            does, so that an answer depends on the other texts.
    """

    name: str = "medclip-vit"
    checkpoint: str = "model_store/phantom-medclip"
    prompt_padding: str = "none"

    def __post_init__(self) -> None:
        one_of("model.prompt_padding", self.prompt_padding, ("none", "longest"))


@dataclass
class DataConfig:
    """Which shards, and how they are read.

    Attributes:
        shards: Paths with braces or globs.
        batch_size: Pictures a batch; the last batch is padded to it.
        num_workers: Reading processes a rank.
        limit: At most this many samples; None for all (`figures`: 2; `basis`: 8, spread over the shards).
        allowed_schemes: URL schemes that may be opened.
        max_bad_share: The job aborts when more than this share of samples is bad, after 100.
        duplicates: "fail", or "first" to keep the first sample of a key and list the others.
        timeout_s: A reader that gives nothing for so long is taken to hang.
        accept_burned_in: Take DICOM pictures whose Burned In Annotation (0028,0301) is not NO.
    """

    shards: Any = ""
    batch_size: int = 4
    num_workers: int = 2
    limit: int | None = None
    allowed_schemes: list[str] = field(default_factory=lambda: ["file"])
    max_bad_share: float = 0.01
    duplicates: str = "fail"
    timeout_s: int = 120
    accept_burned_in: bool = False

    def __post_init__(self) -> None:
        one_of("data.duplicates", self.duplicates, ("fail", "first"))
        at_least("data.batch_size", self.batch_size, 1)
        at_least("data.num_workers", self.num_workers, 0)
        at_least("data.limit", self.limit, 1)
        at_least("data.timeout_s", self.timeout_s, 1)
        at_least("data.max_bad_share", self.max_bad_share, 0)
        if not isinstance(self.shards, str | list):
            raise ConfigError(
                f"data.shards is a {type(self.shards).__name__}; it is a path with braces or globs, or a list of them."
            )


@dataclass
class StackConfig:
    """What is stored of each picture.

    Attributes:
        basis: "axes"; "prompts" for the span of the configured prompts only; or "pictures" for the rows of
            `basis_file`, which serve any text within an error.
        basis_file: For "pictures": what the command `basis` has written.
        basis_tolerance: For "prompts": the largest share of a text that the basis may leave out, to need fewer rows.
            For the command `basis`: the largest error of the maps that the fitted rows may leave. What maps lose is
            measured on every picture and stored as `map_error`.
        normalize: Explain the logit (normalised embedding), or the raw embedding, the paper's wording.
        map_size: Side of the stored maps [px]; None keeps the model's frame.
        codec: "lowrank", the smallest form of each stack within `max_error`; or dense in "float32", "float16" or
            "int8", the last two with a scale a row: see `mapstack.codecs.Encoding`.
        max_error: For "lowrank", the largest error of the maps, as a share of them.
        compress: "none", or "zstd" for the arrays of every record.
    """

    basis: str = "axes"
    basis_file: str | None = None
    basis_tolerance: float = 0.0
    normalize: bool = True
    map_size: int | None = 224
    codec: str = "lowrank"
    max_error: float = 0.01
    compress: str = "none"

    def __post_init__(self) -> None:
        one_of("stack.basis", self.basis, ("axes", "prompts", "pictures"))
        one_of("stack.codec", self.codec, CODECS)
        one_of("stack.compress", self.compress, COMPRESSIONS)
        at_least("stack.map_size", self.map_size, 1)
        for key, value in (("max_error", self.max_error), ("basis_tolerance", self.basis_tolerance)):
            if not 0 <= value < 1:
                raise ConfigError(f"stack.{key} is {value}; it is a share, in [0, 1); correct it.")

    @property
    def encoding(self) -> Encoding:
        """How the store keeps its stacks."""
        return Encoding(self.codec, self.max_error, self.compress)


@dataclass
class PromptsConfig:
    """Which texts are explained.

    Attributes:
        file: A prompt set (YAML); None for none.
        texts: Free texts, in place of a file.
        use: "labels" or "prompts" of the set.
        ensemble: How the prompts of a class are joined: "mean", "max", or "none" for each by itself.
        classes: Class labels of the set to take; None for all.
        against: A class label or free text that each text is contrasted with; None for no contrast.
    """

    file: str | None = None
    texts: list[str] = field(default_factory=list)
    use: str = "prompts"
    ensemble: str = "mean"
    classes: list[str] | None = None
    against: str | None = None

    def __post_init__(self) -> None:
        one_of("prompts.use", self.use, ("labels", "prompts"))
        one_of("prompts.ensemble", self.ensemble, ("none", "mean", "max"))

    def groups(self) -> tuple[TextGroup, ...]:
        """Return what is explained; empty where nothing is configured.

        Raises:
            ConfigError: The file is missing or wrong, or a class is unknown.
        """
        if self.file is None and not self.texts:
            return ()
        return text_groups(
            prompt_set=None if self.file is None else load_prompt_set(Path(self.file)),
            texts=self.texts,
            use=cast(Any, self.use),
            ensemble=cast(Any, self.ensemble),
            classes=self.classes,
            against=self.against,
        )


@dataclass
class TrainerConfig:
    """How Lightning runs the job; names are the Trainer's own.

    Attributes:
        accelerator: "auto", "cpu", "gpu"...
        devices: How many, or which.
        num_nodes: Machines.
        precision: "32-true", "64-true", or "bf16-mixed" and "16-mixed", in which the image tower alone runs.
    """

    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        one_of("trainer.precision", self.precision, PRECISIONS)
        at_least("trainer.num_nodes", self.num_nodes, 1)


@dataclass
class ProjectConfig:
    """What `project` writes.

    Attributes:
        output: Folder of the maps and pictures.
        pictures: Write an overlay for every map; needs `data.shards` for the pictures.
        limit: At most this many samples; None for all.
        span_tolerance: Largest share of a text that may lie outside a stack of basis "prompts"; others are refused.
    """

    output: str = "out/maps"
    pictures: bool = True
    limit: int | None = None
    span_tolerance: float = 0.01

    def __post_init__(self) -> None:
        at_least("project.limit", self.limit, 1)
        at_least("project.span_tolerance", self.span_tolerance, 0)


@dataclass
class Config:
    """One extraction and the maps made from it.

    After `load_config`, `method` is a `Method`.

    Attributes:
        model: Which model explains.
        data: Which shards, and how they are read.
        method: The attribution method: its `name` and its own parameters.
        stack: What is stored of each picture.
        route: "auto": the form of a store is `stack.basis`, and `extract` refuses what only the library and the
            endpoint can choose.
        prompts: Which texts are explained.
        output: The stack store: `extract` writes it, `project` reads it.
        overwrite: Discard the store in `output`, whatever wrote it, and begin anew.
        trainer: How Lightning runs the job.
        project: What `project` writes.
        seed: Seed of every random draw, together with each picture's bytes.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: Any = field(default_factory=lambda: {"name": "integrated_gradients"})
    stack: StackConfig = field(default_factory=StackConfig)
    route: str = "auto"
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    output: str = "out/store"
    overwrite: bool = False
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    project: ProjectConfig = field(default_factory=ProjectConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("route", self.route, ("auto", "direct", "prompts", "axes"))
        self.method = make_method_from(self.method)


def make_method_from(block: Any) -> Method:
    """Make a method from its configuration block: `name` and the method's own parameters; a method stays as it is.

    Raises:
        ConfigError: It is no block, or the name, a parameter or its type is wrong.
    """
    if isinstance(block, Method):
        return block
    if not isinstance(block, Mapping):
        raise ConfigError(f"method {block!r} is no block of keys; it has a name and parameters; write name: occlusion.")
    name = block.get("name")
    if name not in METHODS:
        raise ConfigError(unknown_name("method", name, tuple(METHODS)))
    parameters = {key: value for key, value in block.items() if key != "name"}
    method = merge(METHODS[name], [parameters], prefix="method.")
    _check_parameters(method)
    return method


def _check_parameters(method: Method) -> None:
    """Refuse numbers that count nothing and baselines that nobody knows, before a store is opened."""
    for each in dataclasses.fields(cast(Any, method)):
        key, value = f"method.{each.name}", getattr(method, each.name)
        if each.name in ("baseline", "baselines"):
            for name in [value] if isinstance(value, str) else value:
                one_of(key, name, tuple(BASELINES))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            at_least(key, value, 1 if isinstance(value, int) else 0)
