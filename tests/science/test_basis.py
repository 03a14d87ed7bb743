"""Rows that are fitted to pictures: how many, what they lose, and that the error which is said is the true one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mapstack.basis import Basis, fit_rows
from mapstack.errors import InputError
from mapstack.explainer import Explainer
from mapstack.methods import Gradient, IntegratedGradients, Method
from mapstack.stack import Stack
from tests.toys import CurvedModel, random_inputs

D = 12


def stack_in(space: Tensor, seed: int) -> Tensor:
    """Return a stack whose columns lie in a space [D, k]."""
    return space @ torch.randn(space.shape[1], 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def space_of(n: int, seed: int) -> Tensor:
    drawn = torch.randn(D, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def test_as_many_rows_are_kept_as_the_pictures_share() -> None:
    shared = space_of(3, seed=1)
    grams = [stack @ stack.T for stack in (stack_in(shared, seed) for seed in range(4))]
    rows, errors = fit_rows(grams, 0.01)
    assert rows.shape == (3, D)
    torch.testing.assert_close(rows.double().T @ rows.double(), shared @ shared.T, atol=1e-5, rtol=0)
    assert errors[0] == 1
    assert len(errors) == D + 1
    assert max(errors[3:]) < 1e-6


def test_the_error_is_that_of_a_picture_that_was_not_fitted() -> None:
    """One direction of the last picture is seen in no other: rows fitted to the others must miss it."""
    shared, own = space_of(4, seed=1).split([3, 1], dim=1)
    stacks = [stack_in(shared, seed) for seed in range(4)]
    stacks[-1] = stacks[-1] + stack_in(own, seed=9)
    expected = float((own.T @ stacks[-1]).norm() / stacks[-1].norm())
    _, errors = fit_rows([stack @ stack.T for stack in stacks], 0.01)
    assert errors[3] == pytest.approx(expected, rel=1e-6)
    assert errors[D] == 0


def test_what_cannot_be_fitted_is_refused() -> None:
    gram = torch.eye(D, dtype=torch.float64)
    with pytest.raises(InputError, match="1 pictures cannot be fitted; two or more"):
        fit_rows([gram], 0.01)
    with pytest.raises(InputError, match="each with a map that is not zero"):
        fit_rows([gram, 0 * gram], 0.01)
    for rows in (torch.ones(2, D), torch.zeros(1, D), torch.eye(D)[:0], torch.full((1, D), torch.nan)):
        with pytest.raises(InputError, match="must be orthonormal"):
            Basis.of_pictures(rows)


@pytest.mark.parametrize(
    "method",
    [Gradient(rows_per_pass=500), IntegratedGradients(n_steps=4, rows_per_pass=500)],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_error_of_a_pictures_maps_is_told(method: Method, normalize: bool) -> None:
    model = CurvedModel(embed_dim=D)
    explainer, inputs = Explainer(model, method, normalize=normalize), random_inputs(3, model)
    whole = explainer.stack(inputs).axis_maps().flatten(2)
    rows, _ = fit_rows([stack @ stack.T for stack in whole], 0.3)
    assert 0 < len(rows) < D
    basis = Basis.of_pictures(rows.double())
    # Of many checks, the mean is the truth; of those that are taken, it is near.
    draws = torch.randn(1000, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    many = replace(basis, checks=basis.residual(draws))
    few_stack, many_stack = explainer.stack(inputs, basis), explainer.stack(inputs, many)
    assert isinstance(few_stack, Stack)
    assert isinstance(many_stack, Stack)
    lost = whole - basis.rows.T @ (basis.rows @ whole)
    expected = lost.flatten(1).norm(dim=1) / whole.flatten(1).norm(dim=1)
    assert expected.min() > 0.01
    torch.testing.assert_close(torch.tensor(many_stack.map_error).double(), expected, rtol=0.1, atol=0)
    told = torch.tensor(few_stack.map_error).double() / expected
    assert told.min() > 0.4
    assert told.max() < 2.5

    texts = torch.randn(5, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    basis.require(texts, 0.0)  # any text is answered
    found = few_stack.project(texts).flatten(2)
    torch.testing.assert_close(found, texts @ basis.rows.T @ (basis.rows @ whole))


def test_all_rows_lose_nothing() -> None:
    model = CurvedModel(embed_dim=D)
    stack = Explainer(model, Gradient()).stack(
        random_inputs(2, model), Basis.of_pictures(torch.eye(D, dtype=torch.float64))
    )
    assert isinstance(stack, Stack)
    assert stack.map_error == (0.0, 0.0)
