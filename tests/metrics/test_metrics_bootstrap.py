import math

import numpy as np
import pytest
import torch

from mapstack.errors import InputError
from mapstack.metrics.bootstrap import Interval, bootstrap


def by_loop(values: np.ndarray, seed: int) -> Interval:
    """CheXlocalize's way, replicate by replicate, on the same draws."""
    draws = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(1000):
        index = torch.randint(len(values), (len(values),), generator=draws).tolist()
        columns = [[row[column] for row in values[index]] for column in range(values.shape[1])]
        counted = [[value for value in column if not math.isnan(value)] for column in columns]
        means.append(np.mean([np.mean(column) for column in counted if column]))
    means.sort()
    columns = [column[~np.isnan(column)] for column in values.T]
    return Interval(float(np.mean([column.mean() for column in columns])), means[24], means[974])


@pytest.mark.parametrize(("shape", "share_left_out"), [((30, 1), 0.0), ((40, 1), 0.6), ((25, 3), 0.5)])
def test_equals_the_loop(shape: tuple[int, int], share_left_out: float) -> None:
    source = np.random.default_rng(1)
    values = source.random(shape)
    values[source.random(shape) < share_left_out] = np.nan
    answer, expected = bootstrap(torch.from_numpy(values), seed=3), by_loop(values, seed=3)
    assert (answer.mean, answer.low, answer.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_a_column_that_a_replicate_does_not_draw_is_left_out_of_its_mean() -> None:
    # Of 8 pictures one has the second finding: a third of the replicates do not draw it. All draw the first.
    values = np.column_stack([np.arange(8) / 8, np.full(8, np.nan)])
    values[3, 1] = 5.0
    answer, expected = bootstrap(torch.from_numpy(values)), by_loop(values, seed=0)
    assert (answer.mean, answer.low, answer.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert answer.low < 1 < answer.high  # without the second finding below 1, with it above 2.5
    assert answer.mean == pytest.approx((3.5 / 8 + 5) / 2)


def test_one_dimension_is_one_column() -> None:
    values = torch.tensor([0.0, torch.nan, 1.0, 0.5, 0.25])
    assert bootstrap(values, seed=4) == bootstrap(values[:, None], seed=4)
    assert bootstrap(values.float(), seed=4) == bootstrap(values.double(), seed=4)


def test_order_statistics_of_a_known_distribution() -> None:
    # The mean of n draws of 0 or 1 has deviation sqrt(p (1 - p) / n) = 0.05.
    answer = bootstrap(torch.tensor([0.0, 1.0] * 50))
    assert answer.mean == 0.5
    assert answer.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert answer.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_left_out_images_widen_the_interval_and_do_not_move_the_mean() -> None:
    hits = torch.tensor([0.0, 1.0] * 20)
    with_left_out = torch.cat([hits, torch.full((60,), torch.nan)])
    answer = bootstrap(with_left_out)
    assert answer.mean == 0.5
    assert answer.low < 0.5 < answer.high
    # One counted image among 30: a third of the replicates hold none, and the interval stays finite.
    lonely = torch.full((30,), torch.nan)
    lonely[0] = 1.0
    assert bootstrap(lonely) == Interval(1.0, 1.0, 1.0)


def test_columns_are_averaged_after_the_images() -> None:
    # 1 hit of 1 and 0 hits of 3: the mean over findings is 1/2, the mean over all is 1/4.
    values = torch.tensor([[1.0, torch.nan], [torch.nan, 0.0], [torch.nan, 0.0], [torch.nan, 0.0]])
    assert bootstrap(values).mean == 0.5


def test_the_seed_decides_and_constant_values_have_no_width() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)
    assert bootstrap(torch.ones(10)) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize("values", [torch.zeros(0), torch.full((3,), torch.nan), torch.tensor([1.0, torch.inf])])
def test_nothing_to_average_is_refused(values: torch.Tensor) -> None:
    with pytest.raises(InputError, match="cannot be averaged; at least one must count"):
        bootstrap(values)
