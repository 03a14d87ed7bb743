import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from mapstack.metrics.segmentation import above, fill_outer_contours, otsu_level, otsu_mask, unit_scaled

CLOCKWISE = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]


def otsu_by_loop(levels: np.ndarray) -> int:
    """The textbook: try every level, compare the variance between the two classes."""
    best, best_variance = 0, 0.0
    for level in range(256):
        low, high = levels[levels <= level].astype(float), levels[levels > level].astype(float)
        if low.size and high.size:
            variance = low.size * high.size / levels.size**2 * (low.mean() - high.mean()) ** 2
            if variance > best_variance * (1 + 1e-12):
                best, best_variance = level, variance
    return best


def traced_contour(region: np.ndarray) -> list[tuple[int, int]]:
    """Walk around a connected region (Moore's neighbours, Jacob's stopping rule) and list (column, row)."""
    framed = np.pad(region, 1)
    current = tuple(np.argwhere(framed)[0])
    came_from, first_move, points = 4, None, []
    while True:
        turns = [(came_from + k) % 8 for k in range(1, 9)]
        steps = [(turn, (current[0] + CLOCKWISE[turn][0], current[1] + CLOCKWISE[turn][1])) for turn in turns]
        turn, following = next(((turn, step) for turn, step in steps if framed[step]), (0, current))
        if (current, following) == first_move or following == current:
            return points
        first_move = first_move or (current, following)
        points.append((int(current[1]) - 1, int(current[0]) - 1))
        current, came_from = following, (turn + 4) % 8


def filled_by_contours(mask: np.ndarray) -> np.ndarray:
    """CheXlocalize's way: trace each region's outer contour, drop those of one point, let Pillow fill the rest."""
    picture = Image.new("1", (mask.shape[1], mask.shape[0]))
    regions, n_regions = ndimage.label(mask, np.ones((3, 3)))
    for number in range(1, n_regions + 1):
        contour = traced_contour(regions == number)
        if len(contour) > 1:
            ImageDraw.Draw(picture).polygon(contour, outline=1, fill=1)
    return np.array(picture)


def random_mask(seed: int) -> np.ndarray:
    source = np.random.default_rng(seed)
    size = source.integers(4, 30, 2)
    if seed % 2:
        return ndimage.gaussian_filter(source.standard_normal(size), source.uniform(0.5, 3)) > 0.02
    return source.random(size) < source.uniform(0.1, 0.8)


@pytest.mark.parametrize("seed", range(40))
def test_filling_equals_tracing_contours_and_drawing_them(seed: int) -> None:
    mask = random_mask(seed)
    assert np.array_equal(fill_outer_contours(torch.from_numpy(mask)).numpy(), filled_by_contours(mask))


@pytest.mark.parametrize("seed", range(20))
def test_filling_equals_scipys_where_no_pixel_is_alone(seed: int) -> None:
    mask = ndimage.binary_dilation(random_mask(seed))
    expected = ndimage.binary_fill_holes(mask)
    assert np.array_equal(fill_outer_contours(torch.from_numpy(mask)).numpy(), expected)


def test_a_diagonal_wall_holds_and_a_spiral_leaks() -> None:
    diamond = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()
    assert fill_outer_contours(diamond)[1, 1]
    spiral = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    assert torch.equal(fill_outer_contours(spiral), spiral)  # open at the left edge
    spiral[1, 0] = True
    assert fill_outer_contours(spiral).all()


@pytest.mark.parametrize("seed", range(15))
def test_otsu_equals_the_textbook(seed: int) -> None:
    source = np.random.default_rng(seed)
    levels = np.clip(source.normal([60, 150 + seed], [15, 25], (400, 2)), 0, 255).astype(np.uint8)
    assert otsu_level(torch.from_numpy(levels)) == otsu_by_loop(levels)


def test_otsu_parts_two_levels_and_gives_zero_for_one() -> None:
    levels = torch.full((9, 9), 30, dtype=torch.uint8)
    assert otsu_level(levels) == 0
    levels[2:5] = 31
    assert otsu_level(levels) == 30


def test_otsu_mask_marks_the_bright_region_and_fills_it() -> None:
    scores = torch.full((12, 12), -1.0)
    scores[2:9, 3:10] = 5.0
    scores[5, 6] = -1.0  # a hole
    scores[11, 11] = 5.0  # a lone pixel
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[2:9, 3:10] = True
    assert torch.equal(otsu_mask(scores), expected)


def test_levels_are_cut_off_not_rounded() -> None:
    # Cut off, the middle level is 127, nearer to 0, and joins it; rounded to 128 it would join 255.
    scores = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    assert otsu_level((255 * unit_scaled(scores)).to(torch.uint8)) == 127
    assert otsu_mask(scores).tolist() == [[False, False], [False, False], [True, True]]


@pytest.mark.parametrize("constant", [0.0, -3.0, 1e-30])
def test_a_constant_map_has_no_region(constant: float) -> None:
    scores = torch.full((5, 6), constant)
    assert not otsu_mask(scores).any()
    assert not above(scores, 0.0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_scaling_reaches_zero_and_one(dtype: torch.dtype) -> None:
    scaled: Tensor = unit_scaled(torch.tensor([[-1000.0, 0.0], [250.0, 1000.0]], dtype=dtype))
    assert scaled.flatten().tolist() == [0.0, 0.5, 0.625, 1.0]
