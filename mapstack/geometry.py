"""The way back: from a map in the model-input frame to the original picture.

Two frames occur. The *original-image frame* is the decoded picture, upright, (height, width). The *model-input frame*
is the square that the model sees. Coordinates are (row, column) in pixels, measured from the upper left corner of the
upper left pixel, so that the centre of pixel (i, j) is (i + 0.5, j + 0.5).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.errors import InputError

# Rounding may push an edge past the pixel border it stands on; a true overlap is far wider than this.
_ROUNDING_PX = 1e-9


@dataclass(frozen=True)
class Geometry:
    """Where the original picture lies in the model-input frame.

    Args:
        original: (height, width) of the original picture [px].
        image_size: Side of the model-input frame [px].
        box: (row0, column0, row1, column1) of the original picture in the model-input frame [px]. Smaller than the
            frame where the picture was padded; larger, with negative starts, where it was cropped.

    Raises:
        InputError: A size is below one, or the box is empty.
    """

    original: tuple[int, int]
    image_size: int
    box: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        """Refuse sizes and boxes that hold no pixel."""
        row0, column0, row1, column1 = self.box
        if min(*self.original, self.image_size) < 1 or not (row0 < row1 and column0 < column1):
            raise InputError(
                f"geometry with original {self.original}, image_size {self.image_size} and box {self.box} holds no "
                "pixel; sizes are at least 1 and a box is (row0, column0, row1, column1) with row0 < row1 and "
                "column0 < column1; give the geometry that `prepare` made."
            )

    def content_mask(self) -> Bool[Tensor, "height width"]:
        """Say which pixels of the model-input frame overlap the picture at all.

        Returns:
            True on the picture, False on pixels that lie wholly in the padding; model-input frame.

        Example:
            >>> portrait = Geometry(original=(4, 2), image_size=4, box=(0.0, 1.0, 4.0, 3.0))
            >>> portrait.content_mask()[0].tolist()  # the padding stands left and right
            [False, True, True, False]
        """
        row0, column0, row1, column1 = self.box
        rows = _overlapping(self.image_size, row0, row1)
        columns = _overlapping(self.image_size, column0, column1)
        return rows[:, None] & columns[None, :]

    def to_original(
        self, maps: Float[Tensor, "*rows map_height map_width"]
    ) -> Float[Tensor, "*rows original_height original_width"]:
        """Bring maps back onto the original picture, the padding undone.

        A map pixel gives each picture pixel as much as their areas overlap. Where the picture is finer than the map,
        its pixels are blurred before, along each axis by a box of one map pixel less one picture pixel, mirrored at
        the borders of the picture: so maps have no blocks, and what was even stays even. A map of the picture's own
        grid is not blurred at all. Signs stay, and the total over the picture is kept: a pixel that the picture's
        edge cuts puts all it holds on the picture. What lies wholly in the padding is dropped, and what the crop took
        away from the picture receives zero.

        Args:
            maps: Attributions [logit per pixel], model-input frame at any resolution (the frame's 224 px, or the 112
                or 56 px of a reduced stack).

        Returns:
            The maps, original-image frame; float32, or float64 where `maps` is.

        Example:
            >>> portrait = Geometry(original=(4, 2), image_size=4, box=(0.0, 1.0, 4.0, 3.0))
            >>> hot = torch.zeros(4, 4)
            >>> hot[0, 2] = 1.0  # upper right corner of the picture, inside the padding
            >>> portrait.to_original(hot).tolist()
            [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
        """
        row0, column0, row1, column1 = self.box
        height, width = self.original
        n_rows, n_columns = maps.shape[-2:]
        by_row = _resampling(height, n_rows, row0 * n_rows / self.image_size, row1 * n_rows / self.image_size)
        by_column = _resampling(
            width, n_columns, column0 * n_columns / self.image_size, column1 * n_columns / self.image_size
        )
        # Half precision would lose the total.
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        return by_row.to(maps) @ maps @ by_column.to(maps).mT

    def to_dict(self) -> dict[str, Any]:
        """Write the geometry as JSON values; `from_dict` reads them back without loss."""
        return {"original": list(self.original), "image_size": self.image_size, "box": list(self.box)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Geometry":
        """Read what `to_dict` wrote.

        Raises:
            InputError: A key is missing, or a value is not of its kind.
        """
        try:
            height, width = (int(side) for side in values["original"])
            row0, column0, row1, column1 = (float(edge) for edge in values["box"])
            image_size = int(values["image_size"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "geometry record cannot be read; it holds original [height, width], image_size and box [row0, column0, "
                "row1, column1]; give what `Geometry.to_dict` wrote."
            ) from None
        return cls((height, width), image_size, (row0, column0, row1, column1))


def reduce_area(
    maps: Float[Tensor, "*rows height width"], map_size: int
) -> Float[Tensor, "*rows {map_size} {map_size}"]:
    """Reduce square maps by summing areas, so that their total stays up to rounding.

    Args:
        maps: Attributions [logit per pixel], model-input frame.
        map_size: Side of the result [px]; divides the side of `maps`.

    Returns:
        The reduced maps; `maps` itself where it has that side.

    Raises:
        InputError: The maps are not square, or `map_size` does not divide their side.

    Example:
        >>> reduce_area(torch.tensor([[1.0, 2.0], [3.0, -4.0]]), map_size=1).tolist()
        [[2.0]]
    """
    height, width = maps.shape[-2:]
    if height != width or map_size < 1 or height % map_size:
        raise InputError(
            f"map_size {map_size} does not fit maps of {height} x {width} px; it must divide the side of square maps; "
            "choose a divisor, such as 224, 112 or 56 for a model of 224 px."
        )
    factor = height // map_size
    if factor == 1:
        return maps  # a sum of one term each would copy the stack
    blocks = maps.reshape(*maps.shape[:-2], map_size, factor, map_size, factor)
    return blocks.sum(dim=(-3, -1))


def _overlapping(n_pixels: int, start: float, stop: float) -> Bool[Tensor, " n_pixels"]:
    """Mark the pixels of one axis that share more than an edge with [start, stop]."""
    index = torch.arange(n_pixels)
    return (index >= math.floor(start + _ROUNDING_PX)) & (index < math.ceil(stop - _ROUNDING_PX))


def _resampling(n_original: int, n_map: int, start: float, stop: float) -> Float[Tensor, "{n_original} {n_map}"]:
    """Build the matrix that takes one axis of a map to the same axis of the original picture.

    The area that map pixel j, blurred, shares with picture pixel i is a second difference of the blur integrated
    twice, and so is what the mirrors at the borders send back.

    Args:
        n_original: Pixels of the original picture along the axis.
        n_map: Pixels of the map along the axis.
        start: Where the picture begins [map px].
        stop: Where the picture ends [map px].

    Returns:
        Non-negative weights in float64. The column of a map pixel that overlaps the picture sums to one, any other
        column to zero.
    """
    first, last = max(start, 0.0), min(stop, float(n_map))
    step = (stop - start) / n_original
    blur = max(0.0, min(1 - step, last - first))
    edges = (start + step * torch.arange(n_original + 1, dtype=torch.float64)).clamp(first, last)[:, None]
    map_edges = torch.arange(n_map + 1, dtype=torch.float64).clamp(first, last)
    areas = (
        _integrated_twice(map_edges - (2 * first - edges), blur)
        + _integrated_twice(map_edges - (2 * last - edges), blur)
        - _integrated_twice(map_edges - edges, blur)
    )
    seen = edges.diff(dim=0) > _ROUNDING_PX
    shared = areas.diff(dim=0).diff(dim=1).clamp(min=0) * seen * _overlapping(n_map, start, stop)
    # A column of the padding stays zero.
    return shared / shared.sum(dim=0).clamp(min=torch.finfo(shared.dtype).tiny)


def _integrated_twice(
    position: Float[Tensor, "n_edges n_map_edges"], width: float
) -> Float[Tensor, "n_edges n_map_edges"]:
    """Integrate a box of area one around zero twice, from far left to a position [map px]."""
    ramp = position.clamp(min=0)
    if width == 0:
        return ramp
    return torch.where(position.abs() < width / 2, (position + width / 2) ** 2 / (2 * width), ramp)
