"""From a map to a region, by the rules of CheXlocalize: a fixed threshold, or Otsu's with its contours filled.

Source:
    Saporta et al., "Benchmarking saliency methods for chest X-ray interpretation", Nature Machine Intelligence 2022,
    and `cam_to_segmentation` in heatmap_to_segmentation.py of rajpurkarlab/cheXlocalize, which calls OpenCV and
    Pillow; this is an implementation of its own, without OpenCV.
"""

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.checks import check_boolean, check_map


def unit_scaled(attribution: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """Scale a map to [0, 1] by its own minimum and maximum; a constant map, which has no scale, becomes zero.

    Args:
        attribution: Signed scores [logit], any frame.

    Raises:
        InputError: The map is not finite.

    Example:
        >>> unit_scaled(torch.tensor([[-1.0, 1.0], [3.0, 0.0]])).tolist()
        [[0.0, 0.5], [1.0, 0.25]]
    """
    check_map(attribution)
    # Half precision would make levels of its own.
    above_least = attribution.to(torch.promote_types(attribution.dtype, torch.float32)) - attribution.min()
    greatest = above_least.max()
    return above_least / greatest if greatest > 0 else above_least


def above(attribution: Float[Tensor, "height width"], threshold: float) -> Bool[Tensor, "height width"]:
    """Mark the pixels whose scaled score exceeds a threshold.

    Args:
        attribution: Signed scores [logit], any frame.
        threshold: In [0, 1], between the map's own minimum and maximum; a pixel that equals it is not marked.

    Raises:
        InputError: The map is not finite, or the threshold is out of range.

    Example:
        >>> above(torch.tensor([[0.0, 2.0, 4.0]]), threshold=0.5).tolist()  # strictly greater
        [[False, False, True]]
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; a scaled map lies in [0, 1]; give a number between them.")
    return unit_scaled(attribution) > threshold


def otsu_mask(attribution: Float[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Mark a map's bright regions: scaled to 8 bits, thresholded by Otsu's rule, outer contours filled.

    A constant map gives an empty region.

    Args:
        attribution: Signed scores [logit], any frame.

    Raises:
        InputError: The map is not finite.

    Source:
        CheXlocalize, the default of `cam_to_segmentation`.
    """
    levels = (255 * unit_scaled(attribution)).to(torch.uint8)  # cut off, not rounded, as upstream
    return fill_outer_contours(levels > otsu_level(levels))


def otsu_level(levels: UInt8[Tensor, "height width"]) -> int:
    """Return the level t that best parts the pixels into those up to t and those above it.

    Best is the greatest variance between the two classes; of equally good levels the first. A picture of one level
    answers 0.

    Args:
        levels: Grey values [0, 255].

    Source:
        Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 1979, as `cv2.threshold` with
        THRESH_OTSU has it, which passes over classes of less than 1.2e-7 of the pixels.

    Example:
        >>> otsu_level(torch.tensor([[10, 10, 10, 200]], dtype=torch.uint8))
        10
    """
    counts = torch.bincount(levels.flatten().long(), minlength=256).double()
    sums = counts * torch.arange(256, device=levels.device)
    n_below, sum_below = counts.cumsum(0), sums.cumsum(0)
    n_above, n_pixels = counts.sum() - n_below, counts.sum()
    is_class = torch.minimum(n_below, n_above) >= torch.finfo(torch.float32).eps * n_pixels
    # The variance between the classes, times n_pixels squared, in sums of whole numbers.
    spread = (n_pixels * sum_below - sums.sum() * n_below) ** 2 / (n_below * n_above)
    return int(torch.where(is_class, spread, 0.0).argmax())


def fill_outer_contours(mask: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Fill everything that the outer contours of a region enclose, and drop lone pixels.

    Regions are connected over edges and corners (8 neighbours). What cannot be reached from outside the frame over
    edges of unmarked pixels (4 neighbours) is enclosed. A region of one pixel has a contour of one point, of which
    CheXlocalize makes no polygon.

    Args:
        mask: Any frame.

    Raises:
        InputError: The mask is not a boolean (height, width).

    Source:
        CheXlocalize: `cv2.findContours`, each contour of at least two points drawn filled by Pillow. Deviation: the
        regions are filled directly, so that Pillow's rounding of polygons does not enter.

    Example:
        >>> ring = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]]).bool()
        >>> fill_outer_contours(ring).int().tolist()
        [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
        >>> fill_outer_contours(torch.tensor([[False, True, False]])).any().item()  # a lone pixel: dropped
        False
    """
    check_boolean(mask)
    filled = ~_reached_from_outside(~mask)
    framed = torch.nn.functional.pad(filled, (1, 1, 1, 1)).int()
    # Sums over 3 x 3 pixels by rows, then by columns: a lone pixel counts only itself.
    by_row = framed[:-2] + framed[1:-1] + framed[2:]
    n_around = by_row[:, :-2] + by_row[:, 1:-1] + by_row[:, 2:]
    return filled & (n_around > 1)


def _reached_from_outside(is_open: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Mark the open pixels that a path over edges of open pixels joins to the outside of the frame.

    A run of open pixels in a row or column is reached as a whole, so that each pass goes as far as it can see.
    """
    framed = torch.nn.functional.pad(is_open, (1, 1, 1, 1), value=True)
    by_row, by_column = _runs(framed), _runs(framed.mT).mT
    reached = torch.zeros_like(framed)
    reached[0] = True
    n_before = 0
    while (n_reached := int(reached.sum())) > n_before:
        n_before = n_reached
        for runs in (by_row, by_column):
            is_run_reached = framed.new_zeros(int(runs.max()) + 1)
            is_run_reached[runs[reached]] = True
            reached = is_run_reached[runs]
    return reached[1:-1, 1:-1]


def _runs(is_open: Bool[Tensor, "height width"]) -> Int[Tensor, "height width"]:
    """Number the runs of equal pixels along the rows, each row's apart from the next one's."""
    starts = torch.ones_like(is_open)
    starts[:, 1:] = is_open[:, 1:] != is_open[:, :-1]
    return starts.flatten().cumsum(0).reshape(is_open.shape)
