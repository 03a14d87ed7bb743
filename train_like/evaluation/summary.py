"""From the scores of pictures to means with intervals, and to plain answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.metrics.bootstrap import bootstrap
from mapstack.metrics.chexlocalize import THRESHOLDS
from mapstack.metrics.similarity import mean_off_diagonal
from train_like.evaluation.choice import ByPicture, Choice, labels_of, metric_table
from train_like.evaluation.journal import Journal
from train_like.evaluation.randomised import TRAINED
from train_like.evaluation.settings import FORMS, REFERENCE, Setting
from train_like.evaluation.stages import REFERENCES

Summary = dict[str, Any]

_LOCALISATION = ("hit", "pointing", "mass", "rank", "iou", "iou_otsu")


def summarise(journal: Journal, keys: Mapping[str, Sequence[str]], choice: Choice, about: Mapping[str, Any]) -> Summary:
    """Make everything that the report tells.

    Args:
        journal: The scores of all stages.
        keys: The pictures that count in each stage, in the order in which they are drawn anew for the intervals.
        choice: What the validation split chose.
        about: The model and the pictures.
    """
    localised, matrix, axes, randomised = (
        {key: journal.stage(stage)[key] for key in keys[stage]} for stage in ("localise", "matrix", "axes", "cascade")
    )
    cascade = _by_stage(randomised)
    ways = _merged_ways(matrix, axes)
    return {
        "about": dict(about) | {"zero_shot": _interval([[float(each["zero_shot"])] for each in localised.values()])},
        "localisation": _localisation({key: each["settings"] for key, each in localised.items()}, choice),
        "routes": {key: _route(key, *both) for key, both in ways.items()},
        "agreement": _agreement([*matrix.values(), *axes.values()]),
        "faithfulness": _faithfulness(matrix),
        "matrices": {key: _mean_matrix(both[0], key) for key, both in ways.items()},
        "stability": _stability(axes),
        "cascade": _cascade(cascade),
        "claims": _claims(ways, cascade),
    }


def _interval(rows: Sequence[Sequence[float]] | Float[Tensor, "n_pictures n_findings"]) -> Summary | None:
    """Return mean, interval and on how many pictures they rest; None where nothing was measured."""
    table = torch.as_tensor(rows, dtype=torch.float64)
    if table.numel() == 0 or table.isnan().all():
        return None
    found = bootstrap(table)
    n_pictures = int((~table.isnan()).reshape(len(table), -1).any(dim=1).sum())
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": n_pictures}


def _localisation(scores: ByPicture, choice: Choice) -> Summary:
    references = [Setting(name, REFERENCE) for name in REFERENCES]
    in_full = [
        {
            "setting": setting.name,
            "method": setting.method,
            "sign": setting.sign,
            "is_reference": setting.route == REFERENCE,
            "validation_hit_rate": choice.hit_rates.get(setting),
            "thresholds": dict(choice.thresholds.get(setting, {})),
            **{metric: _interval(_table(scores, setting, metric, choice)) for metric in _LOCALISATION},
            "by_finding": _by_finding(scores, setting, choice),
        }
        for setting in [*choice.thresholds, *references]
    ]
    every = {key for settings in scores.values() for key in settings}
    return {
        "settings": in_full,
        "best": choice.best.name,
        "against_references": _against_references(scores, choice, references),
        "every_setting": [
            {"setting": setting.name, **(_interval(metric_table(scores, setting, "hit")) or {})}
            for setting in sorted(map(Setting.parse, every), key=lambda each: each.name)
            if setting.route != REFERENCE
        ],
    }


def _table(scores: ByPicture, setting: Setting, metric: str, choice: Choice) -> Float[Tensor, "n_pictures n_findings"]:
    """Return a metric by picture and label; `iou` is the overlap at the threshold of each label."""
    if metric != "iou":
        return metric_table(scores, setting, metric)
    labels, thresholds = labels_of(scores, setting), choice.thresholds.get(setting, {})
    rows = [
        [_overlap(settings.get(setting.key, {}).get(label, {}).get("ious"), thresholds.get(label)) for label in labels]
        for settings in scores.values()
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(labels))


def _overlap(ious: Sequence[float | None] | None, threshold: float | None) -> float:
    value = None if ious is None or threshold is None else ious[THRESHOLDS.index(threshold)]
    return float("nan") if value is None else value


def _by_finding(scores: ByPicture, setting: Setting, choice: Choice) -> Summary:
    tables = {metric: _table(scores, setting, metric, choice) for metric in ("hit", "iou")}
    return {
        label: {metric: _interval(table[:, [column]]) for metric, table in tables.items()}
        for column, label in enumerate(labels_of(scores, setting))
    }


def _against_references(scores: ByPicture, choice: Choice, references: Sequence[Setting]) -> list[Summary]:
    """Compare each chosen setting with each reference, picture by picture."""
    return [
        {"setting": setting.name, "reference": reference.method, **found}
        for setting in choice.thresholds
        for reference in references
        if (found := _interval(_hit_difference(scores, setting, reference))) is not None
    ]


def _hit_difference(scores: ByPicture, first: Setting, second: Setting) -> Float[Tensor, "n_pictures n_findings"]:
    """Return the difference of hits by picture and finding; NaN where one of the two has none."""
    labels = [label for label in labels_of(scores, first) if label in labels_of(scores, second)]
    hits = []
    for setting in (first, second):
        columns = [labels_of(scores, setting).index(label) for label in labels]
        hits.append(metric_table(scores, setting, "hit")[:, columns])
    return hits[0] - hits[1]


def _merged_ways(*stages: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Collect, for each method, route and sign, the texts' scores and the localisation scores of its pictures."""
    ways: dict[str, tuple[list[Any], list[Any]]] = {}
    for stage in stages:
        for scores in stage.values():
            for key, texts in scores["texts"].items():
                both = ways.setdefault(key, ([], []))
                both[0].append(texts)
                both[1].append(scores["settings"])
    return ways


def _route(key: str, texts: Sequence[Any], settings: Sequence[Any]) -> Summary:
    way = Setting.parse(key)
    controls = {kind: [each["controls"].get(kind, []) for each in texts] for kind in ("gibberish", "irrelevant")}
    return {
        "method": way.method,
        "route": way.route,
        "sign": way.sign,
        "n": len(texts),
        "hit": {
            f"{form}{', contrast' * contrast}": _interval(
                _hits(settings, Setting(way.method, way.route, way.sign, form, contrast))
            )
            for form in FORMS
            for contrast in (False, True)
        },
        "between_texts": {form: _interval([[_off(each, form)] for each in texts]) for form in FORMS},
        "ssim": _interval([[each["ssim"]] for each in texts]),
        "outside_body": _interval([[_mean(each["outside_body"])] for each in texts]),
        "controls": {
            kind: {
                "correlation": _interval([[_mean([pair[0] for pair in pairs])] for pairs in by_picture]),
                "hit": _interval([[_mean([pair[1] for pair in pairs])] for pairs in by_picture]),
            }
            for kind, by_picture in controls.items()
        },
    }


def _hits(settings: Sequence[Any], setting: Setting) -> Float[Tensor, "n_pictures 1"]:
    """Return the share of findings hit on each picture; with few pictures no mean over findings is attempted."""
    rows = [_mean([scores["hit"] for scores in each.get(setting.key, {}).values()]) for each in settings]
    return torch.tensor(rows, dtype=torch.float64)[:, None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _off(texts: Mapping[str, Any], form: str) -> float:
    return mean_off_diagonal(torch.tensor(texts["correlation"][form], dtype=torch.float64))


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
            metric: _interval([[_value(row.get(metric))] for row in rows])
            for metric in ("deletion", "insertion", "infidelity", "completeness")
        } | {f"{side}_curve": _curve([row[f"{side}_curve"] for row in rows]) for side in ("deletion", "insertion")}
    return found


def _value(value: float | None) -> float:
    return float("nan") if value is None else value


def _curve(curves: Sequence[Sequence[float]]) -> list[Summary | None]:
    return [_interval([[value] for value in points]) for points in zip(*curves, strict=True)]


def _stability(axes: Mapping[str, Any]) -> Summary:
    methods = list(dict.fromkeys(method for each in axes.values() for method in each["sensitivity"]))
    return {
        method: {
            "max_sensitivity": _interval([[each["sensitivity"][method]] for each in axes.values()]),
            "same_seed": max(each["repeat"][method]["same_seed"] for each in axes.values()),
            "other_seed": _interval([[each["repeat"][method]["other_seed"]] for each in axes.values()]),
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
                    _interval([[picture[key][metric]] for picture in by_picture.values()])
                    for by_picture in stages.values()
                ]
                for metric in ("pearson", "spearman", "ssim", "between_texts", "hit")
            }
            for key in first
        },
    }


def _claims(ways: Mapping[str, tuple[list[Any], list[Any]]], cascade: Mapping[str, Any]) -> list[Summary]:
    """Compare the stack with the conventional map of the same method and sign, picture by picture."""
    claims = []
    for key, (texts, settings) in ways.items():
        way = Setting.parse(key)
        conventional = Setting(way.method, "conventional", way.sign)
        if way.route == "conventional" or conventional.key not in ways:
            continue
        base_texts, base_settings = (side[: len(texts)] for side in ways[conventional.key])
        claims.append(
            {
                "method": way.method,
                "route": way.route,
                "sign": way.sign,
                "between_texts": _interval(
                    [[_off(a, "ensemble") - _off(b, "ensemble")] for a, b in zip(texts, base_texts, strict=True)]
                ),
                "hit": _interval(_hits(settings, way) - _hits(base_settings, conventional)),
                "between_texts_randomised": _randomised_difference(cascade, way, conventional),
            }
        )
    return claims


def _randomised_difference(cascade: Mapping[str, Any], way: Setting, conventional: Setting) -> Summary | None:
    """Return the same difference of likeness with every weight of the image tower random."""
    names = [name for name in cascade if name != TRAINED]
    pictures = cascade[names[-1]].values() if names else ()
    rows = [
        [picture[way.key]["between_texts"] - picture[conventional.key]["between_texts"]]
        for picture in pictures
        if way.key in picture and conventional.key in picture
    ]
    return _interval(rows) if rows else None
