"""From the scores of pictures to means with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from train_like.evaluation.choice import ByPicture, Choice, labels_of, metric_table
from train_like.evaluation.comparisons import CLAIMED, against_references, between_findings, claims_of, off
from train_like.evaluation.intervals import Summary, interval, mean, number, shares, table_of
from train_like.evaluation.journal import Journal
from train_like.evaluation.references import REFERENCES
from train_like.evaluation.settings import FORMS, REFERENCE, Setting

_LOCALISATION = ("hit", "pointing", "mass", "rank", "iou", "iou_otsu")


def summarise(journal: Journal, keys: Mapping[str, Sequence[str]], choice: Choice, about: Mapping[str, Any]) -> Summary:
    """Make everything that the report tells.

    Args:
        journal: The scores of all stages.
        keys: The pictures that count in each stage, in the order in which they are drawn anew for the intervals.
        choice: What the validation split chose.
        about: The model and the pictures.
    """
    localised, matrix, axes, cascade, randomised = (
        {key: journal.stage(stage)[key] for key in keys[stage]}
        for stage in ("localise", "matrix", "axes", "cascade", "randomised")
    )
    ways, pictures = _merged_ways(matrix, axes)
    return {
        "about": dict(about) | {"zero_shot": interval([[float(each["zero_shot"])] for each in localised.values()])},
        "localisation": _localisation({key: each["settings"] for key, each in localised.items()}, choice),
        "between_findings": between_findings([each["pairs"] for each in localised.values()], choice),
        "routes": {key: _route(key, *both) for key, both in ways.items()},
        "agreement": _agreement([*matrix.values(), *axes.values()]),
        "faithfulness": _faithfulness(matrix),
        "matrices": {key: _mean_matrix(both[0], key) for key, both in ways.items()},
        "stability": _stability(axes),
        "cascade": _cascade(_by_stage(cascade)),
        "claims": claims_of(ways, pictures, randomised),
    }


def _localisation(scores: ByPicture, choice: Choice) -> Summary | None:
    """Return what the maps locate; None where nothing could be located."""
    if not any(scores.values()):
        return None
    references = [Setting(name, REFERENCE) for name in REFERENCES]
    in_full = [
        {
            "setting": setting.name,
            "method": setting.method,
            "sign": setting.sign,
            "is_reference": setting.route == REFERENCE,
            "validation_hit_rate": choice.hit_rates.get(setting),
            "thresholds": dict(choice.thresholds_of(setting)),
            **{metric: interval(table_of(scores, setting, metric, choice)) for metric in _LOCALISATION},
            "by_finding": _by_finding(scores, setting, choice),
        }
        for setting in [*choice.thresholds, *references]
    ]
    every = {key for settings in scores.values() for key in settings}
    return {
        "settings": in_full,
        "best": choice.best.name,
        "against_references": against_references(scores, choice),
        "every_setting": [
            {"setting": setting.name, **(interval(metric_table(scores, setting, "hit")) or {})}
            for setting in sorted(map(Setting.parse, every), key=lambda each: each.name)
            if setting.route != REFERENCE
        ],
    }


def _by_finding(scores: ByPicture, setting: Setting, choice: Choice) -> Summary:
    tables = {metric: table_of(scores, setting, metric, choice) for metric in ("hit", "iou")}
    return {
        label: {metric: interval(table[:, [column]]) for metric, table in tables.items()}
        for column, label in enumerate(labels_of(scores, setting))
    }


def _merged_ways(*stages: Mapping[str, Any]) -> tuple[dict[str, tuple[list[Any], list[Any]]], dict[str, list[str]]]:
    """Collect, for each method, route and sign, the scores of texts and of places, and whose they are."""
    ways: dict[str, tuple[list[Any], list[Any]]] = {}
    pictures: dict[str, list[str]] = {}
    for stage in stages:
        for picture, scores in stage.items():
            for key, texts in scores["texts"].items():
                both = ways.setdefault(key, ([], []))
                both[0].append(texts)
                both[1].append(scores["settings"])
                pictures.setdefault(key, []).append(picture)
    return ways, pictures


def _route(key: str, texts: Sequence[Any], settings: Sequence[Any]) -> Summary:
    way = Setting.parse(key)
    controls = {kind: [each["controls"].get(kind, []) for each in texts] for kind in ("gibberish", "irrelevant")}
    return {
        "method": way.method,
        "route": way.route,
        "sign": way.sign,
        "n": len(texts),
        "hit": {
            f"{form}{', contrast' * contrast}": interval(
                shares(settings, Setting(way.method, way.route, way.sign, form, contrast))
            )
            for form in FORMS
            for contrast in (False, True)
        },
        "overlap": {
            metric: interval(shares(settings, Setting(way.method, way.route, way.sign), metric))
            for metric in CLAIMED
            if metric != "hit"
        },
        "between_texts": {form: interval([[off(each, form)] for each in texts]) for form in FORMS},
        "ssim": interval([[each["ssim"]] for each in texts]),
        "outside_body": interval([[mean(each["outside_body"])] for each in texts]),
        "controls": {
            kind: {
                "correlation": interval([[mean([pair[0] for pair in pairs])] for pairs in by_picture]),
                "hit": interval([[mean([number(pair[1]) for pair in pairs])] for pairs in by_picture]),
            }
            for kind, by_picture in controls.items()
        },
    }


def _mean_matrix(texts: Sequence[Any], key: str) -> list[list[float]]:
    """Return the mean over pictures of the likeness of the class ensembles' maps."""
    stacked = torch.tensor([each["correlation"]["ensemble"] for each in texts], dtype=torch.float64)
    return [[round(value, 4) for value in row] for row in stacked.mean(dim=0).tolist()]


def _agreement(pictures: Sequence[Any]) -> Summary:
    """Return, for each method, the largest difference between the conventional map and the stack's projection."""
    worst: dict[str, Any] = {}
    for picture in pictures:
        for method, value in picture["agreement"].items():
            entry = worst.setdefault(method, {"largest": 0.0, "n": 0})
            entry["largest"], entry["n"] = max(entry["largest"], value), entry["n"] + 1
    return worst


def _faithfulness(matrix: Mapping[str, Any]) -> Summary:
    pictures = [scores["faithfulness"] for scores in matrix.values()]
    keys = list(dict.fromkeys(key for each in pictures for key in each))
    found = {}
    for key in keys:
        rows = [each[key] for each in pictures if key in each]
        found[Setting.parse(key).name] = {
            metric: interval([[number(row.get(metric))] for row in rows])
            for metric in ("deletion", "insertion", "infidelity", "completeness")
        } | {f"{side}_curve": _curve([row[f"{side}_curve"] for row in rows]) for side in ("deletion", "insertion")}
    return found


def _curve(curves: Sequence[Sequence[float]]) -> list[Summary | None]:
    return [interval([[value] for value in points]) for points in zip(*curves, strict=True)]


def _stability(axes: Mapping[str, Any]) -> Summary:
    methods = list(dict.fromkeys(method for each in axes.values() for method in each["sensitivity"]))
    return {
        method: {
            "max_sensitivity": interval([[each["sensitivity"][method]] for each in axes.values()]),
            "same_seed": max(each["repeat"][method]["same_seed"] for each in axes.values()),
            "other_seed": interval([[each["repeat"][method]["other_seed"]] for each in axes.values()]),
        }
        for method in methods
    }


def _by_stage(pictures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Turn the cascade's scores by picture and stage into those by stage and picture."""
    stages: Mapping[str, Any] = next(iter(pictures.values()), {})
    return {stage: {key: scores[stage] for key, scores in pictures.items()} for stage in stages}


def _cascade(stages: Mapping[str, Any]) -> Summary:
    """Return, for each way and metric, the intervals in the order of the cascade."""
    first: Mapping[str, Any] = next(iter(next(iter(stages.values())).values()), {}) if stages else {}
    return {
        "stages": list(stages),
        "ways": {
            Setting.parse(key).name: {
                metric: [
                    interval([[number(picture[key][metric])] for picture in by_picture.values()])
                    for by_picture in stages.values()
                ]
                for metric in ("pearson", "spearman", "ssim", "between_texts", "hit")
            }
            for key in first
        },
    }
