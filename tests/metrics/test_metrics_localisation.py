import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.body import body_mask, share_outside_body
from mapstack.metrics.localisation import (
    iou,
    iou_at_threshold,
    pointing_game_hit,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from mapstack.phantom import phantom
from mapstack.phantom.anatomy import draw_anatomy
from mapstack.phantom.canvas import Canvas
from mapstack.phantom.patient import draw_patient

Metric = Callable[[Tensor, Tensor], Any]
OF_MAP_AND_MASK: list[Metric] = [
    pointing_game_hit,
    partial(pointing_game_hit, tolerance_px=15),
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    partial(iou_at_threshold, threshold=0.5),
    share_outside_body,
]


def mask_of(height: int, width: int, *pixels: tuple[int, int]) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    for pixel in pixels:
        mask[pixel] = True
    return mask


def random_pair(seed: int, n_levels: int) -> tuple[Tensor, Tensor]:
    """A map with many equal scores, and a mask that is not empty."""
    source = torch.Generator().manual_seed(seed)
    scores = torch.randint(-n_levels, n_levels + 1, (6, 7), generator=source) / n_levels
    mask = torch.rand(6, 7, generator=source) < 0.3
    mask[seed % 6, seed % 7] = True
    return scores, mask


def test_of_equal_maxima_the_first_in_row_major_order_points() -> None:
    scores = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert pointing_game_hit(scores, mask_of(2, 3, (0, 2)))
    assert not pointing_game_hit(scores, mask_of(2, 3, (1, 0)))


def test_tolerance_is_a_distance_between_pixel_centres() -> None:
    scores = torch.zeros(40, 40)
    scores[0, 0] = 1
    assert pointing_game_hit(scores, mask_of(40, 40, (9, 12)), tolerance_px=15)  # 9, 12, 15
    assert not pointing_game_hit(scores, mask_of(40, 40, (9, 12)), tolerance_px=14)
    assert not pointing_game_hit(scores, mask_of(40, 40, (9, 13)), tolerance_px=15)
    with pytest.raises(InputError, match="tolerance_px is -1; a distance is 0 or more"):
        pointing_game_hit(scores, mask_of(40, 40, (0, 0)), tolerance_px=-1)


@pytest.mark.parametrize("seed", range(20))
def test_mass_and_rank_equal_a_naive_count(seed: int) -> None:
    scores, mask = random_pair(seed, n_levels=1000)
    pairs = zip(scores.ravel().tolist(), mask.ravel().tolist(), strict=True)
    positive = [(max(score, 0.0), inside) for score, inside in pairs]
    mass = sum(score for score, inside in positive if inside) / sum(score for score, _ in positive)
    assert relevance_mass_accuracy(scores, mask) == pytest.approx(mass, abs=1e-6)

    strongest = sorted(positive, key=lambda pair: -pair[0])[: int(mask.sum())]
    if strongest[-1][0] > 0 and len({score for score, _ in strongest}) == len(strongest):  # no ties
        assert relevance_rank_accuracy(scores, mask) == sum(inside for _, inside in strongest) / len(strongest)


def test_rank_is_the_mean_over_all_orders_of_equal_scores() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.0, -3.0]])
    mask = mask_of(2, 3, (0, 0), (0, 1), (1, 2))
    shares = []
    for order in itertools.permutations(range(6)):
        strongest = sorted(order, key=lambda pixel: -max(float(scores.ravel()[pixel]), 0.0))[:3]
        shares.append(sum(bool(mask.ravel()[pixel]) for pixel in strongest) / 3)
    assert relevance_rank_accuracy(scores, mask) == pytest.approx(np.mean(shares))


def test_a_flat_map_gets_the_share_of_the_region() -> None:
    mask = mask_of(4, 5, (0, 0), (0, 1), (3, 3), (2, 2), (2, 3))
    for flat in (torch.ones(4, 5), torch.full((4, 5), 1e-30)):
        assert relevance_mass_accuracy(flat, mask) == pytest.approx(0.25)
        assert relevance_rank_accuracy(flat, mask) == pytest.approx(0.25)
        assert share_outside_body(flat, mask) == pytest.approx(0.75)
    assert relevance_mass_accuracy(-torch.ones(4, 5), mask) == 0
    assert relevance_rank_accuracy(-torch.ones(4, 5), mask) == pytest.approx(0.25)


def test_the_perfect_map_and_its_opposite() -> None:
    mask = mask_of(3, 3, (0, 0), (1, 1))
    scores = mask.float() - 0.5
    assert [metric(scores, mask) for metric in OF_MAP_AND_MASK[:5]] == [True, True, 1.0, 1.0, 1.0]
    assert relevance_mass_accuracy(-scores, mask) == 0
    assert relevance_rank_accuracy(-scores, mask) == 0
    assert iou_at_threshold(-scores, mask, 0.5) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(-20, 20))
def test_scale_does_not_matter(seed: int, exponent: int) -> None:
    scores, mask = random_pair(seed, n_levels=3)
    for metric in OF_MAP_AND_MASK:
        assert metric(2.0**exponent * scores, mask) == pytest.approx(metric(scores, mask))


def test_iou_counts_pixels() -> None:
    left, right = mask_of(2, 4, (0, 0), (0, 1), (1, 1)), mask_of(2, 4, (0, 1), (1, 1), (1, 2), (1, 3))
    assert iou(left, right) == iou(right, left) == 2 / 5
    assert iou(torch.zeros(2, 4, dtype=torch.bool), right) == 0


def test_threshold_is_a_share_of_the_maps_own_range() -> None:
    scores = torch.tensor([[-1.0, 0.0, 1.0, 3.0]])  # scaled: 0, 0.25, 0.5, 1
    region = mask_of(1, 4, (0, 2), (0, 3))
    assert iou_at_threshold(scores, region, 0.49) == 1
    assert iou_at_threshold(scores, region, 0.5) == 0.5  # strictly greater
    with pytest.raises(InputError, match=r"threshold is 1\.5; a scaled map lies in \[0, 1\]"):
        iou_at_threshold(scores, region, 1.5)


def test_both_signs_count_outside_the_body() -> None:
    scores = torch.tensor([[4.0, -2.0], [1.0, -1.0]])
    assert share_outside_body(scores, mask_of(2, 2, (0, 0), (0, 1))) == 0.25
    assert share_outside_body(scores, mask_of(2, 2, (1, 1))) == pytest.approx(7 / 8)
    assert share_outside_body(scores, torch.ones(2, 2, dtype=torch.bool)) == 0
    with pytest.raises(InputError, match="is zero everywhere; a share needs something to divide"):
        share_outside_body(torch.zeros(2, 2), mask_of(2, 2, (0, 0)))


BODY_SEEDS = range(6)


@pytest.mark.parametrize("seed", BODY_SEEDS)
def test_the_body_of_a_phantom_holds_its_lungs_and_no_free_air(seed: int) -> None:
    numbers = np.random.default_rng([seed, 0])  # as `phantom` draws its patient
    patient = draw_patient(numbers)
    anatomy = draw_anatomy(Canvas((224, 224), patient.pose), patient, numbers)
    body = body_mask(torch.from_numpy(phantom(seed, size=224, labels=[]).pixels / 255).float())
    lungs = torch.from_numpy(np.maximum(*anatomy.thorax.values()) > 0.5)
    assert body[lungs].float().mean() > 0.99
    for corner in (body[:12, :12], body[:12, -12:]):
        assert not corner.any()
    assert 0.5 < body.float().mean() < 0.95


def test_the_body_is_what_is_bright_and_what_that_encloses() -> None:
    film = torch.zeros(12, 12)
    film[2:, 2:10] = 0.7
    film[4:7, 3:5] = 0.05  # enclosed: a lung
    film[9:, 6:8] = 0.05  # open to the border
    film[0, 11] = 1.0  # a lone pixel: no body
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[2:, 2:10] = True
    expected[9:, 6:8] = False
    assert torch.equal(body_mask(film), expected)
    assert torch.equal(body_mask(film * 0.5 + 0.25), expected)  # exposure does not matter
    assert not body_mask(torch.full((5, 5), 0.5)).any()


@pytest.mark.usefixtures("plain_types")
@pytest.mark.parametrize("metric", OF_MAP_AND_MASK)
@pytest.mark.parametrize(
    ("scores", "mask", "sentence"),
    [
        (torch.rand(3, 4), torch.zeros(3, 4).bool(), r"mask of shape \(3, 4\) has no True pixel; .*; leave out"),
        (
            torch.rand(3, 4),
            torch.ones(4, 3).bool(),
            r"mask of shape \(4, 3\) does not fit attribution of shape \(3, 4\)",
        ),
        (torch.rand(3, 4), torch.ones(3, 4), r"mask of shape \(3, 4\) and torch.float32 is no mask"),
        (torch.full((3, 4), torch.nan), torch.ones(3, 4).bool(), "holds 12 values that are NaN or infinite"),
        (torch.full((3, 4), torch.inf), torch.ones(3, 4).bool(), "holds 12 values that are NaN or infinite"),
        (torch.rand(1, 3, 4), torch.ones(3, 4).bool(), r"attribution of shape \(1, 3, 4\) and torch.float32 is no map"),
        (torch.ones(3, 4).int(), torch.ones(3, 4).bool(), r"shape \(3, 4\) and torch.int32 is no map"),
        (torch.rand(0, 4), torch.ones(0, 4).bool(), r"shape \(0, 4\) and torch.float32 is no map"),
    ],
)
def test_what_cannot_be_scored_is_refused(metric: Metric, scores: Tensor, mask: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        metric(scores, mask)


@pytest.mark.usefixtures("plain_types")
def test_iou_refuses_regions_that_do_not_fit() -> None:
    region = mask_of(2, 2, (0, 0))
    with pytest.raises(InputError, match=r"predicted of shape \(2, 3\) does not fit mask of shape \(2, 2\)"):
        iou(torch.ones(2, 3).bool(), region)
    with pytest.raises(InputError, match=r"predicted of shape \(2, 2\) and torch.uint8 is no mask"):
        iou(torch.ones(2, 2).byte(), region)
    with pytest.raises(InputError, match="has no True pixel"):
        iou(region, torch.zeros(2, 2).bool())
