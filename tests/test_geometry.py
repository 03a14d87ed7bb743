import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mapstack.errors import InputError
from mapstack.geometry import Geometry, reduce_area
from mapstack.images import MEDCLIP, Preprocessing, from_array, prepare

CROP = Preprocessing(224, (0.5,), (0.25,), "crop")
SHAPES = [(224, 224), (300, 200), (200, 300), (512, 512), (100, 150), (333, 500), (40, 30), (9, 9), (901, 700)]


def geometry(height: int, width: int, preprocessing: Preprocessing = MEDCLIP) -> Geometry:
    return prepare(from_array(np.zeros((height, width), np.uint8)), preprocessing).geometry


def on_content(maps: Tensor, frame: Geometry) -> Tensor:
    """Set to zero what lies wholly in the padding, at the map's own resolution."""
    side = maps.shape[-1]
    factor = frame.image_size // side
    content = frame.content_mask().reshape(side, factor, side, factor).any(dim=3).any(dim=1)
    return maps * content


def naive_axis(n_original: int, n_map: int, start: float, stop: float, n_shifts: int = 500) -> np.ndarray:
    """The resampling of one axis by its definition: each map pixel is moved about, and cut into picture pixels."""
    step = (stop - start) / n_original
    first, last = max(start, 0.0), min(stop, float(n_map))
    edges = np.clip(start + step * np.arange(n_original + 1), first, last)
    blur = max(0.0, 1 - step)
    shifts = blur * ((np.arange(n_shifts) + 0.5) / n_shifts - 0.5)
    weights = np.zeros((n_original, n_map))
    for j in range(n_map):
        low, high = max(float(j), first), min(j + 1.0, last)
        if high - low <= 1e-9:
            continue
        for left, right in zip(low + shifts, high + shifts, strict=True):
            pieces = ((left, right), (2 * first - right, 2 * first - left), (2 * last - right, 2 * last - left))
            for begin, end in pieces:  # beyond a border it is mirrored
                weights[:, j] += np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin), 0, None)
        weights[:, j] /= n_shifts * (high - low)
    return weights


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_padded_box_is_exact(height, width):
    side = max(224, height, width)
    top, left = (side - height) // 2, (side - width) // 2
    expected = [Fraction(edge * 224, side) for edge in (top, left, top + height, left + width)]
    found = geometry(height, width)
    assert found.original == (height, width)
    assert found.image_size == 224
    assert [float(edge) for edge in expected] == list(found.box)


def test_the_cropped_box_exceeds_the_frame():
    assert geometry(400, 200, CROP).box == (-112.0, 0.0, 336.0, 224.0)
    assert geometry(200, 400, CROP).box == (0.0, -112.0, 224.0, 336.0)
    # Lengths are cut to whole pixels and so is the start: 224 * 333 / 200 = 372.96, (372 - 224) // 2 = 74.
    assert geometry(333, 200, CROP).box == (-74.0, 0.0, 298.0, 224.0)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_content_mask_is_every_pixel_that_overlaps(height, width):
    side = max(224, height, width)
    inside = []
    for length in (height, width):
        start = (side - length) // 2
        low, high = Fraction(start * 224, side), Fraction((start + length) * 224, side)
        inside.append(torch.tensor([j < high and j + 1 > low for j in range(224)]))
    mask = geometry(height, width).content_mask()
    assert torch.equal(mask, inside[0][:, None] & inside[1][None, :])


def test_the_content_mask_is_where_the_picture_is_seen():
    # A white picture on black padding: bicubic ringing aside, bright pixels are content and the others are not.
    prepared = prepare(from_array(np.full((300, 200), 255, np.uint8)), MEDCLIP)
    bright = MEDCLIP.denormalize(prepared.pixel_values)[0] > 0.1
    assert torch.equal(bright, prepared.geometry.content_mask())
    assert geometry(333, 200, CROP).content_mask().all()


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 301), (100, 150), (9, 9)])
@pytest.mark.parametrize("map_size", [224, 112, 56, 7])
@pytest.mark.parametrize("preprocessing", [MEDCLIP, CROP], ids=["pad", "crop"])
def test_total_and_sign_are_kept(height, width, map_size, preprocessing):
    frame = geometry(height, width, preprocessing)
    positive = on_content(torch.rand(map_size, map_size, dtype=torch.float64), frame)
    signed = on_content(torch.randn(2, map_size, map_size, dtype=torch.float64), frame)
    there = frame.to_original(positive)
    assert there.shape == (height, width)
    assert there.min() >= 0
    torch.testing.assert_close(there.sum(), positive.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(frame.to_original(signed).sum(dim=(1, 2)), signed.sum(dim=(1, 2)), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 400),
    aspect=st.floats(1 / 16, 16),
    image_size=st.integers(1, 60),
    map_size=st.integers(1, 60),
    fit=st.sampled_from(["pad", "crop"]),
)
def test_the_total_over_the_picture_is_kept_for_any_sizes(height, aspect, image_size, map_size, fit):
    width = min(16 * height, max(1, math.ceil(height / 16), round(height * aspect)))
    frame = geometry(height, width, Preprocessing(image_size, (0.5,), (0.25,), fit))
    row0, column0, row1, column1 = (edge * map_size / image_size for edge in frame.box)
    index = torch.arange(map_size)
    rows = (index + 1 > row0 + 1e-9) & (index < row1 - 1e-9)
    columns = (index + 1 > column0 + 1e-9) & (index < column1 - 1e-9)
    maps = torch.rand(map_size, map_size, dtype=torch.float64) * rows[:, None] * columns
    found = frame.to_original(maps)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(), maps.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(40, 30), (30, 50), (9, 9), (101, 77)])
@pytest.mark.parametrize("preprocessing", [MEDCLIP, CROP], ids=["pad", "crop"])
def test_to_original_equals_its_definition(height, width, preprocessing):
    frame = geometry(height, width, dataclasses.replace(preprocessing, image_size=32))
    maps = np.random.default_rng(0).normal(size=(16, 16))
    row0, column0, row1, column1 = (edge / 2 for edge in frame.box)
    expected = naive_axis(height, 16, row0, row1) @ maps @ naive_axis(width, 16, column0, column1).T
    np.testing.assert_allclose(frame.to_original(torch.from_numpy(maps)).numpy(), expected, atol=1e-5)


def test_a_map_of_the_same_grid_is_unchanged():
    maps = torch.randn(3, 224, 224)
    assert torch.equal(geometry(224, 224).to_original(maps), maps)


def test_an_even_map_stays_even():
    # 448 px have four times the pixels, each a quarter: no fading and no seam at the borders.
    found = geometry(448, 448).to_original(torch.ones(224, 224, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((448, 448), 0.25, dtype=torch.float64))


def covered(map_size: int, start: float, stop: float) -> Tensor:
    """How much of each map pixel the picture covers, along one axis."""
    index = torch.arange(map_size, dtype=torch.float64)
    return ((index + 1).clamp(max=stop) - index.clamp(min=start)).clamp(min=0)


@pytest.mark.parametrize(("height", "width"), [*SHAPES, (320, 320), (320, 211), (2544, 3056)])
@pytest.mark.parametrize("map_size", [224, 112, 56])
@pytest.mark.parametrize("preprocessing", [MEDCLIP, CROP], ids=["pad", "crop"])
def test_an_even_map_stays_even_at_any_ratio(height, width, map_size, preprocessing):
    frame = geometry(height, width, preprocessing)
    row0, column0, row1, column1 = (edge * map_size / 224 for edge in frame.box)
    maps = covered(map_size, row0, row1)[:, None] * covered(map_size, column0, column1)
    found = frame.to_original(maps)
    share = (row1 - row0) / height * (column1 - column0) / width  # of a map pixel, that a picture pixel is
    whole = [
        slice(math.ceil(max(0.0, -low) / step), n - math.ceil(max(0.0, high - map_size) / step))
        for n, low, high, step in (
            (height, row0, row1, (row1 - row0) / height),
            (width, column0, column1, (column1 - column0) / width),
        )
    ]  # what the crop left
    torch.testing.assert_close(found[whole[0], whole[1]] / share, torch.ones_like(found[whole[0], whole[1]]))


@pytest.mark.parametrize("height", [230, 300, 320, 500])
@pytest.mark.parametrize("map_size", [224, 56])
def test_a_map_has_no_blocks_and_its_peak_stays(height, map_size):
    # A smooth hill, its top between pixels: brought back, it has one top, less than a map pixel away.
    frame = geometry(height, height)
    index = torch.arange(map_size, dtype=torch.float64) + 0.5
    top = 0.437 * map_size
    hill = torch.exp(-0.5 * ((index - top) / (map_size / 10)) ** 2)
    found = frame.to_original(hill[:, None] * hill)
    step = map_size / height
    row, column = divmod(int(found.argmax()), height)
    assert abs((row + 0.5) * step - top) < 1
    assert row == column
    along, border = found[row], math.ceil(1 / step)
    assert (along[border : column + 1].diff() > 0).all()
    assert (along[column:-border].diff() < 0).all()


def test_what_lies_in_the_padding_is_dropped():
    frame = geometry(300, 200)
    only_padding = (~frame.content_mask()).float()
    assert only_padding.sum() > 0
    assert not frame.to_original(only_padding).any()


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 300)])
@pytest.mark.parametrize("map_size", [224, 56])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_hot_corner_stays_in_its_corner(height, width, map_size, corner):
    frame = geometry(height, width)
    content = on_content(torch.ones(map_size, map_size), frame).nonzero()
    row = content[corner[0], 0]
    column = content[content[:, 0] == row][corner[1], 1]
    maps = torch.zeros(map_size, map_size)
    maps[row, column] = 1.0
    found = frame.to_original(maps)
    reach = math.ceil(2 * 300 / map_size)
    rows = slice(0, reach) if corner[0] == 0 else slice(height - reach, height)
    columns = slice(0, reach) if corner[1] == 0 else slice(width - reach, width)
    assert found[rows, columns].sum() == pytest.approx(1.0)
    assert found[corner].item() == pytest.approx(found.max().item())


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 300), (500, 480), (90, 60)])
@pytest.mark.parametrize("preprocessing", [MEDCLIP, CROP], ids=["pad", "crop"])
def test_a_bright_spot_comes_back_to_its_place(height, width, preprocessing):
    # The picture itself as the map: preparing and coming back must meet, whatever the frames between.
    values = np.zeros((height, width), np.uint8)
    row, column = int(height * 0.6), int(width * 0.3)
    values[row - 4 : row + 5, column - 4 : column + 5] = 255
    prepared = prepare(from_array(values), preprocessing)
    found = prepared.geometry.to_original(preprocessing.denormalize(prepared.pixel_values)[0].double())
    found = found / found.sum()
    assert (found.sum(dim=1) @ torch.arange(height).double()).item() == pytest.approx(row, abs=0.5)
    assert (found.sum(dim=0) @ torch.arange(width).double()).item() == pytest.approx(column, abs=0.5)


def test_what_the_crop_took_away_receives_zero():
    found = geometry(400, 200, CROP).to_original(torch.ones(224, 224))
    assert not found[:100].any()
    assert not found[300:].any()
    assert (found[100:300] > 0).all()


def test_half_precision_is_brought_back_in_single():
    maps = torch.rand(2, 3, 56, 56).half()
    found = geometry(224, 224).to_original(maps)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, 224, 224)
    torch.testing.assert_close(found.sum(), maps.float().sum())
    assert geometry(9, 9).to_original(maps.double()).dtype == torch.float64


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_geometry_survives_json(height, width):
    frame = geometry(height, width)
    assert Geometry.from_dict(json.loads(json.dumps(frame.to_dict()))) == frame


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"original": [3, 4], "image_size": 224},
        {"original": [3], "image_size": 224, "box": [0, 0, 1, 1]},
        {"original": [3, 4], "image_size": 224, "box": [0, 0, 1]},
        {"original": [3, 4], "image_size": "large", "box": [0, 0, 1, 1]},
        {"original": None, "image_size": 224, "box": [0, 0, 1, 1]},
    ],
)
def test_a_broken_record_is_refused(record):
    with pytest.raises(InputError, match="geometry record cannot be read; it holds original"):
        Geometry.from_dict(record)


@pytest.mark.parametrize(
    ("original", "image_size", "box"),
    [
        ((0, 4), 224, (0.0, 0.0, 1.0, 1.0)),
        ((4, 4), 0, (0.0, 0.0, 1.0, 1.0)),
        ((4, 4), 224, (1.0, 0.0, 1.0, 1.0)),
        ((4, 4), 224, (0.0, 2.0, 1.0, 1.0)),
        ((4, 4), 224, (0.0, float("nan"), 1.0, 1.0)),
    ],
)
def test_an_empty_geometry_is_refused(original, image_size, box):
    with pytest.raises(InputError, match="holds no pixel"):
        Geometry(original, image_size, box)


@pytest.mark.parametrize("map_size", [224, 112, 56, 32, 1])
def test_reduce_area_sums_blocks(map_size):
    maps = torch.randn(2, 224, 224, dtype=torch.float64)
    found = reduce_area(maps, map_size)
    side = 224 // map_size
    assert found.shape == (2, map_size, map_size)
    for row, column in {(0, 0), (map_size // 2, map_size - 1), (map_size - 1, 0)}:
        block = maps[1, row * side : (row + 1) * side, column * side : (column + 1) * side]
        torch.testing.assert_close(found[1, row, column], block.sum())
    torch.testing.assert_close(found.sum(), maps.sum())


def test_maps_of_that_size_are_not_copied():
    maps = torch.randn(2, 224, 224)
    assert reduce_area(maps, 224) is maps


@pytest.mark.parametrize(("shape", "map_size"), [((224, 224), 100), ((224, 224), 0), ((224, 112), 56), ((4, 4), 8)])
def test_reduce_area_refuses_what_does_not_divide(shape, map_size):
    with pytest.raises(InputError, match=f"map_size {map_size} does not fit maps of {shape[0]} x {shape[1]} px"):
        reduce_area(torch.zeros(1, *shape), map_size)
