"""The charts of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapstack.charts import Bar, Curves, cascade_lines, curve_panels, grouped_bars, interval_bars, matrices
from mapstack.figures import save
from mapstack.metrics.bootstrap import Interval
from train_like.evaluation.intervals import MIN_PICTURES

_N_SERIES = 6  # as many lines as are told apart beside those of reference methods
_N_CASCADE = 8  # as many as colours tell apart


def draw_charts(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw the charts of a summary into a folder and return their names."""
    charts: dict[str, Any] = {}
    if summary["localisation"] is not None:
        charts |= {"hit-rate": _hit_rates(summary), "hit-rate-by-finding": _findings(summary)}
    charts |= {"deletion-insertion": _curves(summary), "between-texts": _matrices(summary)}
    for sign in ("signed", "absolute"):
        charts |= {
            f"cascade-{sign}": _cascade(summary, sign, "pearson", "correlation with the trained model's map"),
            f"cascade-between-texts-{sign}": _cascade(summary, sign, "between_texts", "correlation between texts"),
        }
    for name, chart in charts.items():
        save(chart, folder / f"{name}.png")
    return list(charts)


def _hit_rates(summary: Mapping[str, Any]) -> Any:
    about = summary["about"]
    bars = [
        Bar(each["setting"], interval(each["hit"]), is_reference=each["is_reference"])
        for each in summary["localisation"]["settings"]
        if each["hit"] is not None
    ]
    return interval_bars(
        sorted(bars, key=lambda bar: (bar.is_reference, -bar.interval.mean)),
        title="Hit rate: the peak of the map lies inside the finding",
        unit="hit rate, mean over findings",
        limits=(0.0, 1.0),
        caption=f"{about['pictures']['test_with_regions']} test pictures with a finding. Settings were chosen on "
        f"{about['pictures']['validation']} others. {about['note'].capitalize()}.",
    )


def _findings(summary: Mapping[str, Any]) -> Any:
    settings = [each for each in summary["localisation"]["settings"] if each["sign"] != "absolute"]
    best = summary["localisation"]["best"]
    methods = sorted((each for each in settings if not each["is_reference"]), key=lambda each: each["setting"] != best)
    shown = methods[:_N_SERIES]
    shown += [each for each in settings if each["method"] == "mean mask of the label"]
    labels = sorted({label for each in shown for label in each["by_finding"]})
    bars = {each["method"]: [_of(each["by_finding"].get(label, {}).get("hit")) for label in labels] for each in shown}
    return grouped_bars(labels, bars, title="Hit rate by finding", unit="hit rate")


def _curves(summary: Mapping[str, Any]) -> Any:
    faithful = summary["faithfulness"]
    plain = [name for name in faithful if name.endswith(", conventional, signed, ensemble")][: _N_SERIES - 1]
    best = [] if summary["localisation"] is None else [summary["localisation"]["best"]]
    wanted = [*dict.fromkeys([*best, *plain]), "random", "Sobel edges"]
    panels: dict[str, Sequence[Curves]] = {}
    for side, heading in (("deletion", "Deletion: lower is better"), ("insertion", "Insertion: higher is better")):
        panels[heading] = [
            _curve(name.removesuffix(", conventional, signed, ensemble"), faithful[name][f"{side}_curve"])
            for name in wanted
            if name in faithful
        ]
    return curve_panels(
        panels,
        title="What the model does when the pixels of a map go or come",
        x_label="share of the pixels",
        y_label="logit",
        caption=f"Mean over {_told(summary['about']['pictures']['matrix'])}; pixels are replaced by a blur of the "
        "picture. Plain maps are signed, of the class ensemble.",
    )


def _curve(name: str, points: Sequence[Mapping[str, float]]) -> Curves:
    shown = [interval(point) for point in points]
    columns = {key: np.array([getattr(each, key) for each in shown]) for key in ("mean", "low", "high")}
    return Curves(name, np.linspace(0, 1, len(points)), **columns)


def _matrices(summary: Mapping[str, Any]) -> Any:
    wanted = (("conventional", "signed"), ("conventional", "absolute"), ("stack_normalised", "absolute"))
    ways = {key: way for key, way in summary["routes"].items() if (way["route"], way["sign"]) in wanted}
    # In the order of the methods, since the absolute stacks of path methods come from a later stage.
    methods = list(dict.fromkeys(way["method"] for way in ways.values()))
    shown = {
        f"{way['method']}, {way['route'].replace('_', ' ')}, {way['sign']}": np.array(summary["matrices"][key])
        for key, way in sorted(ways.items(), key=lambda each: methods.index(each[1]["method"]))
    }
    return matrices(
        shown,
        summary["about"]["labels"],
        title="Are the maps of different texts on one picture alike?",
        unit="correlation",
        caption=f"Ensembles of each class, {_rests_on(ways)}. For linear methods the signed stack map is the signed "
        "conventional one.",
    )


def _rests_on(ways: Mapping[str, Any]) -> str:
    """Say on how many pictures the ways rest, where some rest on fewer."""
    counts = {way["n"] for way in ways.values()}
    few = [f"{way['method']}, {way['route'].replace('_', ' ')}" for way in ways.values() if way["n"] < max(counts)]
    return f"{max(counts)} pictures" + (f" ({', '.join(few)}: {min(counts)})" if few else "")


def _cascade(summary: Mapping[str, Any], sign: str, metric: str, unit: str) -> Any:
    """Draw the ways of one sign: those of both are more than colours tell apart."""
    cascade = summary["cascade"]
    ways = {
        name.removesuffix(f", {sign}, ensemble"): each[metric]
        for name, each in cascade["ways"].items()
        if name.endswith(f", {sign}, ensemble")
    }
    series = {name: [interval(point) for point in points] for name, points in list(ways.items())[:_N_CASCADE]}
    left_out = list(ways)[_N_CASCADE:]
    stages = [short_stage(stage) for stage in cascade["stages"]]
    return cascade_lines(
        stages,
        series,
        title=f"Maps ({sign}) while the weights are randomised, from the embedding back to the picture",
        unit=unit,
        caption=f"{_told(summary['about']['pictures']['axes'])}, the ensemble of the first finding."
        + (f" Not drawn, but in the table: {'; '.join(left_out)}." if left_out else ""),
    )


def _told(n_pictures: int) -> str:
    return f"{n_pictures} pictures" + (" (too few for intervals)" if n_pictures < MIN_PICTURES else "")


def short_stage(name: str) -> str:
    """Return a stage's name without what all of them begin with.

    Example:
        >>> short_stage("vision_model.model.encoder.layers.1")
        'encoder.layers.1'
    """
    return name.removeprefix("vision_model.").removeprefix("model.")


def interval(values: Mapping[str, float]) -> Interval:
    """Return the interval of a summary's entry; its mean alone where it rests on too few pictures."""
    if values["n"] < MIN_PICTURES:
        return Interval(values["mean"], values["mean"], values["mean"])
    return Interval(values["mean"], values["low"], values["high"])


def _of(values: Mapping[str, float] | None) -> Interval | None:
    return None if values is None else interval(values)
