"""Random draws: of one type whatever torch's default is, and without a trace in the generators of others."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mapstack.baselines import baseline
from mapstack.methods import GradientShap
from mapstack.methods.captum import _seeded
from mapstack.methods.path import draw_shap
from tests.toys import CurvedModel, random_inputs


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draws() -> list[torch.Tensor]:
    model = CurvedModel()
    inputs = random_inputs(1, model)
    drawn = draw_shap(GradientShap(n_samples=3), 0, "ab", torch.ones(4, 4, dtype=torch.bool), n_baselines=2)
    return [drawn.noise, drawn.position, drawn.choice, baseline("noise", inputs, model.preprocessing, 0)]


SINGLE = draws()


@pytest.mark.usefixtures("double_by_default")
def test_the_default_type_changes_no_draw() -> None:
    for expected, found in zip(SINGLE, draws(), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_seeded_block_leaves_the_generators_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("a GPU that has no part in it is seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed", refuse)
    torch.default_generator.manual_seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # type: ignore[index]
    drawn = []
    for _ in range(2):
        with _seeded(7, torch.device("cpu")):
            drawn.append((float(torch.rand(1)), float(np.random.rand())))
    assert drawn[0] == drawn[1]
    with pytest.raises(ZeroDivisionError), _seeded(7, torch.device("cpu")):
        float(torch.rand(1)) / 0
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # type: ignore[index]
