"""Tables and cells of the report, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from train_like.evaluation.intervals import MIN_PICTURES

Values = Mapping[str, Any]

METRICS = {
    "hit": "hit rate",
    "pointing": "pointing game (15 px)",
    "iou": "mIoU (tuned)",
    "iou_otsu": "mIoU (Otsu)",
    "mass": "relevance mass",
    "rank": "relevance rank",
}
"""How the report calls the metrics of localisation."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(values: Values | None) -> str:
    """Write a mean with its interval, or with the number of pictures where they are too few for one.

    Example:
        >>> found = {"mean": 0.5, "low": 0.25, "high": 0.75}
        >>> cell(found | {"n": 5}), cell(found | {"n": 4}), cell(None)
        ('0.50 [0.25, 0.75]', '0.50 (n = 4)', '')
    """
    if values is None:
        return ""
    if not is_enough(values):
        return f"{values['mean']:.2f} (n = {values['n']})"
    return f"{values['mean']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"


def is_enough(values: Values | None) -> bool:
    """Say whether a mean rests on enough pictures for an interval and a verdict."""
    return values is not None and values["n"] >= MIN_PICTURES


def is_above(values: Values | None) -> bool:
    """Say whether a difference is above zero for certain."""
    return values is not None and is_enough(values) and values["low"] > 0


def is_below(values: Values | None) -> bool:
    """Say whether a difference is below zero for certain."""
    return values is not None and is_enough(values) and values["high"] < 0


def n_of(values: Iterable[Values | None]) -> str:
    """Write how many pictures the numbers of a row or column rest on.

    Example:
        >>> n_of([{"n": 3}, None, {"n": 10}]), n_of([None])
        ('3 to 10', '0')
    """
    counts = [each["n"] for each in values if each is not None] or [0]
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def way_name(way: Values) -> str:
    """Write a method with its route and sign.

    Example:
        >>> way_name({"method": "gradient", "route": "stack_raw", "sign": "absolute"})
        'gradient, stack raw, absolute'
    """
    return f"{way['method']}, {way['route'].replace('_', ' ')}, {way['sign']}"


def listed(names: Iterable[str], none: str = "none") -> str:
    """Write names in a row."""
    return "; ".join(names) or none
