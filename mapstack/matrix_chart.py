"""Square heat matrices: how alike maps are, each with each."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from mapstack.chart_axes import (
    FONT,
    NAME_SIZE,
    NUMBER_SIZE,
    NumberAxis,
    decimal,
    plot_area,
    sheet,
    widest,
    write_aligned,
    write_turned,
)
from mapstack.errors import InputError
from mapstack.map_table import GAP, MARGIN
from mapstack.page import BAR_SPACE, FAINT, INK, Page, wrapped

_MAX_COLUMNS, _COLUMN_GAP = 3, 0.2
_MIN_SIDE = 1.7
_CELL, _SMALL_CELL, _N_LARGE_CELLS = 0.38, 0.31, 8
_LABEL_WIDTH = 2.0
_CELL_TEXT_SIZE = 6.5
_BAR_WIDTH = 0.14
_COLOURS: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1.0, "vmax": 1.0}
_DARK = 0.58
"""Above this strength white letters are easier to read than dark ones."""

_SLACK = 1e-6


def matrices(
    matrices: Mapping[str, Float[np.ndarray, "n n"]],
    labels: Sequence[str],
    *,
    title: str,
    unit: str,
    caption: str | None = None,
) -> Figure:
    """Draw square heat matrices with one colour bar from -1 to 1.

    Args:
        matrices: By name, left to right in rows of up to three; values in [-1, 1].
        labels: Of the rows, and in the same order of the columns.
        title: Wrapped to the width of the figure.
        unit: Of the values, beside the colour bar.
        caption: A remark under the chart.

    Raises:
        InputError: There is no matrix, there are fewer than 2 labels, a matrix does not fit the labels, or a value is
            not in [-1, 1].
    """
    _check(matrices, len(labels))
    return _MatrixTable(matrices, labels).draw(title, unit, caption)


class _MatrixTable:
    """Matrices in rows; all sizes are fixed when it is made."""

    def __init__(self, matrices: Mapping[str, Float[np.ndarray, "n n"]], labels: Sequence[str]) -> None:
        self._matrices = list(matrices.values())
        is_fine = len(labels) <= _N_LARGE_CELLS
        self._n_decimals = 2 if is_fine else 1
        self._side = max(len(labels) * (_CELL if is_fine else _SMALL_CELL), _MIN_SIDE)
        self._n_rows = ceil(len(matrices) / _MAX_COLUMNS)
        self._n_columns = ceil(len(matrices) / self._n_rows)
        self._labels = [wrapped(label, NUMBER_SIZE, _LABEL_WIDTH, 2) for label in labels]
        self._label_width = widest(self._labels)
        self._names = [wrapped(name, NAME_SIZE, self._side, 3, "bold") for name in matrices]
        self._notes = [
            wrapped(f"mean off the diagonal {decimal(_mean_off_diagonal(matrix), 2)}", NUMBER_SIZE, self._side, 2)
            for matrix in self._matrices
        ]
        self._heading_height = max(n.height + m.height for n, m in zip(self._names, self._notes, strict=True)) + GAP / 2

    def draw(self, title: str, unit: str, caption: str | None) -> Figure:
        """Return the figure."""
        bar_left = self._label_width + GAP + self._n_columns * (self._side + _COLUMN_GAP)
        # Below every column stand the labels, turned: as high as they are wide.
        height = self._n_rows * self._pitch - GAP + self._label_width
        page, top = sheet(title, [caption], bar_left + BAR_SPACE, height)
        for number in range(len(self._matrices)):
            self._draw_matrix(page, number, top)
        _draw_colour_bar(page, unit, MARGIN + bar_left, top + self._heading_height, self._side)
        return page.figure

    @property
    def _pitch(self) -> float:
        """From one row of matrices to the next."""
        return self._heading_height + self._side + 2 * GAP

    def _draw_matrix(self, page: Page, number: int, top: float) -> None:
        row, column = divmod(number, self._n_columns)
        left = MARGIN + self._label_width + GAP + column * (self._side + _COLUMN_GAP)
        upper = top + row * self._pitch + self._heading_height
        name, note = self._names[number], self._notes[number]
        note_top = upper - GAP / 2 - note.height
        write_aligned(page, name, left + self._side / 2, note_top - name.height, 0.5)
        write_aligned(page, note, left + self._side / 2, note_top, 0.5, colour=FAINT)
        _draw_cells(page.axes(left, upper, self._side, self._side), self._matrices[number], self._n_decimals)
        cell = self._side / len(self._labels)
        for place, label in enumerate(self._labels):
            middle, across = (place + 0.5) * cell, label.height / 2
            if column == 0:
                write_aligned(page, label, left - GAP, upper + middle - across, 1.0)
            if number + self._n_columns >= len(self._matrices):
                write_turned(page, label, left + middle - across, upper + self._side + GAP)


def _draw_cells(axes: Any, matrix: Float[np.ndarray, "n n"], n_decimals: int) -> None:
    """Draw a matrix with its first row at the top."""
    axes.pcolormesh(matrix, edgecolors="white", linewidth=0.8, **_COLOURS)
    axes.set_ylim(len(matrix), 0)
    axes.set_axis_off()
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if abs(value) > _DARK else INK
        looks = {"size": _CELL_TEXT_SIZE, "color": colour, "ha": "center", "va": "center_baseline"}
        axes.text(column + 0.5, row + 0.5, decimal(float(value), n_decimals), family=FONT, **looks)


def _draw_colour_bar(page: Page, unit: str, left: float, top: float, height: float) -> None:
    axis = NumberAxis(-1.0, 1.0, 4)
    axes = plot_area(page, left, top, _BAR_WIDTH, height)
    axes.imshow(np.linspace(1, -1, 256)[:, None], aspect="auto", extent=(0, 1, -1, 1), **_COLOURS)
    axis.stand_up(axes)
    axes.grid(visible=False)
    axes.yaxis.tick_right()
    label_left = left + _BAR_WIDTH + axis.label_width + 2 * GAP
    page.write_upwards(wrapped(unit, NUMBER_SIZE, height, 2), label_left, top + height / 2)


def _mean_off_diagonal(matrix: Float[np.ndarray, "n n"]) -> float:
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


def _check(matrices: Mapping[str, Float[np.ndarray, "n n"]], n_labels: int) -> None:
    if not matrices or n_labels < 2:
        raise InputError(
            f"chart of {len(matrices)} matrices with {n_labels} labels cannot be drawn; it takes at least one matrix "
            "and two labels; give more."
        )
    for name, matrix in matrices.items():
        if matrix.shape != (n_labels, n_labels):
            raise InputError(
                f"matrix '{name}' of shape {matrix.shape} does not fit {n_labels} labels; it must have as many rows "
                "and columns as there are labels; correct it."
            )
        if not (np.abs(matrix) <= 1 + _SLACK).all():
            raise InputError(
                f"matrix '{name}' has values outside [-1, 1] or not finite; the colours end there; draw similarities "
                "only."
            )
