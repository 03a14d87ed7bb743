"""The charts of the evaluation report: means with intervals, curves, sanity cascades, similarity matrices.

Save them with `mapstack.figures.save`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from mapstack.chart_axes import (
    AXIS_STRIP,
    BAND,
    NAME_SIZE,
    REFERENCE,
    Entry,
    NumberAxis,
    check_interval,
    draw_interval,
    plot_area,
    sheet,
    slant_extent,
    styles,
    upright_area,
    upright_space,
    widest,
    write_aligned,
    write_slanted,
)
from mapstack.errors import InputError
from mapstack.map_table import GAP, MARGIN
from mapstack.matrix_chart import matrices
from mapstack.metrics.bootstrap import Interval
from mapstack.page import FAINT, INK, wrapped

__all__ = ["Bar", "Curves", "cascade_lines", "curve_panels", "grouped_bars", "interval_bars", "matrices"]

_ROW_REMARK = "Dot and number: mean. Whisker: 95 % confidence interval."
_INTERVAL_REMARK = "Dot: mean. Whisker: 95 % confidence interval."
_BAND_REMARK = "Line: mean. Shaded: 95 % confidence interval."
_PLOT_HEIGHT, _MIN_PLOT_WIDTH = 2.8, 4.4
_GUIDE = "#efefef"
_DASHED = {"color": FAINT, "linewidth": 1.0, "linestyle": (0, (4, 2.5))}
_ROW_PLOT_WIDTH, _ROW_HEIGHT, _ROW_NAME_WIDTH = 3.8, 0.25, 2.4
_SLOT, _MAX_WORD_WIDTH = 0.115, 1.6
_PANEL_WIDTH, _PANEL_GAP = 2.9, 0.36
_STAGE_WIDTH, _STAGE_DODGE = 0.6, 0.06


@dataclass(frozen=True)
class Bar:
    """One row of `interval_bars`.

    Args:
        name: Of the method.
        interval: What was measured.
        is_reference: Whether the method looks at no model.
    """

    name: str
    interval: Interval
    is_reference: bool = False


@dataclass(frozen=True)
class Curves:
    """What one method shows in one panel: the mean over pictures with its 95 % interval.

    Args:
        name: Of the method.
        fractions: Of the pixels changed, rising.
        mean: At each fraction.
        low: The lower end there.
        high: The upper end there.
    """

    name: str
    fractions: Float[np.ndarray, " points"]
    mean: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]


def interval_bars(
    bars: Sequence[Bar],
    *,
    title: str,
    unit: str,
    limits: tuple[int | float, int | float] | None = None,
    caption: str | None = None,
) -> Figure:
    """Draw one mean with its interval per row, and the highest mean of the reference methods as a dashed line.

    Args:
        bars: Top to bottom.
        title: Wrapped to the width of the figure.
        unit: Of the values, below their axis.
        limits: Where the axis begins and ends; None: from 0 to a little beyond the intervals.
        caption: A remark under the chart.

    Raises:
        InputError: There is no bar, an interval is not finite or not in order, or the limits do not hold all.
    """
    axis = _axis_of_bars(bars, limits)
    names = [wrapped(bar.name, NAME_SIZE, _ROW_NAME_WIDTH, 3) for bar in bars]
    means = [wrapped(axis.written(bar.interval.mean), NAME_SIZE, 2.0, 1) for bar in bars]
    edges = [0.0, *accumulate(max(_ROW_HEIGHT, name.height + GAP) for name in names)]
    left, width = widest(names) + GAP, widest(names) + GAP + _ROW_PLOT_WIDTH + 2 * GAP + widest(means)
    below = wrapped(unit, NAME_SIZE, _ROW_PLOT_WIDTH, 2)
    height = edges[-1] + AXIS_STRIP + below.height
    page, top = sheet(title, [_ROW_REMARK, caption], width, height, _reference_entries(bars))
    axes = plot_area(page, MARGIN + left, top, _ROW_PLOT_WIDTH, edges[-1])
    axis.lay_across(axes)
    _draw_rows(axes, bars, edges)
    for bar, name, mean, (low, high) in zip(bars, names, means, zip(edges, edges[1:], strict=False), strict=True):
        colour, middle = FAINT if bar.is_reference else INK, top + (low + high) / 2
        write_aligned(page, name, MARGIN + left - GAP, middle - name.height / 2, 1.0, colour=colour)
        write_aligned(page, mean, MARGIN + width, middle - mean.height / 2, 1.0, colour=colour)
    write_aligned(page, below, MARGIN + left + _ROW_PLOT_WIDTH / 2, top + edges[-1] + AXIS_STRIP, 0.5)
    return page.figure


def grouped_bars(
    groups: Sequence[str],
    bars: Mapping[str, Sequence[Interval | None]],
    *,
    title: str,
    unit: str,
    caption: str | None = None,
) -> Figure:
    """Draw for each group, such as a finding, one mean with its interval per method.

    Args:
        groups: Left to right.
        bars: For each method one interval per group; None where nothing was measured.
        title: Wrapped to the width of the figure.
        unit: Of the values, beside their axis.
        caption: A remark under the chart.

    Raises:
        InputError: There is no group or no interval, there are more than 8 methods, a method has another number of
            intervals than there are groups, or an interval is not finite or not in order.
    """
    axis = _axis_of_series(groups, bars)
    words = [wrapped(word, NAME_SIZE, _MAX_WORD_WIDTH, 1) for group in groups for word in group.split()]
    column = max(len(bars) * _SLOT + 3 * GAP, widest(words) + 2 * GAP, _MIN_PLOT_WIDTH / len(groups))
    below = [wrapped(group, NAME_SIZE, column - GAP, 4) for group in groups]
    left, width = upright_space(axis, unit, _PLOT_HEIGHT), column * len(groups)
    height = _PLOT_HEIGHT + GAP + max(name.height for name in below)
    entries = [(name, look.sample()) for name, look in styles(bars).items()]
    page, top = sheet(title, [_INTERVAL_REMARK, caption], left + width, height, entries)
    axes = upright_area(page, axis, unit, MARGIN + left, top, width, _PLOT_HEIGHT)
    axes.set_xlim(0, len(groups))
    for number, name in enumerate(below):
        if number % 2:
            axes.axvspan(number, number + 1, color=BAND, linewidth=0, zorder=0)
        write_aligned(page, name, MARGIN + left + (number + 0.5) * column, top + _PLOT_HEIGHT + GAP, 0.5)
    _draw_series(axes, bars, first=0.5, dodge=_SLOT / column)
    return page.figure


def curve_panels(
    panels: Mapping[str, Sequence[Curves]], *, title: str, x_label: str, y_label: str, caption: str | None = None
) -> Figure:
    """Draw panels of curves side by side, with one vertical axis and one legend.

    Args:
        panels: Curves by the panel's name, left to right; a method looks alike in every panel.
        title: Wrapped to the width of the figure.
        x_label: What the fractions are of, below the panels.
        y_label: Of the values, beside their axis.
        caption: A remark under the chart.

    Raises:
        InputError: There is no panel or no curve, there are more than 8 methods, or the arrays of a curve differ in
            length, are not finite or not in order.
    """
    axis, across = _axes_of_curves(panels)
    names = [wrapped(name, 9.0, _PANEL_WIDTH, 3, "bold") for name in panels]
    above = max(name.height for name in names) + GAP
    left, pitch = upright_space(axis, y_label, _PLOT_HEIGHT), _PANEL_WIDTH + _PANEL_GAP
    # The last number below stands half outside the last panel.
    width = left + len(panels) * pitch - _PANEL_GAP + GAP
    looks = styles(curve.name for panel in panels.values() for curve in panel)
    below = wrapped(x_label, NAME_SIZE, width - left, 2)
    height = above + _PLOT_HEIGHT + AXIS_STRIP + below.height
    entries = [(name, look.line()) for name, look in looks.items()]
    page, top = sheet(title, [_BAND_REMARK, caption], width, height, entries)
    top += above
    for number, (name, panel) in enumerate(zip(names, panels.values(), strict=True)):
        at = MARGIN + left + number * pitch
        write_aligned(page, name, at + _PANEL_WIDTH / 2, top - GAP - name.height, 0.5)
        axes = upright_area(page, axis, "" if number else y_label, at, top, _PANEL_WIDTH, _PLOT_HEIGHT)
        axes.tick_params(labelleft=number == 0)
        across.lay_across(axes)
        for curve in panel:
            look = looks[curve.name]
            axes.fill_between(curve.fractions, curve.low, curve.high, color=look.colour, alpha=0.15, linewidth=0)
            axes.plot(curve.fractions, curve.mean, **look.line())
    write_aligned(page, below, MARGIN + (left + width - GAP) / 2, top + _PLOT_HEIGHT + AXIS_STRIP, 0.5)
    return page.figure


def cascade_lines(
    stages: Sequence[str],
    series: Mapping[str, Sequence[Interval]],
    *,
    title: str,
    unit: str,
    caption: str | None = None,
) -> Figure:
    """Draw how a measure changes along the stages of a weight randomisation, one line per series.

    Args:
        stages: Left to right, such as "trained" and then the layers in the order in which they lost their weights.
        series: For each name, such as a method, one interval per stage.
        title: Wrapped to the width of the figure.
        unit: Of the values, beside their axis.
        caption: A remark under the chart.

    Raises:
        InputError: There is no stage or no series, there are more than 8 series, a series has another number of
            intervals than there are stages, or an interval is not finite or not in order.
    """
    axis = _axis_of_series(stages, series)
    names = [wrapped(stage, NAME_SIZE, float("inf"), 1) for stage in stages]
    width = max(_STAGE_WIDTH * len(stages), _MIN_PLOT_WIDTH)
    pitch = width / len(stages)
    reaches = [slant_extent(name) for name in names]
    # A long name near the left edge reaches further than the numbers of the axis do.
    overhang = max(reach - (number + 0.5) * pitch for number, (reach, _) in enumerate(reaches))
    left = max(upright_space(axis, unit, _PLOT_HEIGHT), overhang)
    height = _PLOT_HEIGHT + GAP + max(depth for _, depth in reaches)
    entries = [(name, {**look.line(), **look.dot()}) for name, look in styles(series).items()]
    page, top = sheet(title, [_INTERVAL_REMARK, caption], left + width, height, entries)
    axes = upright_area(page, axis, unit, MARGIN + left, top, width, _PLOT_HEIGHT)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_xticks(range(len(stages)), [""] * len(stages))
    axes.axhline(0, zorder=2, **_DASHED)
    for number, name in enumerate(names):
        write_slanted(page, name, MARGIN + left + (number + 0.5) * pitch, top + _PLOT_HEIGHT + GAP)
    _draw_series(axes, series, first=0.0, dodge=_STAGE_DODGE / pitch, is_joined=True)
    return page.figure


# What is drawn


def _draw_rows(axes: Any, bars: Sequence[Bar], edges: Sequence[float]) -> None:
    axes.set_ylim(edges[-1], 0)
    references = [bar.interval.mean for bar in bars if bar.is_reference]
    if references:
        axes.axvline(max(references), zorder=2, **_DASHED)
    method = styles(["method"])["method"]
    for bar, low, high in zip(bars, edges, edges[1:], strict=False):
        axes.axhline((low + high) / 2, color=_GUIDE, linewidth=0.6, zorder=0.5)
        style = REFERENCE if bar.is_reference else method
        draw_interval(axes, bar.interval, (low + high) / 2, style, is_across=True)


def _reference_entries(bars: Sequence[Bar]) -> list[Entry]:
    if not any(bar.is_reference for bar in bars):
        return []
    return [
        ("method", styles(["method"])["method"].sample()),
        ("reference method: looks at no model", REFERENCE.sample()),
        ("best reference method", _DASHED),
    ]


def _draw_series(
    axes: Any,
    series: Mapping[str, Sequence[Interval | None]],
    *,
    first: float,
    dodge: float,
    is_joined: bool = False,
) -> None:
    """Draw intervals at first, first + 1, ..., those of one place side by side."""
    for place, (style, intervals) in enumerate(zip(styles(series).values(), series.values(), strict=True)):
        start = first + (place - (len(series) - 1) / 2) * dodge
        drawn = [(start + number, interval) for number, interval in enumerate(intervals) if interval is not None]
        if is_joined:
            axes.plot([at for at, _ in drawn], [interval.mean for _, interval in drawn], zorder=2.5, **style.line())
        for at, interval in drawn:
            draw_interval(axes, interval, at, style, is_across=False)


# What can be drawn


def _axis_of_bars(bars: Sequence[Bar], limits: tuple[int | float, int | float] | None) -> NumberAxis:
    if not bars:
        raise InputError("chart of 0 bars cannot be drawn; it takes at least one; leave the chart out.")
    for bar in bars:
        check_interval(bar.name, bar.interval)
    low, high = min(bar.interval.low for bar in bars), max(bar.interval.high for bar in bars)
    if limits is None:
        return NumberAxis.around([0.0, low, high])
    if not (np.isfinite(limits).all() and limits[0] < limits[1] and limits[0] <= low <= high <= limits[1]):
        raise InputError(
            f"limits {limits} do not fit the intervals, which lie between {low:g} and {high:g}; an axis rises and "
            "holds every interval; widen the limits."
        )
    return NumberAxis(float(limits[0]), float(limits[1]))


def _axis_of_series(places: Sequence[str], series: Mapping[str, Sequence[Interval | None]]) -> NumberAxis:
    for name, intervals in series.items():
        if len(intervals) != len(places):
            raise InputError(
                f"'{name}' has {len(intervals)} intervals for {len(places)} places; the numbers must agree; complete "
                "the list."
            )
        for interval in intervals:
            if interval is not None:
                check_interval(name, interval)
    ends = [(found.low, found.high) for found in chain.from_iterable(series.values()) if found is not None]
    if not ends:
        raise InputError("chart without an interval cannot be drawn; it takes at least one; leave the chart out.")
    return NumberAxis.around([0.0, *chain.from_iterable(ends)])


def _axes_of_curves(panels: Mapping[str, Sequence[Curves]]) -> tuple[NumberAxis, NumberAxis]:
    """Return the vertical axis and the horizontal one."""
    curves = [curve for panel in panels.values() for curve in panel]
    if not curves:
        raise InputError("chart without a curve cannot be drawn; it takes at least one; leave the chart out.")
    for curve in curves:
        _check_curve(curve)
    values = np.concatenate([array for curve in curves for array in (curve.low, curve.high)])
    fractions = np.concatenate([curve.fractions for curve in curves])
    return NumberAxis.around(values.tolist()), NumberAxis(float(fractions.min()), float(fractions.max()))


def _check_curve(curve: Curves) -> None:
    arrays = {"fractions": curve.fractions, "mean": curve.mean, "low": curve.low, "high": curve.high}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or curve.mean.ndim != 1 or len(curve.mean) < 2:
        raise InputError(
            f"curve '{curve.name}' has arrays of shapes {shapes}; all four have the same number of points, at least 2; "
            "correct them."
        )
    slack = 1e-9 * float(np.abs(curve.mean).max())
    in_order = (curve.low <= curve.mean + slack) & (curve.mean <= curve.high + slack)
    if not all(np.isfinite(array).all() for array in arrays.values()) or not in_order.all():
        raise InputError(
            f"curve '{curve.name}' has points that are not finite, or whose mean is not between low and high; a band "
            "lies around its mean; correct the arrays."
        )
    if not (np.diff(curve.fractions) > 0).all():
        raise InputError(f"curve '{curve.name}' has fractions that do not rise; each is above the last; sort them.")
