import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mapstack.errors import InputError
from mapstack.figures import grid_figure, overlay_figure, overlay_png
from mapstack.overlay import Scale, blend, scale_of
from tests.figures.drawn import (
    HEIGHT,
    WIDTH,
    pixels,
)


def test_positive_is_red_negative_is_blue_and_zero_is_the_picture(picture: np.ndarray, attribution: np.ndarray) -> None:
    found = pixels(overlay_png(picture, attribution))
    assert found.shape == (HEIGHT, WIDTH, 3)
    red, green, blue = np.moveaxis(found, -1, 0)
    positive, negative, zero = attribution > 0, attribution < 0, attribution == 0
    assert (red[positive] > blue[positive] + 100).all()
    assert (red[positive] > green[positive] + 100).all()
    assert (blue[negative] > red[negative] + 100).all()
    assert (blue[negative] > green[negative] + 100).all()
    np.testing.assert_array_equal(found[zero], np.repeat(picture[zero][:, None], 3, axis=1))


def test_blending_a_large_picture_takes_little_more_than_the_picture() -> None:
    """Whole, three channels of floats would take several times the 36 MB of the result."""
    picture, attribution = np.full((3000, 4000), 90, np.uint8), np.full((3000, 4000), 0.5, np.float32)
    tracemalloc.start()
    try:
        found = blend(picture, attribution, Scale(1.0, True, False))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * found.nbytes
    part = blend(picture[:5, :7], attribution[:5, :7], Scale(1.0, True, False))
    assert (found == part[0, 0]).all()


def test_blending_is_the_mix_that_a_second_writing_gives(picture: np.ndarray) -> None:
    scores = np.linspace(-2, 2, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    found = blend(picture, scores, Scale(1.0, True, True))
    stops = {1: ((255, 170, 110), (250, 85, 45), (225, 10, 25)), -1: ((130, 200, 255), (55, 125, 250), (20, 45, 225))}
    for row in range(HEIGHT):
        for column in range(0, WIDTH, 7):
            share = min(abs(scores[row, column]), 1.0)
            low, middle, high = (np.array(stop) for stop in stops[1 if scores[row, column] > 0 else -1])
            colour = low + (middle - low) * share * 2 if share < 0.5 else middle + (high - middle) * (share - 0.5) * 2
            opacity = 0.7 * share**0.75
            expected = opacity * colour + (1 - opacity) * picture[row, column]
            np.testing.assert_allclose(found[row, column], expected, atol=1.5)  # 256 levels and a rounding


@given(
    arrays.arrays(np.uint8, (4, 5, 3)),
    arrays.arrays(np.float64, (4, 5), elements=st.floats(-1e300, 1e300, allow_subnormal=False)),
    arrays.arrays(np.bool_, (4, 5)),
)
def test_pixels_without_attribution_stay_whatever_the_others_hold(
    colours: np.ndarray, scores: np.ndarray, kept: np.ndarray
) -> None:
    found = pixels(overlay_png(colours, np.where(kept, 0.0, scores)))
    np.testing.assert_array_equal(found[kept], colours[kept])


@pytest.mark.parametrize("signed", [True, False])
def test_stronger_attribution_lies_more_opaque_on_the_picture(signed: bool) -> None:
    scores = np.linspace(0, 1, 50)[None]
    contrast = [blend(np.full((1, 50), grey, np.uint8), scores, Scale(1.0, signed, False)) for grey in (0, 255)]
    seen = contrast[1].astype(int) - contrast[0]
    assert (seen[0, 0] == 255).all()
    assert (np.diff(seen, axis=1) <= 1).all()
    assert (abs(seen[0, -1] - 0.3 * 255) <= 1).all()  # the anatomy stays visible under the strongest


def test_map_without_sign_has_neither_the_red_nor_the_blue_of_a_signed_one() -> None:
    strongest = blend(np.zeros((1, 1), np.uint8), np.ones((1, 1)), Scale(1.0, False, False))[0, 0].astype(int)
    assert strongest[0] > strongest[1] > 2 * strongest[2]  # yellow
    weak = blend(np.zeros((1, 1), np.uint8), np.full((1, 1), 0.1), Scale(1.0, False, False))[0, 0].astype(int)
    assert weak[2] > weak[0] > weak[1]  # violet


def test_given_limit_is_kept_for_both_signs(picture: np.ndarray) -> None:
    scores = np.full((HEIGHT, WIDTH), 1.0)
    scores[:, 15:] = -5.0
    half = pixels(overlay_png(picture, scores, limit=2.0))
    np.testing.assert_array_equal(half, blend(picture, scores, Scale(2.0, True, True)))
    assert not np.array_equal(half[:, :15], pixels(overlay_png(picture, scores))[:, :15])


def test_raster_of_the_same_input_has_the_same_bytes_and_says_nothing_else(
    picture: np.ndarray, attribution: np.ndarray
) -> None:
    first = overlay_png(picture, attribution)
    assert first == overlay_png(picture.copy(), attribution.copy())
    with Image.open(io.BytesIO(first)) as image:
        assert image.info == {}


# The scale


def test_scale_is_the_percentile_of_the_strength_and_symmetric() -> None:
    scores = np.arange(-1000.0, 1000.0).reshape(40, 50)
    expected = np.sort(np.abs(scores), axis=None)[[1989, 1990]]  # 99.5 % of 1999 steps: between these two
    scale = scale_of([scores], signed=True)
    assert expected[0] <= scale.limit <= expected[1]
    assert scale.is_clipped
    assert scale_of([-scores], signed=True) == scale


def test_scale_of_a_map_that_is_nearly_all_zero_is_its_maximum() -> None:
    scores = np.zeros((100, 100))
    scores[3, 4] = -7.0
    assert scale_of([scores], signed=True) == Scale(7.0, True, False)


def test_scale_of_several_maps_covers_them_together() -> None:
    weak, strong = np.full((10, 10), 0.1), np.full((10, 10), -3.0)
    assert scale_of([weak, strong], signed=True).limit == 3.0


def test_16_bit_maps_are_drawn_like_32_bit_ones(picture: np.ndarray) -> None:
    scores = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH)).astype(np.float16)
    assert overlay_png(picture, scores) == overlay_png(picture, scores.astype(np.float32))


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_limit_that_is_no_strength_is_refused(picture: np.ndarray, attribution: np.ndarray, limit: float) -> None:
    with pytest.raises(InputError, match=r"^limit .* is wrong; it must be finite and above 0; leave it out to have it"):
        overlay_png(picture, attribution, limit=limit)


# What is refused


def _with(value: float) -> np.ndarray:
    scores = np.zeros((HEIGHT, WIDTH), np.float32)
    scores[2, 3:5] = value
    return scores


@pytest.mark.parametrize(
    ("scores", "signed", "sentence"),
    [
        (_with(np.nan), True, "attribution has 2 values that are not finite; a heat map shows numbers only; mend"),
        (_with(-np.inf), True, "attribution has 2 values that are not finite; a heat map shows numbers only; mend"),
        (_with(-1), False, "attribution has negative values but signed is False; a map without a sign is never"),
        (_with(1).astype(int), True, "attribution of dtype int64 cannot be drawn; it must be floats; convert it."),
        (_with(1).T, True, "attribution of shape (30, 24) does not fit the picture of (height, width) (24, 30); both"),
        (_with(1)[None], True, "attribution of shape (1, 24, 30) does not fit the picture of (height, width) (24, 30)"),
    ],
)
@pytest.mark.usefixtures("plain_types")
def test_wrong_attribution_is_refused_by_every_door(
    picture: np.ndarray, scores: np.ndarray, signed: bool, sentence: str
) -> None:
    doors: list[Callable[[], object]] = [
        lambda: overlay_png(picture, scores, signed=signed),
        lambda: overlay_figure(picture, scores, title="t", unit="u", signed=signed),
        lambda: grid_figure(picture, ["r"], ["c"], [[scores]], title="t", unit="u", signed=signed),
    ]
    for door in doors:
        with pytest.raises(InputError) as caught:
            door()
        assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8), np.zeros((4, 4), np.uint16)]
)
@pytest.mark.usefixtures("plain_types")
def test_what_is_no_8_bit_picture_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^picture of dtype .* cannot be drawn; it must be uint8 of shape \(height"):
        overlay_png(wrong, np.zeros((4, 4)))


@pytest.mark.parametrize("box", [(0, 0, HEIGHT + 1, 5), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 0, 5, WIDTH + 1)])
def test_box_outside_the_picture_is_refused(picture: np.ndarray, attribution: np.ndarray, box: Any) -> None:
    with pytest.raises(
        InputError, match=r"^box 2, \[.*\], is not inside the picture of \(height, width\) \(24, 30\); "
    ):
        overlay_figure(picture, attribution, title="t", unit="u", boxes=[(0, 0, 1, 1), box])


# One map
