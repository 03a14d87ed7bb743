"""Pictures for a reader: heat maps on the X-ray with title, scale and colour bar; the paper's two figures."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mapstack.errors import InputError
from mapstack.map_table import (
    GAP,
    MARGIN,
    MIN_BAR_HEIGHT,
    Box,
    MapRow,
    MapTable,
    ScaleSharing,
    checked_boxes,
    fitted,
    outline,
    remarks,
    write_all,
)
from mapstack.overlay import PERCENTILE, Attribution, Picture, Scale, blend, check, overlay_png, scale_of
from mapstack.page import BAR_SPACE, DPI, Page, short_number, wrapped

__all__ = ["Box", "figure_1", "figure_2", "grid_figure", "overlay_figure", "overlay_png", "save"]

_PANEL_SIDE, _MIN_TEXT_WIDTH = 5.2, 4.2


def overlay_figure(
    picture: Picture,
    attribution: Attribution,
    *,
    title: str,
    unit: str,
    limit: float | None = None,
    boxes: Iterable[Box] = (),
    caption: str | None = None,
    signed: bool = True,
    peak: bool = False,
) -> Figure:
    """Draw one heat map.

    Args:
        picture: Grey or RGB [0, 255], original-image frame.
        attribution: Scores in the same frame.
        title: Wrapped to the width of the figure; cut after eight lines.
        unit: Of the scores, as the colour bar names it, such as "logit per pixel".
        limit: Where the colours end; None chooses (see `scale_of`), and the figure says where.
        boxes: Annotated regions, outlined.
        caption: A remark under the picture.
        signed: Whether the scores have a sign.
        peak: Whether to mark the highest score (the first one, row by row).

    Raises:
        InputError: The picture and the scores do not fit each other, a score is not finite, the limit is not
            positive, or a box lies outside the picture.
    """
    check(picture, attribution, signed=signed)
    boxes = checked_boxes(boxes, picture)
    scale = scale_of([attribution], signed=signed, limit=limit)
    width, height = fitted(picture, _PANEL_SIDE)
    text_width = max(width + GAP + BAR_SPACE, _MIN_TEXT_WIDTH)
    heading = wrapped(title, 11.0, text_width, 8, "bold")
    below = remarks([_scale_remark(scale, limit), caption], text_width)
    top, body = MARGIN + heading.height + GAP, max(height, MIN_BAR_HEIGHT)
    page = Page(text_width + 2 * MARGIN, top + body + GAP + sum(text.height for text in below) + MARGIN)
    page.write(heading, MARGIN, MARGIN)
    # A picture narrower or lower than what goes with it stands in the middle.
    left = (page.width - width - GAP - BAR_SPACE) / 2
    axes = page.image(blend(picture, attribution, scale), left, top + (body - height) / 2, width, height)
    outline(axes, boxes)
    if scale.limit > 0:
        page.colour_bar(scale, unit, left + width + GAP, top, body)
    if peak and attribution.any():
        _mark_peak(axes, attribution)
    write_all(page, below, top + body + GAP)
    return page.figure


def grid_figure(
    picture: Picture,
    rows: Sequence[str],
    columns: Sequence[str],
    attributions: Sequence[Sequence[Attribution]],
    *,
    title: str,
    unit: str | Sequence[str],
    signed: bool | Sequence[bool] = True,
    shared_scale: ScaleSharing = "cell",
    boxes: Iterable[Box] = (),
    caption: str | None = None,
) -> Figure:
    """Draw a table of heat maps of one picture, with the bare picture in front.

    Args:
        picture: Grey or RGB [0, 255], original-image frame.
        rows: Names of the rows.
        columns: Names of the columns.
        attributions: One list per row with one map per column, in the picture's frame.
        title: Wrapped to the width of the table.
        unit: Of the scores: one for all, or one per row.
        signed: Whether the scores have a sign: one for all, or one per row.
        shared_scale: `row`: the maps of a row share their colours and can be compared. `cell`: each has its own,
            and its limit L stands below it.
        boxes: Annotated regions, outlined in every cell.
        caption: A remark under the table.

    Raises:
        InputError: The numbers of names, units and maps differ, or as for `overlay_figure`.
    """
    headings = [columns, *([""] * len(columns) for _ in rows[1:])]
    table = _table(rows, headings, attributions, unit, signed)
    return MapTable(picture, table, title=title, sharing=shared_scale, boxes=boxes, caption=caption).draw()


def figure_1(
    picture: Picture,
    methods: Sequence[str],
    labels: Sequence[str],
    attributions: Sequence[Sequence[Attribution]],
    *,
    unit: str | Sequence[str],
    signed: bool | Sequence[bool] = True,
    shared_scale: ScaleSharing = "cell",
    boxes: Iterable[Box] = (),
    caption: str | None = None,
) -> Figure:
    """Draw the paper's first figure: methods applied to the final output, by class label.

    Arguments and errors are those of `grid_figure`: a row is a method, a column a class label.

    Source:
        Hashmi, Mahapatra, Yaqub, "Envisioning MedCLIP", 2024, Fig. 1. The colour bars and limits are ours.
    """
    return grid_figure(
        picture,
        methods,
        labels,
        attributions,
        title="Conventional: each method applied to the final output, by class label",
        unit=unit,
        signed=signed,
        shared_scale=shared_scale,
        boxes=boxes,
        caption=caption,
    )


def figure_2(
    picture: Picture,
    prompts: Sequence[str],
    prompt_attributions: Sequence[Attribution],
    labels: Sequence[str],
    label_attributions: Sequence[Attribution],
    *,
    method: str,
    unit: str,
    signed: bool = True,
    shared_scale: ScaleSharing = "cell",
    boxes: Iterable[Box] = (),
    caption: str | None = None,
) -> Figure:
    """Draw the paper's second figure: maps by projection, prompts above and class labels below.

    Args:
        picture: Grey or RGB [0, 255], original-image frame.
        prompts: Sentences, each written above its map.
        prompt_attributions: One map per sentence.
        labels: The class labels of the sentences, in the same order.
        label_attributions: One map per class label.
        method: What made the stack, for the title.
        unit: Of the scores.
        signed: Whether they have a sign.
        shared_scale: See `grid_figure`.
        boxes: Annotated regions, outlined in every cell.
        caption: A remark under the table.

    Raises:
        InputError: As for `grid_figure`.

    Source:
        Hashmi, Mahapatra, Yaqub, "Envisioning MedCLIP", 2024, Fig. 2. The colour bars and limits are ours.
    """
    title = f"By projection of one stack ({method}): prompts above, class labels below"
    attributions = [prompt_attributions, label_attributions]
    table = _table(["Prompts", "Class labels"], [prompts, labels], attributions, unit, signed)
    return MapTable(picture, table, title=title, sharing=shared_scale, boxes=boxes, caption=caption).draw()


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = DPI) -> None:
    """Write a figure as a PNG file, whole or not at all; the same figure gives the same bytes.

    Args:
        figure: Any figure of this module.
        path: File to write, ending in `.png`; its folder must exist.
        dpi: Pixels per inch.

    Raises:
        InputError: The path does not end in `.png`.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"picture path with suffix '{path.suffix}' is wrong; a figure is saved as .png; rename it.")
    buffer = io.BytesIO()
    # Without the Software entry the bytes do not name matplotlib's version.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _table(
    names: Sequence[str],
    headings: Sequence[Sequence[str]],
    attributions: Sequence[Sequence[Attribution]],
    unit: str | Sequence[str],
    signed: bool | Sequence[bool],
) -> list[MapRow]:
    """Bring the parts of a table together, and check that they belong together."""
    units = [unit] * len(names) if isinstance(unit, str) else unit
    signs = [signed] * len(names) if isinstance(signed, bool) else signed
    if not (names and len(names) == len(attributions) == len(units) == len(signs)):
        raise InputError(
            f"a table of {len(names)} rows was given {len(attributions)} rows of maps, {len(units)} units and "
            f"{len(signs)} signs; each row has one, and there is at least one row; complete the lists."
        )
    for position, (above, maps) in enumerate(zip(headings, attributions, strict=True), 1):
        if not 0 < len(above) == len(maps) == len(headings[0]):
            raise InputError(
                f"row {position} of a table has {len(maps)} maps for {len(above)} headings, and row 1 has "
                f"{len(headings[0])}; the numbers must agree and be above 0; complete the row."
            )
    return [MapRow(*parts) for parts in zip(names, headings, attributions, units, signs, strict=True)]


def _scale_remark(scale: Scale, limit: float | None) -> str:
    if scale.limit == 0:
        return "No attribution: the map is zero everywhere."
    chosen = "as given" if limit is not None else f"the {PERCENTILE:g}th percentile of |attribution|"
    return f"Colours end at {'±' if scale.signed else ''}{short_number(scale.limit)}, {chosen}."


def _mark_peak(axes: Any, attribution: Attribution) -> None:
    row, column = np.unravel_index(int(attribution.argmax()), attribution.shape)
    axes.autoscale(False)
    # Dark below bright: seen on every colour.
    for colour, width in (("black", 3.0), ("white", 1.4)):
        axes.plot(column, row, marker="+", markersize=14, markeredgewidth=width, color=colour)
