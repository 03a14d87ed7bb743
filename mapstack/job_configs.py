"""The configurations of the other commands, read as the extraction's are."""

import re
from dataclasses import dataclass, field
from typing import Any

from mapstack.config import DataConfig, ModelConfig, PromptsConfig, make_method_from
from mapstack.config_files import at_least, one_of
from mapstack.dataset_configs import DATASETS, DatasetConfig
from mapstack.errors import ConfigError


@dataclass
class FiguresConfig:
    """The paper's Fig. 1 and Fig. 2, drawn for some samples of the shards.

    Attributes:
        model: Which model explains.
        data: Which shards; `limit` is the number of samples.
        prompts: Its `file` names the classes; `use` and `ensemble` are set by the figures themselves.
        figure_1: Methods that are applied to the final output, one row each.
        figure_2: The method whose stack is projected on a prompt and on the label of each class.
        normalize: Of Fig. 2: explain the logit (normalised embedding), or the raw embedding, the paper's wording.
        output: Folder of the figures.
        seed: Seed of every random draw, together with each picture's bytes.
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
        source: "phantom" for synthetic X-rays; "folder", "mimic_cxr", "ms_cxr", "chexpert", "nih", "vindr" or "rsna".
        dataset: Where the dataset is and which of its samples are taken; not of phantoms.
        output: Folder of the shards.
        name: Their name before the number.
        n_samples: How many samples: of phantoms so many (None for 16), of a dataset so many at random (None for all).
        n_per_shard: Samples a shard; a dataset's shards are written side by side.
        n_workers: Processes that read a dataset; None for one more than there are cores, since each waits for the disk
            at the end of its shard.
        size: Side of a phantom [px].
        list_files: Write no shards but the list of the picture files that they need, for a download.
        overwrite: Replace shards of the same name that were made otherwise.
        seed: Seed of the phantoms, and of the choice of samples.
    """

    source: str = "phantom"
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    output: str = "shards"
    name: str = "phantom"
    n_samples: int | None = None
    n_per_shard: int = 4
    n_workers: int | None = None
    size: int = 320
    list_files: bool = False
    overwrite: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("source", self.source, ("phantom", *DATASETS))
        for key in ("n_samples", "n_per_shard", "n_workers"):
            at_least(key, getattr(self, key), 1)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", self.name):
            raise ConfigError(
                f"name is '{self.name}'; it is 1 to 80 letters, digits, '-' and '_', since files are named by it; "
                "correct it."
            )


@dataclass
class WeightsConfig:
    """Which checkpoint `weights` writes, and where.

    Attributes:
        source: "random" for untrained weights in the official layout; "official" for MedCLIP's own.
        model: "medclip-vit" or "medclip-resnet50".
        output: The checkpoint folder.
        vision: Sizes of the image tower (`SwinConfig` arguments); empty for the official ones.
        text: Sizes of the text tower (`BertConfig` arguments); empty for the official ones.
        seed: Seed of random weights.
        weights: Of official weights, the zip: its URL, or its path once it is on this machine.
        weights_sha256: Its sha256; None takes what comes and prints it.
        vocabulary: The tokenizer's vocab.txt: its URL or path.
        vocabulary_sha256: Its sha256; None takes what comes and prints it.
        golden: Of official weights, cosines that a fixed phantom has with fixed sentences; empty prints them.
        cache: Folder of the downloads, which are resumed there.
        timeout_s: How long the server may stay silent [s].
        n_tries: How often a download that breaks off is taken up again.
    """

    source: str = "random"
    model: str = "medclip-vit"
    output: str = "model_store/random-medclip"
    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    weights: str = ""
    weights_sha256: str | None = None
    vocabulary: str = ""
    vocabulary_sha256: str | None = None
    golden: list[float] = field(default_factory=list)
    cache: str = "model_store/downloads"
    timeout_s: float = 60.0
    n_tries: int = 8

    def __post_init__(self) -> None:
        one_of("source", self.source, ("random", "official"))
        one_of("model", self.model, ("medclip-vit", "medclip-resnet50"))
        at_least("n_tries", self.n_tries, 1)
        at_least("timeout_s", self.timeout_s, 0.1)
        for key in ("weights_sha256", "vocabulary_sha256"):
            pinned = getattr(self, key)
            if pinned is not None and not re.fullmatch("[0-9a-f]{64}", pinned):
                raise ConfigError(f"{key} is '{pinned}'; a sha256 has 64 hexadecimal digits; correct it.")


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
        n_closing_steps: Further steps from the averaged weights, at two fifths of the rate, on pictures of which few
            are altered; 0 for none.
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
    n_closing_steps: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("n_patients", "n_test", "batch_size"):
            at_least(key, getattr(self, key), 1)
        at_least("n_steps", self.n_steps, 20)  # of which the learning rate rises for a tenth
        at_least("n_closing_steps", self.n_closing_steps or None, 20)
        if 4 * self.n_patients < self.batch_size:
            raise ConfigError(
                f"n_patients {self.n_patients} give {4 * self.n_patients} films, fewer than batch_size "
                f"{self.batch_size}; a step takes a whole batch; raise one or lower the other."
            )


@dataclass
class EvaluateConfig:
    """Which maps are scored, and on which pictures.

    Attributes:
        model: Which model explains.
        data: Shards of the test split, whose samples have masks or boxes.
        validation: Shards of the split that settings are chosen on.
        regions: "required" scores where maps point; "none" looks at no mask and no box, needs no validation split, and
            scores what can be scored without: likeness between texts, controls, faithfulness, weight randomisation.
        ground_truth: CheXlocalize's JSON files with the masks of both splits, by key of the sample; none takes the
            masks and boxes of the shards.
        prompts: `file` names the classes, `against` the class of a normal picture; `use` and `ensemble` are varied.
        candidates: Linear methods; of several of one name the validation split chooses one.
        aggregates: Names of candidates whose maps are also scored together (see `mapstack.aggregation.aggregate`).
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
        seed: Seed of every random draw, together with each picture's bytes.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: DataConfig = field(default_factory=DataConfig)
    regions: str = "required"
    ground_truth: list[str] = field(default_factory=list)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    candidates: list[Any] = field(default_factory=lambda: [{"name": "gradient"}, {"name": "occlusion"}])
    aggregates: list[list[str]] = field(default_factory=list)
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
        one_of("regions", self.regions, ("required", "none"))
        for key in ("n", "n_validation", "n_matrix", "n_axes"):
            at_least(key, getattr(self, key), 1)
        at_least("workers", self.workers, 0)
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
