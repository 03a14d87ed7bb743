"""The configuration: dataclasses that a YAML file and `key=value` overrides are checked against."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mapstack.baselines import BASELINES
from mapstack.config_files import load_config as load_config
from mapstack.config_files import merge
from mapstack.errors import ConfigError, unknown_name
from mapstack.methods import METHODS, Method
from mapstack.prompts import TextGroup, load_prompt_set, text_groups


def _one_of(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(unknown_name(key, value, choices))


def _at_least(key: str, value: int | float | None, least: int | float) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{key} is {value}; it must be at least {least}; correct it.")


@dataclass
class ModelConfig:
    """Which model, and its checkpoint folder. `prompt_padding`: see `mapstack.models.TextTower`."""

    name: str = "medclip-vit"
    checkpoint: str = "model_store/phantom-medclip"
    prompt_padding: str = "none"

    def __post_init__(self) -> None:
        _one_of("model.prompt_padding", self.prompt_padding, ("none", "longest"))


@dataclass
class DataConfig:
    """Which shards, and how they are read.

    Attributes:
        shards: Paths with braces or globs.
        batch_size: Pictures a batch; the last batch is padded to it.
        num_workers: Reading processes a rank.
        limit: At most this many samples; None for all.
        allowed_schemes: URL schemes that may be opened.
        max_bad_share: The job aborts when more than this share of samples is bad, after 100.
        duplicates: "fail", or "first" to keep the first sample of a key and list the others.
        timeout_s: A reader that gives nothing for so long is taken to hang.
    """

    shards: Any = ""
    batch_size: int = 4
    num_workers: int = 2
    limit: int | None = None
    allowed_schemes: list[str] = field(default_factory=lambda: ["file"])
    max_bad_share: float = 0.01
    duplicates: str = "fail"
    timeout_s: int = 120

    def __post_init__(self) -> None:
        _one_of("data.duplicates", self.duplicates, ("fail", "first"))
        _at_least("data.batch_size", self.batch_size, 1)
        _at_least("data.num_workers", self.num_workers, 0)
        _at_least("data.limit", self.limit, 1)
        _at_least("data.timeout_s", self.timeout_s, 1)
        _at_least("data.max_bad_share", self.max_bad_share, 0)
        if not isinstance(self.shards, str | list):
            raise ConfigError(
                f"data.shards is a {type(self.shards).__name__}; it is a path with braces or globs, or a list of them."
            )


@dataclass
class StackConfig:
    """What is stored of each picture.

    Attributes:
        basis: "axes", or "prompts" for the span of the configured prompts only.
        normalize: Explain the logit (normalised embedding), or the raw embedding, the paper's wording.
        map_size: Side of the stored maps [px]; None keeps the model's frame.
        codec: "float32", "float16" or "int8", the last two with a scale a row.
    """

    basis: str = "axes"
    normalize: bool = True
    map_size: int | None = 224
    codec: str = "float16"

    def __post_init__(self) -> None:
        _one_of("stack.basis", self.basis, ("axes", "prompts"))
        _one_of("stack.codec", self.codec, ("float32", "float16", "int8"))
        _at_least("stack.map_size", self.map_size, 1)


@dataclass
class PromptsConfig:
    """Which texts are explained.

    Attributes:
        file: A prompt set (YAML), or None.
        texts: Free texts, in place of a file.
        use: "labels" or "prompts" of the set.
        ensemble: How the prompts of a class are joined: "mean", "max", or "none" for each by itself.
        classes: Class labels of the set to take; None for all.
        against: A class label or free text that each text is contrasted with.
    """

    file: str | None = None
    texts: list[str] = field(default_factory=list)
    use: str = "prompts"
    ensemble: str = "mean"
    classes: list[str] | None = None
    against: str | None = None

    def __post_init__(self) -> None:
        _one_of("prompts.use", self.use, ("labels", "prompts"))
        _one_of("prompts.ensemble", self.ensemble, ("none", "mean", "max"))

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
    """How Lightning runs the job; names are the Trainer's own."""

    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        _one_of("trainer.precision", self.precision, ("32-true", "64-true"))
        _at_least("trainer.num_nodes", self.num_nodes, 1)


@dataclass
class ProjectConfig:
    """What `project` and `figures` write.

    Attributes:
        output: Folder of the maps and pictures.
        pictures: Write an overlay for every map; needs `data.shards` for the pictures.
        limit: At most this many samples; None for all.
        span_tolerance: Largest share of a text that may lie outside a stack of basis "prompts".
    """

    output: str = "out/maps"
    pictures: bool = True
    limit: int | None = None
    span_tolerance: float = 0.01

    def __post_init__(self) -> None:
        _at_least("project.limit", self.limit, 1)
        _at_least("project.span_tolerance", self.span_tolerance, 0)


@dataclass
class Config:
    """One extraction and the maps made from it. After `load_config`, `method` is a `Method`."""

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
        _one_of("route", self.route, ("auto", "direct", "prompts", "axes"))
        self.method = make_method_from(self.method)


@dataclass
class FiguresConfig:
    """The paper's Fig. 1 and Fig. 2, drawn for some samples of the shards.

    Attributes:
        model: As in `Config`.
        data: As in `Config`; `limit` is the number of samples.
        prompts: Its `file` names the classes; `use` and `ensemble` are set by the figures themselves.
        figure_1: Methods that are applied to the final output, one row each.
        figure_2: The method whose stack is projected on a prompt and on the label of each class.
        normalize: As in `StackConfig`, for Fig. 2.
        output: Folder of the figures.
        seed: As in `Config`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    figure_1: list[Any] = field(default_factory=lambda: [{"name": "saliency"}, {"name": "occlusion"}])
    figure_2: Any = field(default_factory=lambda: {"name": "occlusion"})
    normalize: bool = True
    output: str = "out/figures"
    seed: int = 0

    def __post_init__(self) -> None:
        self.figure_1 = [make_method_from(block) for block in self.figure_1]
        self.figure_2 = make_method_from(self.figure_2)


@dataclass
class ShardsConfig:
    """Which samples `shards` writes, and where.

    Attributes:
        source: "phantom" for synthetic X-rays.
        output: Folder of the shards.
        name: Their name before the number.
        n_samples: How many samples.
        n_per_shard: Samples a shard.
        size: Side of a phantom [px].
        seed: Seed of the phantoms.
    """

    source: str = "phantom"
    output: str = "shards"
    name: str = "phantom"
    n_samples: int = 16
    n_per_shard: int = 4
    size: int = 320
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("source", self.source, ("phantom",))
        for key in ("n_samples", "n_per_shard"):
            _at_least(key, getattr(self, key), 1)


@dataclass
class WeightsConfig:
    """Which checkpoint `weights` writes, and where.

    Attributes:
        source: "random" for untrained weights in the official layout.
        model: A name of `mapstack.models`.
        output: The checkpoint folder.
        vision: Sizes of the image tower (`SwinConfig` arguments); empty for the official ones.
        text: Sizes of the text tower (`BertConfig` arguments); empty for the official ones.
        seed: Seed of the weights.
    """

    source: str = "random"
    model: str = "medclip-vit"
    output: str = "model_store/random-medclip"
    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("source", self.source, ("random",))
        _one_of("model", self.model, ("medclip-vit", "medclip-resnet50"))


@dataclass
class FitConfig:
    """How the demo model is trained on phantoms.

    Attributes:
        output: The checkpoint folder.
        vision: Sizes of the image tower (`SwinConfig` arguments).
        text: Sizes of the text tower (`BertConfig` arguments, without `vocab_size`).
        prompts: Prompt set whose sentences and labels are learned beside the phantoms' own.
        n_patients: Phantoms to train on, each with several films (see `train_like.phantom_data.N_FILMS`).
        n_test: Phantoms, of other seeds, that the accuracy is told on.
        cache: Folder where drawn phantoms are kept between runs.
        batch_size: Phantoms a step.
        n_steps: Steps of the optimiser.
        learning_rate: Its peak.
        weight_decay: As in AdamW.
        seed: Of phantoms, weights and order.
    """

    output: str = "model_store/phantom-medclip"
    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    prompts: str = "configs/prompts/phantom.yaml"
    n_patients: int = 2500
    n_test: int = 400
    cache: str = "out/fit"
    batch_size: int = 32
    n_steps: int = 3000
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("n_patients", "n_test", "batch_size"):
            _at_least(key, getattr(self, key), 1)
        _at_least("n_steps", self.n_steps, 20)  # of which the learning rate rises for a tenth
        if 4 * self.n_patients < self.batch_size:
            raise ConfigError(
                f"n_patients {self.n_patients} give {4 * self.n_patients} films, fewer than batch_size "
                f"{self.batch_size}; a step takes a whole batch; raise one or lower the other."
            )


@dataclass
class EvaluateConfig:
    """Which maps are scored, and on which pictures.

    Attributes:
        model: As in `Config`.
        data: Shards of the test split, whose samples have masks or boxes.
        validation: Shards of the split that settings are chosen on.
        ground_truth: CheXlocalize's JSON files with the masks of both splits, by key of the sample; none takes the
            masks and boxes of the shards.
        prompts: `file` names the classes, `against` the class of a normal picture; `use` and `ensemble` are varied.
        candidates: Linear methods; of several of one name the validation split chooses one.
        smoothing_px: Standard deviations of the Gaussian that maps are smoothed by, varied [px of the model's frame].
        n: Test pictures that are scored by their peaks and overlaps.
        n_validation: Pictures that settings are chosen on.
        n_matrix: Test pictures on which every route, sign and text form is scored.
        n_axes: Test pictures on which what costs most is done: the axes stacks of path methods, repetitions, weight
            randomisation.
        device: Where the model runs: "auto" is the GPU where there is one.
        workers: Processes that score pictures; None takes one a core, and none beside a GPU. 0 scores in this one.
        output: Folder of the report.
        overwrite: Discard an evaluation of another configuration.
        seed: As in `Config`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: DataConfig = field(default_factory=DataConfig)
    ground_truth: list[str] = field(default_factory=list)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    candidates: list[Any] = field(default_factory=lambda: [{"name": "gradient"}, {"name": "occlusion"}])
    smoothing_px: list[float] = field(default_factory=lambda: [0.0])
    n: int = 200
    n_validation: int = 60
    n_matrix: int = 20
    n_axes: int = 4
    device: str = "auto"
    workers: int | None = None
    output: str = "out/evaluate"
    overwrite: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.candidates = [make_method_from(block) for block in self.candidates]
        for key in ("n", "n_validation", "n_matrix", "n_axes"):
            _at_least(key, getattr(self, key), 1)
        _at_least("workers", self.workers, 0)
        if not self.candidates or self.n_axes > self.n_matrix:
            raise ConfigError(
                f"{len(self.candidates)} candidates, n_matrix {self.n_matrix} and n_axes {self.n_axes} make no "
                "evaluation; there is at least one candidate, and n_axes is at most n_matrix; correct them."
            )
        if not self.smoothing_px or not 0 <= min(self.smoothing_px) <= max(self.smoothing_px) <= 32:
            raise ConfigError(
                f"smoothing_px is {list(self.smoothing_px)}; it lists standard deviations of 0 to 32 px; write [0]."
            )
        ignored = {
            "model.prompt_padding": self.model.prompt_padding != "none",
            "prompts.texts": bool(self.prompts.texts),
            "data.limit": self.data.limit is not None,
            "validation.limit": self.validation.limit is not None,
        }
        for key in (key for key, is_set in ignored.items() if is_set):
            raise ConfigError(
                f"{key} is set; the evaluation embeds each text of a prompt set by itself and counts pictures by n and "
                "n_validation; leave it out."
            )


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
                _one_of(key, name, tuple(BASELINES))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _at_least(key, value, 1 if isinstance(value, int) else 0)
