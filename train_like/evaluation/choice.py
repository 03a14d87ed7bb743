"""The settings that the validation split chooses: nothing of the test split enters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.chexlocalize import best_threshold
from train_like.evaluation.settings import REFERENCE, Setting, family, members

ByPicture = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
"""Scores by the key of the picture, the key of the setting, the class label and the metric."""


@dataclass(frozen=True)
class Choice:
    """What the validation split chose.

    Attributes:
        thresholds: Each chosen setting, one a method and sign, and its threshold for each class label; a label that
            the validation split does not hold has none.
        hit_rates: Of every setting on the validation split, the mean over findings.
        n_pictures: How many pictures with a region it rests on.
        reference_thresholds: As `thresholds`, of the maps that look at no model.
    """

    thresholds: Mapping[Setting, Mapping[str, float]]
    hit_rates: Mapping[Setting, float]
    n_pictures: int
    reference_thresholds: Mapping[Setting, Mapping[str, float]] = field(default_factory=dict)

    def thresholds_of(self, setting: Setting) -> Mapping[str, float]:
        """Return the threshold of each label, of a chosen setting or a reference; none for another."""
        return self.thresholds.get(setting) or self.reference_thresholds.get(setting) or {}

    @property
    def methods(self) -> list[str]:
        """The candidate of each method whose signed maps hit most, and that of the best setting.

        An aggregate is no candidate: it has no stack.
        """
        signed = [setting.method for setting in self.thresholds if setting.sign == "signed"]
        best = [self.best.method] if len(members(self.best.method)) == 1 else []
        return list(dict.fromkeys([*signed, *best]))

    @property
    def best(self) -> Setting:
        """The setting that hits most."""
        return max(self.thresholds, key=lambda setting: self.hit_rates[setting])


def choose(scores: ByPicture) -> Choice:
    """Choose the setting of each method and sign that hits most, and its thresholds.

    Raises:
        InputError: No picture has a region of a class that is explained.
    """
    scored = {key: settings for key, settings in scores.items() if settings}
    if not scored:
        raise InputError(
            f"none of {len(scores)} validation pictures has a region of a class of the prompt set; settings are chosen "
            "on pictures with boxes or masks; give shards that have them."
        )
    every = [Setting.parse(key) for key in dict.fromkeys(key for each in scored.values() for key in each)]
    settings = [setting for setting in every if setting.route != REFERENCE]
    references = [setting for setting in every if setting.route == REFERENCE]
    hit_rates = {setting: mean_over_findings(metric_table(scored, setting, "hit")) for setting in settings}
    chosen: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        way = family(setting.method), setting.sign
        if way not in chosen or hit_rates[setting] > hit_rates[chosen[way]]:
            chosen[way] = setting
    thresholds, of_references = (
        {setting: _thresholds(scored, setting) for setting in group} for group in (chosen.values(), references)
    )
    return Choice(thresholds, hit_rates, len(scored), of_references)


def configured(candidates: Sequence[str]) -> Choice:
    """Return the choice of no split: every candidate, with the class ensemble, as it is configured."""
    settings = [Setting(name, "conventional") for name in candidates]
    return Choice({setting: {} for setting in settings}, dict.fromkeys(settings, 0.0), 0)


def labels_of(scores: ByPicture, setting: Setting) -> list[str]:
    """Return the class labels that were scored, in order of their names."""
    return sorted({label for settings in scores.values() for label in settings.get(setting.key, {})})


def metric_table(scores: ByPicture, setting: Setting, metric: str) -> Float[Tensor, "n_pictures n_findings"]:
    """Return a metric by picture and class label (see `labels_of`); NaN where a picture does not have it."""
    labels = labels_of(scores, setting)
    rows = [
        [_number(settings.get(setting.key, {}).get(label, {}).get(metric)) for label in labels]
        for settings in scores.values()
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(labels))


def mean_over_findings(table: Float[Tensor, "n_pictures n_findings"]) -> float:
    """Return the mean over findings of each finding's mean, so that a frequent one counts no more than a rare one."""
    return float(table.nanmean(dim=0).nanmean())


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _thresholds(scores: ByPicture, setting: Setting) -> dict[str, float]:
    thresholds = {}
    for label in labels_of(scores, setting):
        rows = [
            [_number(each) for each in settings[setting.key][label]["ious"]]
            for settings in scores.values()
            if label in settings.get(setting.key, {})
        ]
        try:
            thresholds[label] = best_threshold(rows)
        except InputError:
            continue  # every map of this label was constant
    return thresholds
