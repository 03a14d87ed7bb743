"""Means with their intervals, from the scores of pictures."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.metrics.bootstrap import bootstrap
from mapstack.metrics.chexlocalize import THRESHOLDS
from train_like.evaluation.choice import ByPicture, Choice, labels_of, metric_table
from train_like.evaluation.settings import Setting

Summary = dict[str, Any]

MIN_PICTURES = 5
"""Fewer give no interval and no verdict."""


def interval(rows: Sequence[Sequence[float]] | Float[Tensor, "n_pictures n_findings"]) -> Summary | None:
    """Return mean, interval and on how many pictures they rest; None where nothing was measured."""
    table = torch.as_tensor(rows, dtype=torch.float64)
    if table.numel() == 0 or table.isnan().all():
        return None
    found = bootstrap(table)
    n_pictures = int((~table.isnan()).reshape(len(table), -1).any(dim=1).sum())
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": n_pictures}


def table_of(
    scores: ByPicture, setting: Setting, metric: str, choice: Choice
) -> Float[Tensor, "n_pictures n_findings"]:
    """Return a metric by picture and label; `iou` is the overlap at the threshold of each label."""
    if metric != "iou":
        return metric_table(scores, setting, metric)
    labels, thresholds = labels_of(scores, setting), choice.thresholds_of(setting)
    rows = [
        [_overlap(settings.get(setting.key, {}).get(label, {}).get("ious"), thresholds.get(label)) for label in labels]
        for settings in scores.values()
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(labels))


def _overlap(ious: Sequence[float | None] | None, threshold: float | None) -> float:
    value = None if ious is None or threshold is None else ious[THRESHOLDS.index(threshold)]
    return float("nan") if value is None else value


def shares(settings: Sequence[Any], setting: Setting, metric: str = "hit") -> Float[Tensor, "n_pictures 1"]:
    """Return a metric's mean over the findings of each picture.

    With few pictures no mean over findings is attempted.
    """
    found = [[number(scores.get(metric)) for scores in each.get(setting.key, {}).values()] for each in settings]
    rows = [mean([value for value in values if value == value]) for values in found]
    return torch.tensor(rows, dtype=torch.float64)[:, None]


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")


def number(value: float | None) -> float:
    """Return NaN for what was not measured."""
    return float("nan") if value is None else float(value)
