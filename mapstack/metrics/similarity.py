"""How alike two maps are: correlation, structural similarity, and both between all texts of a picture.

Maps of different texts that are alike say nothing about the texts.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.checks import check_map, check_same_shape

Measure = Callable[[Tensor, Tensor], float]
"""A symmetric likeness of two maps, 1 for a map and itself."""

_WINDOW_PX = 11
_SIGMA_PX = 1.5
_K1, _K2 = 0.01, 0.03


def pearson(first: Float[Tensor, "height width"], second: Float[Tensor, "height width"]) -> float:
    """Return the linear correlation over pixels: in [-1, 1]; 1 for maps that differ in scale and offset only.

    Args:
        first: Signed scores, any frame and unit.
        second: Signed scores, same frame.

    Raises:
        InputError: The shapes differ, or a map is constant or not finite.

    Source:
        Pearson, "Note on regression and inheritance in the case of two parents", Proc. Royal Society 1895.

    Example:
        >>> scores = torch.tensor([[0.0, 1.0, 4.0]])
        >>> round(pearson(scores, -3 * scores + 1), 6)
        -1.0
    """
    _check_pair(first, second)
    return _correlation(first.flatten().double(), second.flatten().double())


def spearman(first: Float[Tensor, "height width"], second: Float[Tensor, "height width"]) -> float:
    """Return the correlation of the pixels' ranks: in [-1, 1]; 1 for maps that order the pixels alike.

    Equal scores share the mean of their ranks.

    Args:
        first: Signed scores, any frame and unit.
        second: Signed scores, same frame.

    Raises:
        InputError: The shapes differ, or a map is constant or not finite.

    Source:
        Spearman, "The proof and measurement of association between two things", American J. Psychology 1904; for
        maps, Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018.

    Example:
        >>> scores = torch.tensor([[0.0, 1.0, 4.0]])
        >>> round(spearman(scores, scores**3), 6), round(spearman(scores, -scores), 6)
        (1.0, -1.0)
    """
    _check_pair(first, second)
    return _correlation(_ranks(first), _ranks(second))


def ssim(first: Float[Tensor, "height width"], second: Float[Tensor, "height width"]) -> float:
    """Return the mean structural similarity: in [-1, 1]; 1 for equal maps only, near 0 for unrelated ones.

    Windows are Gaussian, 11 x 11 px of sigma 1.5 px, and lie wholly inside the frame. The data range is that of the
    two maps together, from the least score to the greatest, and scores are measured from the least: the measure is
    made for brightness, and of a signed map and its opposite it would find both factors turned, hence alike. Unlike
    a correlation it sees scale and offset.

    Args:
        first: Signed scores, any frame, at least 11 px a side.
        second: Signed scores in the same unit, same frame.

    Raises:
        InputError: The shapes differ, a map is not finite or too small, or both together have one value.

    Source:
        Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
        IEEE Trans. Image Processing 2004, eq. 13 with their constants 0.01 and 0.03. Deviation: the least score is
        subtracted from both maps.
    """
    check_map(first, "first map")
    check_map(second, "second map")
    check_same_shape(first, second, ("first map", "second map"))
    both = torch.stack([first, second]).double()
    both = both - both.min()
    data_range = float(both.max())
    if min(first.shape) < _WINDOW_PX or data_range == 0:
        raise InputError(
            f"maps of shape {tuple(first.shape)} and data range {data_range} have no structural similarity; each side "
            f"has at least {_WINDOW_PX} px and the scores differ somewhere; leave such maps out."
        )
    products = torch.stack([*both, both[0] ** 2, both[1] ** 2, both[0] * both[1]])
    mean_1, mean_2, square_1, square_2, product = _window_means(products)
    variances = square_1 - mean_1**2 + square_2 - mean_2**2
    covariance = product - mean_1 * mean_2
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    structure = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return float((structure / ((mean_1**2 + mean_2**2 + c1) * (variances + c2))).mean())


def similarity_matrix(
    maps: Float[Tensor, "n_prompts height width"], measure: Measure = pearson
) -> Float[Tensor, "n_prompts n_prompts"]:
    """Compare the maps of all texts of a picture.

    Args:
        maps: One for each text, signed scores, same frame.
        measure: `pearson`, `spearman` or `ssim`.

    Returns:
        The likeness of each pair; symmetric, 1 on the diagonal.

    Raises:
        InputError: `measure` refuses a pair of maps.
    """
    n_prompts = len(maps)
    matrix = torch.eye(n_prompts, dtype=torch.float64)
    for row in range(n_prompts):
        for column in range(row):
            matrix[row, column] = matrix[column, row] = measure(maps[row], maps[column])
    return matrix


def mean_off_diagonal(matrix: Float[Tensor, "n_prompts n_prompts"]) -> float:
    """Return the mean likeness of the maps of two different texts.

    In the range of the measure; lower is better, where the texts say different things: near 1 the map is the same
    whatever the text.

    Args:
        matrix: What `similarity_matrix` made.

    Raises:
        InputError: The matrix is not square, or there are fewer than two texts.

    Example:
        >>> mean_off_diagonal(torch.tensor([[1.0, 0.25], [0.25, 1.0]]))
        0.25
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise InputError(
            f"matrix of shape {tuple(matrix.shape)} compares no texts; it is square, with two texts or more; give what "
            "`similarity_matrix` made."
        )
    is_pair = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return float(matrix[is_pair].double().mean())


def _check_pair(first: Tensor, second: Tensor) -> None:
    for values, name in ((first, "first map"), (second, "second map")):
        check_map(values, name)
        if values.min() == values.max():
            raise InputError(
                f"{name} of shape {tuple(values.shape)} has one value everywhere; a correlation needs two values at "
                "least; leave out maps that are constant."
            )
    check_same_shape(first, second, ("first map", "second map"))


def _correlation(first: Float[Tensor, " pixels"], second: Float[Tensor, " pixels"]) -> float:
    centred = [values - values.mean() for values in (first, second)]
    # Each is scaled first, so that tiny scores do not underflow in the product.
    units = [values / values.norm() for values in centred]
    return float(units[0] @ units[1])


def _ranks(values: Float[Tensor, "height width"]) -> Float[Tensor, " pixels"]:
    _, group, n_equal = torch.unique(values, return_inverse=True, return_counts=True)
    last = n_equal.cumsum(0).double()
    return (last - (n_equal - 1) / 2)[group].flatten()


def _window_means(maps: Float[Tensor, "maps height width"]) -> Float[Tensor, "maps inner_height inner_width"]:
    offsets = torch.arange(_WINDOW_PX, dtype=maps.dtype, device=maps.device) - _WINDOW_PX // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA_PX**2))
    weights = weights / weights.sum()
    by_row = torch.nn.functional.conv2d(maps[:, None], weights[None, None, None, :])
    return torch.nn.functional.conv2d(by_row, weights[None, None, :, None])[:, 0]
