"""One map from those of several methods."""

import torch

from mapstack.aggregation import aggregate


def test_each_map_has_the_same_say_and_only_what_speaks_for_the_text_counts() -> None:
    maps = torch.tensor([[[1.0, 3.0], [-8.0, 0.0]], [[100.0, 0.0], [0.0, -1.0]]])
    assert aggregate(maps).tolist() == [[0.625, 0.375], [0.0, 0.0]]


def test_a_batch_is_aggregated_map_by_map_and_the_unit_does_not_matter() -> None:
    maps = torch.rand(3, 2, 5, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.3
    found = aggregate(maps)
    assert found.shape == (2, 5, 4, 4)
    torch.testing.assert_close(found[1, 2], aggregate(maps[:, 1, 2]))
    torch.testing.assert_close(found.sum(dim=(-2, -1)), torch.ones(2, 5))
    torch.testing.assert_close(found, aggregate(maps * torch.tensor([1.0, 1e-6, 1e6])[:, None, None, None, None]))


def test_a_map_that_is_nowhere_positive_has_no_say() -> None:
    maps = torch.tensor([[[-1.0, 0.0]], [[0.0, 2.0]]])
    assert aggregate(maps).tolist() == [[0.0, 0.5]]
