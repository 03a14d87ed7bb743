"""A table of heat maps of one picture: headings, row names, a colour bar for each row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mapstack.errors import InputError, unknown_name
from mapstack.overlay import PERCENTILE, Attribution, Picture, Scale, blend, check, scale_of
from mapstack.page import BAR_SPACE, FAINT, Lines, Page, short_number, wrapped

Box: TypeAlias = tuple[int, int, int, int]
"""(row0, column0, row1, column1) in the original-image frame, half-open [px]."""

ScaleSharing: TypeAlias = Literal["cell", "row"]

MARGIN, GAP = 0.15, 0.08
"""The white around a figure and between its parts [inch]."""

MIN_BAR_HEIGHT = 1.3
"""Below this height a colour bar cannot be read [inch]."""

_CELL_SIDE, _MIN_COLUMN_WIDTH = 1.9, 1.3
_NAME_SPACE = 0.38
_NOTE_HEIGHT = 0.17
_HEADING_LINES = 7
_BOX_COLOUR = "#35e06a"


@dataclass(frozen=True)
class MapRow:
    """One row of a table.

    Args:
        name: Written beside the row.
        headings: What stands above each map; empty texts where nothing does.
        attributions: The maps, in the picture's frame.
        unit: Of their scores.
        signed: Whether they have a sign.
    """

    name: str
    headings: Sequence[str]
    attributions: Sequence[Attribution]
    unit: str
    signed: bool

    def scales(self, sharing: ScaleSharing) -> list[Scale]:
        """Choose what the colours of each map mean."""
        if sharing == "row":
            return [scale_of(self.attributions, signed=self.signed)] * len(self.attributions)
        return [scale_of([attribution], signed=self.signed) for attribution in self.attributions]


class MapTable:
    """A table of heat maps with the bare picture in front; all sizes are fixed when it is made.

    Args:
        picture: Grey or RGB [0, 255], original-image frame.
        rows: At least one, of equal length.
        title: Wrapped to the width of the table.
        sharing: "row": the maps of a row share one scale. "cell": each has its own, and its limit L stands below it.
        boxes: Annotated regions, outlined in every cell.
        caption: A remark under the table.

    Raises:
        InputError: A map does not fit the picture, is not finite, or has a sign that its row denies; or a box lies
            outside the picture.
    """

    def __init__(
        self,
        picture: Picture,
        rows: Sequence[MapRow],
        *,
        title: str,
        sharing: ScaleSharing,
        boxes: Iterable[Box],
        caption: str | None,
    ) -> None:
        if sharing not in ("cell", "row"):
            raise InputError(unknown_name("shared_scale", sharing, ("cell", "row")))
        for row in rows:
            for attribution in row.attributions:
                check(picture, attribution, signed=row.signed)
        self._picture, self._rows, self._sharing = picture, rows, sharing
        self._boxes = checked_boxes(boxes, picture)
        self._cell_width, self._cell_height = fitted(picture, _CELL_SIDE)
        self._column_width = max(self._cell_width, _MIN_COLUMN_WIDTH)
        self._body_height = max(self._cell_height, MIN_BAR_HEIGHT)
        self._bar_left = self._left(1 + len(rows[0].attributions))
        text_width = self._bar_left + BAR_SPACE - MARGIN
        self._title = wrapped(title, 12.0, text_width, 4, "bold")
        self._headings = [[wrapped(text, 8.0, self._column_width, _HEADING_LINES) for text in r.headings] for r in rows]
        self._remarks = remarks([self._scale_remark(), caption], text_width)

    def draw(self) -> Figure:
        """Return the figure."""
        page = Page(self._bar_left + BAR_SPACE + MARGIN, self._page_height())
        page.write(self._title, MARGIN, MARGIN)
        top = MARGIN + self._title.height + GAP
        for number, row in enumerate(self._rows):
            top += self._heading_height(number)
            if number == 0:
                self._draw_bare_picture(page, top)
            self._draw_row(page, row, self._headings[number], top)
            top += self._body_height + self._note_height() + GAP
        write_all(page, self._remarks, top)
        return page.figure

    def _left(self, column: int) -> float:
        """Return the left edge of a column; column 0 is the bare picture."""
        return MARGIN + _NAME_SPACE + column * (self._column_width + GAP)

    def _heading_height(self, number: int) -> float:
        return max(lines.height for lines in self._headings[number]) + GAP / 2

    def _note_height(self) -> float:
        return _NOTE_HEIGHT if self._sharing == "cell" else 0.0

    def _page_height(self) -> float:
        rows = sum(
            self._heading_height(number) + self._body_height + self._note_height() + GAP
            for number in range(len(self._rows))
        )
        return MARGIN + self._title.height + GAP + rows + sum(line.height for line in self._remarks) + MARGIN

    def _draw_bare_picture(self, page: Page, top: float) -> None:
        self._write_above(page, wrapped("X-ray", 8.0, self._column_width, 1), 0, top)
        outline(self._image(page, self._picture, 0, top), self._boxes)

    def _draw_row(self, page: Page, row: MapRow, headings: Sequence[Lines], top: float) -> None:
        name = wrapped(row.name, 9.0, self._body_height, 2, "bold")
        page.write_upwards(name, MARGIN + _NAME_SPACE - GAP - name.height, top + self._body_height / 2)
        scales = row.scales(self._sharing)
        cells = zip(headings, row.attributions, scales, strict=True)
        for column, (heading, attribution, scale) in enumerate(cells, 1):
            self._write_above(page, heading, column, top)
            outline(self._image(page, blend(self._picture, attribution, scale), column, top), self._boxes)
            if self._sharing == "cell":
                note = f"L = {short_number(scale.limit)}" if scale.limit else "no attribution"
                below = top + (self._body_height + self._cell_height) / 2 + 0.03
                page.write(wrapped(note, 7.5, self._column_width, 1), self._left(column), below, colour=FAINT)
        if any(scale.limit for scale in scales):
            symbol = "L" if self._sharing == "cell" else None
            page.colour_bar(scales[0], row.unit, self._bar_left, top, self._body_height, symbol=symbol)
        elif self._sharing == "row":
            page.write(wrapped("no attribution", 7.5, BAR_SPACE, 2), self._bar_left, top, colour=FAINT)

    def _write_above(self, page: Page, heading: Lines, column: int, top: float) -> None:
        page.write(heading, self._left(column), top - heading.height - GAP / 2)

    def _image(self, page: Page, raster: Picture, column: int, top: float) -> Any:
        below = (self._body_height - self._cell_height) / 2
        return page.image(raster, self._left(column), top + below, self._cell_width, self._cell_height)

    def _scale_remark(self) -> str:
        if self._sharing == "row":
            return f"Colours end at the {PERCENTILE:g}th percentile of |attribution| over the row."
        return f"L, where the colours end, is the {PERCENTILE:g}th percentile of |attribution| of each map."


def fitted(picture: Picture, side: float) -> tuple[float, float]:
    """Return the width and height of a picture whose longer side is `side`."""
    height, width = picture.shape[:2]
    return side * width / max(height, width), side * height / max(height, width)


def remarks(texts: Sequence[str | None], width: float) -> list[Lines]:
    """Wrap the remarks that stand under a figure; None is left out."""
    return [wrapped(text, 8.0, width, 4) for text in texts if text]


def write_all(page: Page, texts: Sequence[Lines], top: float) -> None:
    """Write remarks one under the other."""
    for text in texts:
        page.write(text, MARGIN, top, colour=FAINT)
        top += text.height


def checked_boxes(boxes: Iterable[Box], picture: Picture) -> list[Box]:
    """Return the boxes as a list.

    Raises:
        InputError: A box is empty or not inside the picture.
    """
    height, width = picture.shape[:2]
    found = list(boxes)
    for position, (row0, column0, row1, column1) in enumerate(found, 1):
        if not (0 <= row0 < row1 <= height and 0 <= column0 < column1 <= width):
            raise InputError(
                f"box {position}, {[row0, column0, row1, column1]}, is not inside the picture of (height, width) "
                f"{(height, width)}; a box is [row0, column0, row1, column1], half-open; correct it."
            )
    return found


def outline(axes: Any, boxes: Sequence[Box]) -> None:
    """Draw boxes on the axes of a picture: the line runs along the outer edge of the pixels that they hold."""
    for row0, column0, row1, column1 in boxes:
        # Dark below bright: seen on every grey.
        for colour, width in (("black", 2.4), (_BOX_COLOUR, 1.2)):
            corner = (column0 - 0.5, row0 - 0.5)
            patch = Rectangle(corner, column1 - column0, row1 - row0, fill=False, edgecolor=colour, linewidth=width)
            axes.add_patch(patch)
