"""What the charts of the report are made of: a sheet, number axes, intervals, a legend, colours.

Lengths are in inches, font sizes in points.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, cos, floor, isfinite, log10, radians, sin
from typing import Any, TypeAlias

from matplotlib.ticker import MaxNLocator

from mapstack.errors import InputError
from mapstack.map_table import GAP, MARGIN, remarks, write_all
from mapstack.metrics.bootstrap import Interval
from mapstack.page import DPI, FAINT, INK, Lines, Page, wrapped

NAME_SIZE, NUMBER_SIZE = 8.5, 7.5
AXIS_STRIP = 0.24
"""The height that the numbers below an axis take."""

BAND = "#f4f4f4"
"""Behind every second group."""

FONT = "DejaVu Sans"  # comes with matplotlib: the same letters on every machine

_TICK_SPACE = 0.08
_GRID = "#dedede"
_PADDING = 0.04
_SLANT = 40.0
_LEGEND_ROW, _SAMPLE, _BETWEEN = 0.2, 0.42, 0.2
# Okabe and Ito's colours, yellow replaced by a dark red, in an order in which neighbours differ in lightness also.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#882255", "#56b4e9", "#d55e00", "#1a1a1a", "#cc79a7")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (4.5, 1.5),
    (1.0, 1.2),
    (6.0, 1.5, 1.0, 1.5),
    (9.0, 2.0),
    (3.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    (2.0, 2.0),
    (9.0, 1.5, 3.0, 1.5),
)


Entry: TypeAlias = tuple[str, dict[str, Any]]
"""What a legend explains: a name with matplotlib's words for a line and its dot."""


@dataclass(frozen=True)
class Style:
    """How one name looks in a chart.

    Args:
        colour: Of its line, dot and whisker.
        marker: Of its dot.
        dashes: Of its line, on and off [line widths]; empty for an unbroken line.
        is_hollow: Whether the dot is white inside.
    """

    colour: str
    marker: str = "o"
    dashes: tuple[float, ...] = ()
    is_hollow: bool = False

    def dot(self) -> dict[str, Any]:
        """Return matplotlib's words for the dot."""
        inside = "white" if self.is_hollow else self.colour
        return {"marker": self.marker, "markersize": 5, "markerfacecolor": inside, "markeredgecolor": self.colour}

    def sample(self) -> dict[str, Any]:
        """Return matplotlib's words for the dot on an unbroken line."""
        return {"color": self.colour, "linewidth": 1.4, **self.dot()}

    def line(self) -> dict[str, Any]:
        """Return matplotlib's words for the line."""
        return {"color": self.colour, "linewidth": 1.5, "linestyle": (0, self.dashes or None)}


REFERENCE = Style("#8c8c8c", is_hollow=True)
"""How a method looks that looks at no model."""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Give each name its look, in order.

    Raises:
        InputError: There is no name, or there are more than can be told apart.
    """
    known = list(dict.fromkeys(names))
    if not 0 < len(known) <= len(_COLOURS):
        raise InputError(
            f"chart of {len(known)} names cannot be drawn; there must be 1 to {len(_COLOURS)}, which colours tell "
            "apart; draw several charts."
        )
    looks = zip(known, _COLOURS, _MARKERS, _DASHES, strict=False)
    return {name: Style(colour, marker, dashes) for name, colour, marker, dashes in looks}


def check_interval(name: str, interval: Interval) -> None:
    """Refuse an interval that cannot be drawn.

    Raises:
        InputError: A number is not finite, or the mean lies outside by more than rounding.
    """
    ends = (interval.low, interval.mean, interval.high)
    slack = 1e-9 * max(map(abs, ends))
    if not (all(map(isfinite, ends)) and interval.low - slack <= interval.mean <= interval.high + slack):
        raise InputError(
            f"interval of '{name}' has low {ends[0]:g}, mean {ends[1]:g} and high {ends[2]:g}; they must be finite and "
            "in this order; leave out what could not be measured."
        )


def decimal(value: float, n_decimals: int) -> str:
    """Write a number with a true minus sign, and none before zero.

    Example:
        >>> decimal(-0.126, 2), decimal(-0.001, 2)
        ('−0.13', '0.00')
    """
    return f"{round(value, n_decimals) + 0.0:.{n_decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class NumberAxis:
    """An axis of numbers, with ticks at round ones.

    Args:
        low: Where it begins.
        high: Where it ends.
        n_steps: The most that the ticks divide it into.
    """

    low: float
    high: float
    n_steps: int = 6

    @classmethod
    def around(cls, values: Iterable[float]) -> "NumberAxis":
        """Return an axis that holds all values with a little room; an end at 0 stays there."""
        held = list(values)
        low, high = min(held), max(held)
        padding = _PADDING * (high - low) or 0.5 * abs(high) or 0.5
        return cls(low - padding if low else 0.0, high + padding if high or not low else 0.0)

    @cached_property
    def ticks(self) -> list[float]:
        """The round numbers."""
        chosen = MaxNLocator(self.n_steps, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(tick) for tick in chosen if self.low - slack <= tick <= self.high + slack]

    @cached_property
    def labels(self) -> list[str]:
        """What stands at the ticks."""
        return [decimal(tick, self._fineness) for tick in self.ticks]

    @property
    def label_width(self) -> float:
        """What the widest label takes."""
        return widest([Lines(tuple(self.labels), NUMBER_SIZE)])

    def written(self, value: float) -> str:
        """Write a value with two decimals, with more on an axis shorter than 0.2.

        Example:
            >>> NumberAxis(0.0, 1.0).written(0.8251), NumberAxis(0.0, 0.1).written(0.0251)
            ('0.83', '0.025')
        """
        return decimal(value, max(2, 2 - ceil(log10((self.high - self.low) / 2))))

    @property
    def _fineness(self) -> int:
        """How many decimals tell the ticks apart."""
        return max(0, -floor(log10(self.ticks[1] - self.ticks[0]) + 1e-9))

    def lay_across(self, axes: Any) -> None:
        """Make it the horizontal axis, with grid lines."""
        axes.set_xlim(self.low, self.high)
        axes.set_xticks(self.ticks, self.labels, family=FONT, size=NUMBER_SIZE)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)

    def stand_up(self, axes: Any) -> None:
        """Make it the vertical axis, with grid lines."""
        axes.set_ylim(self.low, self.high)
        axes.set_yticks(self.ticks, self.labels, family=FONT, size=NUMBER_SIZE)
        axes.grid(axis="y", color=_GRID, linewidth=0.6)


class Legend:
    """What the looks mean: samples with their names, in rows.

    Args:
        entries: Left to right.
        width: Of the rows.
    """

    def __init__(self, entries: Sequence[Entry], width: float) -> None:
        self._width = width
        self._rows: list[list[tuple[Lines, dict[str, Any], float]]] = []
        left = width
        for name, look in entries:
            text = wrapped(name, NAME_SIZE, width - _SAMPLE - GAP, 3)
            taken = _SAMPLE + GAP + widest([text])
            if left + taken > width:
                self._rows.append([])
                left = 0.0
            self._rows[-1].append((text, look, left))
            left += taken + _BETWEEN
        self._heights = [max(_LEGEND_ROW, *(text.height for text, _, _ in row)) for row in self._rows]

    @property
    def height(self) -> float:
        """What it takes with the space below it."""
        return sum(self._heights) + GAP if self._rows else 0.0

    def draw(self, page: Page, left: float, top: float) -> None:
        """Draw it from its upper left corner."""
        for row, height in zip(self._rows, self._heights, strict=True):
            axes = page.axes(left, top, self._width, height)
            axes.set(xlim=(0, self._width), ylim=(0, 1))
            axes.set_axis_off()
            for text, look, start in row:
                ends = [start, start + _SAMPLE / 2, start + _SAMPLE]
                axes.plot(ends, [0.5] * 3, markevery=[1], solid_capstyle="butt", **look)
                page.write(text, left + start + _SAMPLE + GAP, top + (height - text.height) / 2)
            top += height


def sheet(
    title: str, below: Sequence[str | None], width: float, height: float, entries: Sequence[Entry] = ()
) -> tuple[Page, float]:
    """Lay out a page with a title and a legend above a chart, and remarks below it.

    Args:
        title: Wrapped to the width.
        below: The remarks; None is left out.
        width: Of the chart, without the margin.
        height: Of the chart.
        entries: Of the legend.

    Returns:
        The page, and the upper edge of the chart on it.
    """
    heading, legend, notes = wrapped(title, 11.0, width, 8, "bold"), Legend(entries, width), remarks(below, width)
    top = MARGIN + heading.height + GAP + legend.height
    page = Page(width + 2 * MARGIN, top + height + GAP + sum(note.height for note in notes) + MARGIN)
    page.write(heading, MARGIN, MARGIN)
    legend.draw(page, MARGIN, top - legend.height)
    write_all(page, notes, top + height + GAP)
    return page, top


def plot_area(page: Page, left: float, top: float, width: float, height: float) -> Any:
    """Add axes with thin lines at the left and below."""
    axes = page.axes(left, top, width, height)
    axes.set_axisbelow(True)
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=2, width=0.6, color=FAINT, labelcolor=INK, pad=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(linewidth=0.7, edgecolor=FAINT)
    return axes


def upright_space(axis: NumberAxis, unit: str, height: float) -> float:
    """Return the width that a vertical axis takes with its numbers and its unit."""
    return wrapped(unit, NAME_SIZE, height, 2).height + GAP + axis.label_width + _TICK_SPACE


def upright_area(page: Page, axis: NumberAxis, unit: str, left: float, top: float, width: float, height: float) -> Any:
    """Add a plot area with a vertical axis and its unit beside it."""
    axes = plot_area(page, left, top, width, height)
    axis.stand_up(axes)
    page.write_upwards(wrapped(unit, NAME_SIZE, height, 2), left - upright_space(axis, unit, height), top + height / 2)
    return axes


def draw_interval(axes: Any, interval: Interval, at: float, style: Style, *, is_across: bool) -> None:
    """Draw a dot at the mean on a whisker from the lower to the upper end.

    Args:
        axes: Of the chart.
        interval: What is drawn.
        at: Its place on the other axis.
        style: How it looks.
        is_across: Whether the axis of the numbers is the horizontal one.
    """
    for values, look in (
        ([interval.low, interval.high], {"color": style.colour, "linewidth": 1.4, "solid_capstyle": "butt"}),
        ([interval.mean], {"linestyle": "none", **style.dot()}),
    ):
        places = [at] * len(values)
        x, y = (values, places) if is_across else (places, values)
        axes.plot(x, y, clip_on=False, zorder=3, **look)


def widest(texts: Iterable[Lines]) -> float:
    """Measure the widest line, as it is drawn."""
    page = Page(1.0, 1.0)
    for text in texts:
        page.write(text, 0.0, 0.0)
    return max((line.get_window_extent().width for line in page.figure.texts), default=0.0) / DPI


def write_aligned(page: Page, text: Lines, at: float, top: float, share: float, *, colour: str = INK) -> None:
    """Write lines of which a share lies left of `at`: 0.5 centres them, 1 ends them there."""
    for number, line in enumerate(text.lines):
        alone = Lines((line,), text.size, text.weight)
        page.write(alone, at - share * widest([alone]), top + number * alone.height, colour=colour)


def write_turned(page: Page, text: Lines, left: float, top: float) -> None:
    """Write lines that read from bottom to top and end at `top`."""
    for number, line in enumerate(text.lines):
        alone = Lines((line,), text.size, text.weight)
        page.write_upwards(alone, left + number * alone.height, top + widest([alone]) / 2)


def slant_extent(text: Lines) -> tuple[float, float]:
    """Return how far a slanted line reaches to the left of its end and below it."""
    width = widest([text])
    return width * cos(radians(_SLANT)), width * sin(radians(_SLANT)) + text.height * cos(radians(_SLANT))


def write_slanted(page: Page, text: Lines, right: float, top: float) -> None:
    """Write one line that rises to its end, which is at (right, top)."""
    turned: dict[str, Any] = {"rotation": _SLANT, "rotation_mode": "anchor", "ha": "right", "va": "top"}
    looks: dict[str, Any] = {"size": text.size, "family": FONT, "color": INK, "parse_math": False}
    page.figure.text(right / page.width, 1 - top / page.height, "".join(text.lines), **looks, **turned)
