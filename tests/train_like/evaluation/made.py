"""What the tests of the evaluation share: a model whose maps peak where it is told to, pictures, and scores by hand."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapstack.images import from_array, prepare
from mapstack.models import EmbeddingModel
from mapstack.prompts import PromptClass, PromptSet
from tests.toys import LinearModel, SeededText
from train_like.evaluation.cases import Case, Region
from train_like.evaluation.choice import Choice
from train_like.evaluation.journal import Journal
from train_like.evaluation.settings import FORMS, Setting
from train_like.evaluation.summary import summarise
from train_like.evaluation.texts import Texts

SIDE = 16
LABELS = ("No Finding", "Edema", "Cardiomegaly")
PEAKS = {"Edema": (4, 5), "Cardiomegaly": (9, 10)}
"""The pixel that the planted model looks at for each class."""
AROUND = {"Edema": (4, 4, 8, 8), "Cardiomegaly": (8, 8, 12, 12)}
"""A box around it: the occlusion window of 4 px that covers it."""
PROMPTS = PromptSet(tuple(PromptClass(label, (f"{label} is seen.", f"{label} again.")) for label in LABELS))
TEXTS = Texts(PROMPTS, "No Finding")


class PlantedText(SeededText):
    """A text that begins with a class label lies near that label's axis."""

    def _embed_padded(self, texts: list[str]) -> Tensor:
        embedded = super()._embed_padded(texts)
        for row, text in zip(embedded, texts, strict=True):
            for axis, label in enumerate(LABELS):
                if text.startswith(label):
                    row.mul_(0.02)[axis] += 1
        return embedded


class PlantedModel(LinearModel):
    """Each finding's axis reads one pixel; the others count a hundredth."""

    def __init__(self) -> None:
        super().__init__(embed_dim=8, image_size=SIDE)
        self.weight.mul_(0.01)
        for label, (row, column) in PEAKS.items():
            self.weight[LABELS.index(label), SIDE * row + column] = 1
        self.offset.copy_(5 * torch.eye(8)[-1])
        self.text = PlantedText(8)
        self.freeze()


def box(size: tuple[int, int], row0: int, column0: int, row1: int, column1: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[row0:row1, column0:column1] = True
    return mask


def picture_of(bright: Iterable[str] = PEAKS, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """A dim picture with a white block of 2 px where a finding of `bright` is looked for, and a black one elsewhere."""
    pixels = np.random.default_rng(seed).integers(130, 170, (side, side), dtype=np.uint8)
    scale = side // SIDE
    for label, (row, column) in PEAKS.items():
        block = np.s_[scale * row : scale * (row + 1), scale * column : scale * (column + 1)]
        pixels[block] = 255 if label in bright else 0
    return pixels


def case_of(
    model: EmbeddingModel,
    pixels: np.ndarray,
    regions: Mapping[str, Tensor],
    *,
    key: str = "a",
    labels: Sequence[str] | None = None,
    sentences: Mapping[str, str] | None = None,
) -> Case:
    picture = from_array(pixels)
    found = tuple(Region(label, (sentences or {}).get(label), mask) for label, mask in regions.items())
    told = tuple(regions if labels is None else labels)
    return Case(key, picture, prepare(picture, model.preprocessing), told, found)


SIGNED, ABSOLUTE = Setting("gradient", "conventional"), Setting("gradient", "conventional", "absolute")
STACK = Setting("gradient", "stack_raw", "absolute")
PATH, PATH_STACK = Setting("gradient_shap", "conventional"), Setting("gradient_shap", "stack_normalised", "absolute")
PATH_ABSOLUTE = Setting("gradient_shap", "conventional", "absolute")
MEAN_MASK, RANDOM = Setting("mean mask of the label", "reference"), Setting("random", "reference")


def located(hit: float, ious: Sequence[float | None] = (0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1)) -> dict[str, Any]:
    """The scores of one map in full."""
    return {"hit": hit, "pointing": 1.0, "mass": 0.5, "rank": 0.25, "ious": list(ious), "iou_otsu": 0.125}


def alike(correlation: float) -> list[list[float]]:
    """A matrix of three texts."""
    return [[1.0 if row == column else correlation for column in range(3)] for row in range(3)]


def texts_of(
    correlation: float,
    *,
    gibberish: Sequence[Sequence[float]] = ((0.25, 0.0), (0.75, 1.0)),
    outside_body: Sequence[float] = (0.125, 0.375),
) -> dict[str, Any]:
    """What the maps of a picture's texts have in common: `correlation` for ensembles, more for the other forms."""
    return {
        "correlation": {form: alike(correlation + more) for form, more in zip(FORMS, (0.5, 0.25, 0.0), strict=True)},
        "ssim": 0.5,
        "controls": {"gibberish": gibberish, "irrelevant": [[-0.5, 0.0]]},
        "outside_body": outside_body,
    }


def way_scores(ways: Mapping[Setting, tuple[float, float]]) -> dict[str, Any]:
    """The scores of one picture: for each way, the correlation between texts and whether Edema was hit."""
    places = {way.key: {"Edema": located(hit) | {"pointing": hit}} for way, (_, hit) in ways.items()}
    return {
        "agreement": {},
        "settings": places,
        "texts": {way.key: texts_of(correlation) for way, (correlation, _) in ways.items()},
        "faithfulness": {},
    }


def stability(sensitivity: float, same_seed: float, other_seed: float) -> dict[str, Any]:
    return {
        "sensitivity": {"gradient": sensitivity},
        "repeat": {"gradient": {"same_seed": same_seed, "other_seed": other_seed}},
    }


def step_scores(values: Mapping[Setting, float]) -> dict[str, Any]:
    """The scores of one picture at one step of the cascade."""
    metrics = ("pearson", "spearman", "ssim", "between_texts", "hit")
    return {way.key: dict.fromkeys(metrics, value) for way, value in values.items()}


CHOICE = Choice({SIGNED: {"Edema": 0.4}, ABSOLUTE: {"Edema": 0.2}}, {SIGNED: 0.5, ABSOLUTE: 0.25}, n_pictures=2)
ABOUT = {
    "version": "1.0",
    "model": "checkpoint",
    "fingerprint": "0123456789abcdef",
    "note": "phantoms only",
    "labels": list(LABELS),
    "seed": 7,
    "ground_truth": False,
    "pictures": {
        "validation": 5,
        "validation_with_regions": 2,
        "test": 3,
        "test_with_regions": 2,
        "matrix": 2,
        "axes": 1,
    },
}


def add(journal: Journal, stage: str, key: str, scores: Mapping[str, Any]) -> None:
    journal.add(stage, key, f"digest of {key}", scores)


def filled_journal(folder: Path) -> Journal:
    """Two test pictures, both in the matrix, one at all cost."""
    journal = Journal(folder, {}, overwrite=False)
    for key, hit in (("a", 1.0), ("b", 0.0)):
        settings = {SIGNED: located(hit), ABSOLUTE: located(0.0), RANDOM: located(0.0), MEAN_MASK: located(1.0)}
        by_key = {setting.key: {"Edema": scores} for setting, scores in settings.items()}
        of_pairs = {SIGNED.key: [[[1.0, 0.0], [1.0, 0.0], [hit, 0.0]], [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]}
        scores = {"settings": by_key, "predicted": {}, "pairs": of_pairs, "zero_shot": key == "a"}
        add(journal, "localise", key, scores)
        ways = {SIGNED: (0.5, hit), ABSOLUTE: (0.5, 0.0), STACK: (0.25, 1.0), PATH_ABSOLUTE: (0.5, hit)}
        shap = {PATH: (0.125, hit)}
        curves = {f"{side}{part}": value for side in ("deletion", "insertion") for part, value in (("", 2.0),)}
        faithful = {**curves, "deletion_curve": [3.0, 1.0], "insertion_curve": [1.0, 3.0], "infidelity": 0.5}
        scores = way_scores(ways | shap) | {"agreement": {"gradient": 1e-6}, "faithfulness": {SIGNED.key: faithful}}
        add(journal, "matrix", key, scores)
    axes = way_scores({PATH_STACK: (0.25, 1.0)}) | stability(0.5, 0.0, 1.0)
    add(journal, "axes", "a", axes | {"agreement": {"gradient_shap": 1e-5}})
    steps = {"trained": 1.0, "vision_model.projection_head": 0.5}
    add(journal, "cascade", "a", {name: step_scores({SIGNED: value, ABSOLUTE: value}) for name, value in steps.items()})
    add(journal, "randomised", "a", {ABSOLUTE.key: 0.125, STACK.key: 0.75})
    add(journal, "randomised", "b", {ABSOLUTE.key: 0.125, STACK.key: 0.5})
    return journal


def summarised(journal: Journal, choice: Choice, **keys: Sequence[str]) -> dict[str, Any]:
    """The summary of every picture of a journal, or of some of a stage."""
    stages = ("localise", "matrix", "axes", "cascade", "randomised")
    every = {stage: list(journal.stage(stage)) for stage in stages}
    return summarise(journal, every | keys, choice, ABOUT)


def summary_of(journal: Journal) -> dict[str, Any]:
    """A summary as the report takes it."""
    drawn = {"gallery": ["edema-1"], "charts": ["hit-rate", "cascade-signed"], "paper": ["a.figure-1"]}
    return summarised(journal, CHOICE) | {"seconds": 3} | drawn
