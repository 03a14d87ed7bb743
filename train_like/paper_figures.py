"""`figures`: the paper's Fig. 1 and Fig. 2 for samples of the shards."""

import sys
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mapstack.errors import ConfigError
from mapstack.explainer import Explainer, Explanation
from mapstack.figures import figure_1, figure_2, save
from mapstack.images import Prepared, prepare
from mapstack.job_configs import FiguresConfig
from mapstack.methods import Method
from mapstack.models import EmbeddingModel, load_model
from mapstack.overlay import Picture as Pixels
from mapstack.prompts import PromptSet, TextGroup, load_prompt_set, text_groups
from mapstack.store import member_name
from train_like.errors import DONE
from train_like.pictures import ShardPictures
from train_like.project import map_unit
from train_like.result import Result

_N_SAMPLES = 2


def draw_figures(config: FiguresConfig) -> Result:
    """Draw both figures for the first samples of the shards.

    Raises:
        ConfigError: No prompt set is configured.
        ShardError: There are no shards, or a sample is damaged.
    """
    if config.prompts.file is None:
        raise ConfigError("prompts.file is not set; the figures need class labels and prompts; name a prompt set.")
    prompt_set = load_prompt_set(config.prompts.file)
    model = load_model(config.model.name, config.model.checkpoint)
    pictures = ShardPictures(config.data)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    keys = [entry.key for entry in islice(pictures.entries(), config.data.limit or _N_SAMPLES)]
    for key in tqdm(keys, desc="figures", unit="image", file=sys.stderr):
        prepared = prepare(pictures.read_picture(key), model.preprocessing)
        marks: dict[str, Any] = {"boxes": pictures.read_boxes(key), "caption": model.note or None}
        draw = _Drawing(config, model, prompt_set, prepared, pictures.read(key), marks)
        save(draw.figure_1(), output / f"{member_name(key)}.figure-1.png")
        save(draw.figure_2(), output / f"{member_name(key)}.figure-2.png")
    return Result(DONE, {"output": config.output, "samples": len(keys), "figures": 2 * len(keys)})


class _Drawing:
    """The figures of one picture."""

    def __init__(
        self,
        config: FiguresConfig,
        model: EmbeddingModel,
        prompt_set: PromptSet,
        prepared: Prepared,
        pixels: Pixels,
        marks: dict[str, Any],
    ) -> None:
        self._config = config
        self._model = model
        self._prompt_set = prompt_set
        self._prepared = prepared
        self._pixels = pixels
        self._marks = marks

    def figure_1(self) -> Any:
        """Apply each method to the final output, MedCLIP's PromptClassifier with its mean ensemble."""
        groups = self._groups("prompts", "mean")
        methods: list[Method] = self._config.figure_1
        rows = [self._explainer(method).explain_conventionally([self._prepared], groups)[0] for method in methods]
        return figure_1(
            self._pixels,
            [method.name for method in methods],
            [group.name for group in groups],
            [_original(row) for row in rows],
            unit=[map_unit(method.name) for method in methods],
            signed=[method.name != "saliency" for method in methods],
            **self._marks,
        )

    def figure_2(self) -> Any:
        """Project one stack on the first prompt and on the label of each class."""
        labels = self._groups("labels", "mean")
        sentences = {entry.label: entry.prompts[0] for entry in self._prompt_set.classes}
        prompts = [TextGroup(sentences[group.name], (sentences[group.name],)) for group in labels]
        method: Method = self._config.figure_2
        (found,) = self._explainer(method).explain([self._prepared], [*prompts, *labels], "axes")
        maps = _original(found)
        return figure_2(
            self._pixels,
            [prompt.name for prompt in prompts],
            maps[: len(prompts)],
            [label.name for label in labels],
            maps[len(prompts) :],
            method=method.name,
            unit=map_unit(method.name),
            **self._marks,
        )

    def _explainer(self, method: Method) -> Explainer:
        return Explainer(self._model, method, normalize=self._config.normalize, seed=self._config.seed)

    def _groups(self, use: Any, ensemble: Any) -> tuple[TextGroup, ...]:
        return text_groups(
            prompt_set=self._prompt_set,
            texts=(),
            use=use,
            ensemble=ensemble,
            classes=self._config.prompts.classes,
            against=None,
        )


def _original(found: Explanation) -> list[Any]:
    return list(found.density * found.original_maps().numpy())
