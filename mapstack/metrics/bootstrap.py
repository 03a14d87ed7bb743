"""How far a mean over pictures can be trusted: bootstrap intervals, as CheXlocalize makes them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.errors import InputError

N_REPLICATES = 1000
"""How often the pictures are drawn anew."""

_LOW, _HIGH = 0.025, 0.975


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: Of the values themselves, not of the replicates.
        low: The lower end.
        high: The upper end.
    """

    mean: float
    low: float
    high: float


def bootstrap(values: Float[Tensor, "n_images *n_findings"], *, seed: int = 0) -> Interval:
    """Return the mean over pictures and its interval.

    The pictures are drawn anew with replacement 1,000 times; the ends are the 2.5 % and 97.5 % order statistics of
    the replicates' means, at index `int(q n) - 1`. NaN stands for a picture that is left out: it is drawn as any
    other, and not counted in a mean. With columns, pictures are drawn as whole rows, and the statistic is the mean
    over columns of each column's mean, such as the hit rate averaged over findings.

    Args:
        values: A metric's value for each picture, such as 0 or 1 for hits, or for each picture and finding.
        seed: Of the draws.

    Raises:
        InputError: There is no value that counts, or one is infinite.

    Source:
        `bootstrap_metric` and `compute_cis` in eval.py of rajpurkarlab/cheXlocalize. Deviation: a replicate in which
        no picture counts is left out, where upstream sorts its NaN to the upper end.

    Example:
        >>> interval = bootstrap(torch.tensor([0.0, 1.0] * 50))
        >>> interval.mean, interval.low < 0.5 < interval.high
        (0.5, True)
    """
    values = values.double().cpu()
    if values.numel() == 0 or values.isnan().all() or values.isinf().any():
        raise InputError(
            f"values of shape {tuple(values.shape)} cannot be averaged; at least one must count, and none may be "
            "infinite; leave out a metric that no picture has."
        )
    draws = torch.Generator().manual_seed(seed)
    indices = torch.randint(len(values), (N_REPLICATES, len(values)), generator=draws)
    # Sums by counts of draws: a thousand copies of a large table would not fit in memory.
    times = torch.zeros(N_REPLICATES, len(values), dtype=torch.float64).scatter_add_(
        1, indices, torch.ones(indices.shape, dtype=torch.float64)
    )
    columns = values.reshape(len(values), -1)
    totals, counts = times @ columns.nan_to_num(), times @ (~columns.isnan()).double()
    replicates = (totals / counts).nanmean(dim=1)
    ordered = replicates[~replicates.isnan()].sort().values
    low, high = (float(ordered[max(int(q * len(ordered)) - 1, 0)]) for q in (_LOW, _HIGH))
    return Interval(float(_mean(values)), low, high)


def _mean(values: Float[Tensor, "n_images *n_findings"]) -> Float[Tensor, ""]:
    return values.nanmean(dim=0).nanmean()
