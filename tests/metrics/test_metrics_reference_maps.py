import numpy as np
import pytest
import torch
from scipy import ndimage

from mapstack.errors import InputError
from mapstack.metrics.localisation import relevance_rank_accuracy
from mapstack.metrics.reference_maps import centre_prior, mean_mask, random_map, sobel_edges

SHA256 = "ab" * 32


def test_random_maps_belong_to_the_picture_and_the_seed() -> None:
    scores = random_map(30, 20, sha256=SHA256)
    assert scores.shape == (30, 20)
    assert torch.equal(scores, random_map(30, 20, sha256=SHA256))
    assert not torch.equal(scores, random_map(30, 20, sha256="cd" * 32))
    assert not torch.equal(scores, random_map(30, 20, sha256=SHA256, seed=1))


def test_random_maps_score_chance() -> None:
    scores = random_map(224, 224, sha256=SHA256)
    assert scores.mean() == pytest.approx(0, abs=0.02)
    assert scores.std() == pytest.approx(1, abs=0.02)
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[:112, :56] = True
    assert relevance_rank_accuracy(scores, mask) == pytest.approx(1 / 8, abs=0.01)


def test_the_centre_prior_is_a_gaussian_of_a_quarter_of_each_side() -> None:
    prior = centre_prior(40, 100)
    for row, column in ((0, 0), (20, 50), (39, 12), (7, 99)):
        distance = ((row + 0.5 - 20) / 10) ** 2 + ((column + 0.5 - 50) / 25) ** 2
        assert prior[row, column] == pytest.approx(np.exp(-distance / 2), rel=1e-4)
    assert torch.allclose(prior, prior.flip(0).flip(1))


def test_edges_equal_scipys() -> None:
    picture = torch.rand(12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    across, down = (ndimage.sobel(picture.numpy(), axis, mode="nearest") / 8 for axis in (0, 1))
    assert sobel_edges(picture).numpy() == pytest.approx(np.hypot(across, down))


def test_a_ramp_has_its_slope_and_a_flat_picture_no_edges() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    assert torch.allclose(sobel_edges(0.3 * rows - 0.4 * columns)[1:-1, 1:-1], torch.full((4, 5), 0.5))
    assert not sobel_edges(torch.full((6, 7), 0.8)).any()


def test_the_mean_mask_is_a_share_and_is_taken_one_by_one() -> None:
    masks = torch.rand(7, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.allclose(mean_mask(mask for mask in masks), masks.float().mean(dim=0))


@pytest.mark.usefixtures("plain_types")
def test_what_makes_no_reference_map_is_refused() -> None:
    with pytest.raises(InputError, match="0 masks were given; a mean needs at least one"):
        mean_mask([])
    with pytest.raises(InputError, match=r"mask of shape \(2, 3\) does not fit the masks before it of shape \(2, 2\)"):
        mean_mask([torch.ones(2, 2).bool(), torch.ones(2, 3).bool()])
    with pytest.raises(InputError, match="is no mask"):
        mean_mask([torch.ones(2, 2)])
    with pytest.raises(InputError, match="picture of shape .* holds 4 values that are NaN"):
        sobel_edges(torch.full((2, 2), torch.nan))
