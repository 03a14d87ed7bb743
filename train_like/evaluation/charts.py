"""The charts of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapstack.charts import Bar, Curves, cascade_lines, curve_panels, grouped_bars, interval_bars, matrices
from mapstack.figures import save
from mapstack.metrics.bootstrap import Interval

_N_SERIES = 6  # as many lines as colours tell apart


def draw_charts(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw the charts of a summary into a folder and return their names."""
    charts = {
        "hit-rate": _hit_rates(summary),
        "hit-rate-by-finding": _findings(summary),
        "deletion-insertion": _curves(summary),
        "between-texts": _matrices(summary),
        "cascade": _cascade(summary, "pearson", "correlation with the trained model's map"),
        "cascade-between-texts": _cascade(summary, "between_texts", "correlation between texts"),
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
        caption=f"{about['pictures']['test']} test pictures. Settings were chosen on "
        f"{about['pictures']['validation']} others. {about['note'].capitalize()}.",
    )


def _findings(summary: Mapping[str, Any]) -> Any:
    settings = [each for each in summary["localisation"]["settings"] if each["sign"] != "absolute"]
    shown = [each for each in settings if not each["is_reference"]][:_N_SERIES]
    shown += [each for each in settings if each["method"] == "mean mask of the label"]
    labels = sorted({label for each in shown for label in each["by_finding"]})
    bars = {each["method"]: [_of(each["by_finding"].get(label, {}).get("hit")) for label in labels] for each in shown}
    return grouped_bars(labels, bars, title="Hit rate by finding", unit="hit rate")


def _curves(summary: Mapping[str, Any]) -> Any:
    faithful = summary["faithfulness"]
    wanted = [name for name in faithful if ", conventional, signed" in name] + ["random", "Sobel edges"]
    panels: dict[str, Sequence[Curves]] = {}
    for side, heading in (("deletion", "Deletion: lower is better"), ("insertion", "Insertion: higher is better")):
        panels[heading] = [
            _curve(name.partition(", conventional")[0], faithful[name][f"{side}_curve"])
            for name in wanted
            if name in faithful
        ]
    return curve_panels(
        panels,
        title="What the model does when the pixels of a map go or come",
        x_label="share of the pixels",
        y_label="logit",
        caption=f"Mean over {summary['about']['pictures']['matrix']} pictures; pixels are replaced by a blur of the "
        "picture.",
    )


def _curve(name: str, points: Sequence[Mapping[str, float]]) -> Curves:
    columns = {key: np.array([point[key] for point in points]) for key in ("mean", "low", "high")}
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
        caption="Ensembles of each class. For linear methods the signed stack map is the signed conventional one.",
    )


def _cascade(summary: Mapping[str, Any], metric: str, unit: str) -> Any:
    cascade = summary["cascade"]
    series = {
        name.removesuffix(", ensemble"): [interval(point) for point in ways[metric]]
        for name, ways in list(cascade["ways"].items())[: _N_SERIES + 2]
    }
    stages = [short_stage(stage) for stage in cascade["stages"]]
    return cascade_lines(
        stages,
        series,
        title="Maps while the weights are randomised, from the embedding back to the picture",
        unit=unit,
        caption=f"{summary['about']['pictures']['axes']} pictures, the ensemble of the first finding.",
    )


def short_stage(name: str) -> str:
    """Return a stage's name without what all of them begin with.

    Example:
        >>> short_stage("vision_model.model.encoder.layers.1")
        'encoder.layers.1'
    """
    return name.removeprefix("vision_model.").removeprefix("model.")


def interval(values: Mapping[str, float]) -> Interval:
    """Return the interval of a summary's entry."""
    return Interval(values["mean"], values["low"], values["high"])


def _of(values: Mapping[str, float] | None) -> Interval | None:
    return None if values is None else interval(values)
