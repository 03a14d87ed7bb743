"""A figure laid out in inches from its upper left corner: wrapped text, rasters, colour bars.

Only matplotlib's `Figure` is used, never `pyplot`: no window, no global state, safe in a server's threads. Lengths are
in inches, font sizes in points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

from mapstack.overlay import Scale, blend

INK, FAINT = "#1a1a1a", "#5c5c5c"
DPI = 150
BAR_SPACE = 0.95
"""The width that a colour bar takes with its numbers and its label."""

_BAR_WIDTH, _BAR_LABEL_AT = 0.14, 0.66
_FONT = "DejaVu Sans"  # comes with matplotlib: the same letters on every machine
_LINE_SPACING, _BASELINE = 1.3, 0.78
# Hinted letters on a raster are wider than the outlines that are measured.
_HINTING = 1.03
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Lines:
    """Text broken into lines.

    Args:
        lines: Top to bottom.
        size: Of the font.
        weight: Of the font: "normal" or "bold".
    """

    lines: tuple[str, ...]
    size: float
    weight: str = "normal"

    @property
    def height(self) -> float:
        """What the lines take, with the space between them."""
        return len(self.lines) * self.size * _LINE_SPACING / 72

    def baseline(self, number: int) -> float:
        """Return how far below the upper edge a line's letters stand."""
        return (number + _BASELINE) * self.size * _LINE_SPACING / 72


class Page:
    """A figure that is laid out in inches from its upper left corner.

    Args:
        width: Of the figure.
        height: Of the figure.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Add matplotlib axes whose edges are those given."""
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def image(self, raster: UInt8[np.ndarray, "..."], left: float, top: float, width: float, height: float) -> Any:
        """Add a grey or RGB raster, its first row at the top; its axes count in its pixels."""
        axes = self.axes(left, top, width, height)
        axes.imshow(raster, aspect="auto", origin="upper", cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        return axes

    def write(self, text: Lines, left: float, top: float, *, colour: str = INK) -> None:
        """Write text from its upper left corner."""
        for number, line in enumerate(text.lines):
            self._write_line(text, line, left, top + text.baseline(number), colour)

    def write_upwards(self, text: Lines, left: float, middle: float) -> None:
        """Write text that reads from bottom to top, from its left edge, centred at a height."""
        for number, line in enumerate(text.lines):
            turned = {"rotation": 90, "rotation_mode": "anchor", "ha": "center"}
            self._write_line(text, line, left + text.baseline(number), middle, INK, **turned)

    def _write_line(self, text: Lines, line: str, left: float, top: float, colour: str, **options: Any) -> None:
        # Line by line on the baseline: matplotlib's own blocks shift with the letters that they happen to hold.
        self.figure.text(
            left / self.width,
            1 - top / self.height,
            line,
            size=text.size,
            family=_FONT,
            weight=text.weight,
            color=colour,
            va="baseline",
            parse_math=False,  # a dollar sign in a text is a dollar sign
            **options,
        )

    def colour_bar(
        self, scale: Scale, unit: str, left: float, top: float, height: float, *, symbol: str | None = None
    ) -> None:
        """Draw what the colours mean, as they look on mid-grey.

        Args:
            scale: Of the maps beside it.
            unit: Of their scores.
            left: Edge of the bar; it takes `BAR_SPACE` in all.
            top: Edge of the bar.
            height: Of the bar.
            symbol: What stands for the limit where each map has its own; None writes the numbers.
        """
        axes = self.axes(left, top, _BAR_WIDTH, height)
        low = -1.0 if scale.signed else 0.0
        shares = np.linspace(1, low, 256)[:, None]
        bar = blend(np.full(shares.shape, 128, np.uint8), shares, Scale(1.0, scale.signed, False))
        axes.imshow(bar, aspect="auto", extent=(0, 1, low, 1))
        ticks: list[float] = np.linspace(low, 1, 3 if symbol else 5).tolist()
        numbers, power = _numbers(ticks, scale) if symbol is None else (_symbols(ticks, symbol), "")
        axes.set_xticks([])
        axes.set_yticks(ticks, numbers, family=_FONT, size=7.5)
        axes.yaxis.tick_right()
        axes.tick_params(length=2, width=0.6, color=FAINT, labelcolor=INK, pad=2)
        for spine in axes.spines.values():
            spine.set(linewidth=0.6, edgecolor=FAINT)
        self.write_upwards(wrapped(f"{unit} {power}", 7.5, height, 2), left + _BAR_LABEL_AT, top + height / 2)


def wrapped(text: str, size: float, width: float, max_lines: int, weight: str = "normal") -> Lines:
    """Break a text into lines that fit a width; what is beyond the last line becomes an ellipsis.

    White space becomes single spaces, and a character that the font lacks becomes U+FFFD, which it has.
    """
    known = _known_characters()
    words = "".join(letter if letter.isspace() or ord(letter) in known else "\ufffd" for letter in text).split()
    lines: list[str] = []
    line = ""
    while words and len(lines) < max_lines:
        word = words.pop(0)
        longer = f"{line} {word}" if line else word
        if _text_width(longer, size, weight) <= width:
            line = longer
        elif line:
            lines.append(line)
            words.insert(0, word)
            line = ""
        else:
            n_fitting = _n_fitting(word, size, width, weight)
            lines.append(word[:n_fitting])
            words.insert(0, word[n_fitting:])
    if len(lines) < max_lines:
        lines += [line] if line else []
    elif words or line:
        cut = lines[-1]
        while cut and _text_width(f"{cut}…", size, weight) > width:
            cut = cut[:-1]
        lines[-1] = f"{cut.rstrip()}…"
    return Lines(tuple(lines), size, weight)


def short_number(value: float) -> str:
    """Write a number with three digits, as a reader would.

    Example:
        >>> short_number(0.000012345)
        '1.23×10⁻⁵'
        >>> short_number(0.25)
        '0.25'
    """
    mantissa, exponent = _parts(value)
    return f"{mantissa:.3g}{_power(exponent)}"


def _parts(value: float) -> tuple[float, int]:
    """Split a positive number into a mantissa and the power of ten to be written beside it, 0 for none."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return (value, 0) if -2 <= int(exponent) <= 2 else (float(mantissa), int(exponent))


def _power(exponent: int) -> str:
    return f"×10{str(exponent).translate(_SUPERSCRIPTS)}" if exponent else ""


def _numbers(shares: Sequence[float], scale: Scale) -> tuple[list[str], str]:
    """Return the numbers at shares of the limit, and the power of ten that they leave out."""
    mantissa, exponent = _parts(scale.limit)
    numbers = [f"{share * mantissa:.3g}".replace("-", "−") for share in shares]
    if scale.is_clipped:
        numbers[-1] = f"≥{numbers[-1]}"
        numbers[0] = f"≤{numbers[0]}" if scale.signed else numbers[0]
    return numbers, _power(exponent)


def _symbols(shares: Sequence[float], symbol: str) -> list[str]:
    words = {-1.0: f"−{symbol}", 0.0: "0", 0.5: f"{symbol}/2", 1.0: symbol}
    return [words[share] for share in shares]


@lru_cache(maxsize=1)
def _known_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=_FONT))).get_charmap())


@lru_cache(maxsize=4096)
def _text_width(text: str, size: float, weight: str) -> float:
    font = FontProperties(family=_FONT, size=size, weight=weight)
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, False)
    return float(width) / 72 * _HINTING


def _n_fitting(word: str, size: float, width: float, weight: str) -> int:
    """Count the first letters of a word that fit, at least one."""
    n = 1
    while n < len(word) and _text_width(word[: n + 1], size, weight) <= width:
        n += 1
    return n
