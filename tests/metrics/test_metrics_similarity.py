import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import correlate
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.similarity import Measure, mean_off_diagonal, pearson, similarity_matrix, spearman, ssim

MEASURES: list[Measure] = [pearson, spearman, ssim]


def pair(seed: int, size: tuple[int, int] = (20, 17)) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    first, noise = torch.randn(2, *size, generator=source)
    return first, first * torch.rand((), generator=source) + noise


def ssim_by_window(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, with explicit deviations from each window's mean; brightness starts at 0."""
    least = min(first.min(), second.min())
    first, second = first - least, second - least
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    span = max(first.max(), second.max())
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for row in range(first.shape[0] - 10):
        for column in range(first.shape[1] - 10):
            x, y = (each[row : row + 11, column : column + 11] for each in (first, second))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            values.append(luminance * (2 * covariance + c2) / (variance_x + variance_y + c2))
    return float(np.mean(values))


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_scipys(seed: int) -> None:
    first, second = pair(seed)
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first.ravel(), second.ravel()).statistic)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first.ravel(), second.ravel()).statistic)
    tied, other = first.round(), second.round()
    assert spearman(tied, other) == pytest.approx(stats.spearmanr(tied.ravel(), other.ravel()).statistic)


@pytest.mark.parametrize("seed", range(3))
def test_ssim_equals_its_formula_window_by_window(seed: int) -> None:
    first, second = pair(seed)
    assert ssim(first, second) == pytest.approx(ssim_by_window(first.double().numpy(), second.double().numpy()))


def test_ssim_equals_that_of_smoothed_pictures() -> None:
    """As scikit-image writes it: filter the whole frame, then cut off the border."""
    first, second = (each.double().exp().numpy() for each in pair(7, (40, 30)))
    first[0, 0] = 0
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / 4.5)
    weights = np.outer(line, line) / line.sum() ** 2
    means = [correlate(each, weights) for each in (first, second, first**2, second**2, first * second)]
    m1, m2, s1, s2, product = (each[5:-5, 5:-5] for each in means)
    span = max(first.max(), second.max()) - min(first.min(), second.min())
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    expected = (2 * m1 * m2 + c1) * (2 * (product - m1 * m2) + c2)
    expected /= (m1**2 + m2**2 + c1) * (s1 - m1**2 + s2 - m2**2 + c2)
    assert ssim(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(expected.mean())


def test_ssim_of_two_constants_is_its_luminance_term() -> None:
    # Values a = 1 and b = 0: span 1, (2ab + c1) / (a^2 + b^2 + c1) with c1 = 0.0001.
    assert ssim(torch.ones(11, 11), torch.zeros(11, 11)) == pytest.approx(0.0001 / 1.0001)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_map_is_like_itself_and_unlike_its_opposite(measure: Measure) -> None:
    first, second = pair(1)
    assert measure(first, first) == pytest.approx(1)
    assert measure(first, -first) < -0.8
    assert measure(first, second) == pytest.approx(measure(second, first))
    assert -1 < measure(first, second) < 1


def test_what_each_measure_sees() -> None:
    first, _ = pair(2)
    assert pearson(first, 3 * first + 2) == pytest.approx(1)
    assert spearman(first, first.exp()) == pytest.approx(1)
    assert pearson(first, first.exp()) < 0.9
    assert ssim(first, 3 * first + 2) < 0.8
    assert pearson(first * 1e-30, first) == pytest.approx(1)  # no underflow


def test_the_matrix_holds_every_pair() -> None:
    maps = torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(0))
    for measure in MEASURES:
        matrix = similarity_matrix(maps, measure)
        for row in range(4):
            for column in range(4):
                assert matrix[row, column] == pytest.approx(measure(maps[row], maps[column]))
    matrix = similarity_matrix(maps)
    assert matrix.numpy() == pytest.approx(np.corrcoef(maps.flatten(1).numpy()), abs=1e-6)
    assert mean_off_diagonal(matrix) == pytest.approx((float(matrix.sum()) - 4) / 12)


@pytest.mark.usefixtures("plain_types")
@pytest.mark.parametrize("measure", MEASURES)
def test_maps_that_cannot_be_compared_are_refused(measure: Measure) -> None:
    first, _ = pair(0)
    with pytest.raises(InputError, match=r"first map of shape \(17, 20\) does not fit second map of shape \(20, 17\)"):
        measure(first.T, first)
    with pytest.raises(InputError, match=r"second map of shape \(20, 17\) holds 340 values that are NaN"):
        measure(first, first * torch.nan)
    with pytest.raises(InputError, match="one value everywhere|data range 0"):
        measure(torch.ones(12, 12), torch.ones(12, 12))


def test_small_maps_and_matrices_are_refused() -> None:
    with pytest.raises(InputError, match=r"maps of shape \(10, 40\) .* each side has at least 11 px"):
        ssim(torch.rand(10, 40), torch.rand(10, 40))
    for matrix in (torch.ones(1, 1), torch.ones(2, 3)):
        with pytest.raises(InputError, match="compares no texts"):
            mean_off_diagonal(matrix) if matrix.shape == (1, 1) else mean_off_diagonal(matrix[:1, :1])
