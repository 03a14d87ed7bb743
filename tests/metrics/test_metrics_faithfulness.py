from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mapstack.errors import InputError
from mapstack.methods import Method, make_method
from mapstack.metrics.faithfulness import (
    completeness_residual,
    deletion_curve,
    infidelity,
    insertion_curve,
    max_sensitivity,
)
from mapstack.readouts import DirectionReadout
from tests.toys import LinearModel, random_inputs

SHA256 = "ab" * 32
SIZE = (8, 10)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, PICTURE, BASELINE = draw(1, *SIZE), draw(1, *SIZE, seed=1), draw(1, *SIZE, seed=2)


def linear(pixel_values: Tensor) -> Tensor:
    return (WEIGHT * pixel_values).sum(dim=(1, 2, 3))


def curved(pixel_values: Tensor) -> Tensor:
    return torch.tanh(linear(pixel_values)) + (pixel_values**2).mean(dim=(1, 2, 3))


CONTRIBUTION = (WEIGHT * (PICTURE - BASELINE))[0]


def test_deletion_of_a_linear_model_is_a_cumulative_sum() -> None:
    curve = deletion_curve(linear, PICTURE, BASELINE, CONTRIBUTION, n_steps=80)
    lost = torch.cat([torch.zeros(1), CONTRIBUTION.flatten().sort(descending=True).values.cumsum(0)])
    assert torch.allclose(curve.logits, linear(PICTURE[None]) - lost)
    assert torch.allclose(curve.fractions, torch.linspace(0, 1, 81, dtype=torch.float64))


@pytest.mark.parametrize("n_steps", [1, 7, 28, 80])
def test_curves_equal_replacing_pixel_by_pixel(n_steps: int) -> None:
    scores = draw(*SIZE, seed=3)
    order = sorted(range(80), key=lambda pixel: -float(scores.ravel()[pixel]))
    for make, start, end in ((deletion_curve, PICTURE, BASELINE), (insertion_curve, BASELINE, PICTURE)):
        logits = []
        for step in range(n_steps + 1):
            mixed = start.clone()
            for pixel in order[: round(step * 80 / n_steps)]:
                mixed[:, pixel // 10, pixel % 10] = end[:, pixel // 10, pixel % 10]
            logits.append(curved(mixed[None]))
        curve = make(curved, PICTURE, BASELINE, scores, n_steps=n_steps)
        assert torch.allclose(curve.logits, torch.cat(logits))
        areas = [
            (curve.fractions[i + 1] - curve.fractions[i]) * (logits[i] + logits[i + 1]) / 2 for i in range(n_steps)
        ]
        assert curve.auc == pytest.approx(float(sum(areas)))


def test_no_order_beats_that_of_the_contributions_of_a_linear_model() -> None:
    best_deletion = deletion_curve(linear, PICTURE, BASELINE, CONTRIBUTION).auc
    best_insertion = insertion_curve(linear, PICTURE, BASELINE, CONTRIBUTION).auc
    for scores in (*(draw(*SIZE, seed=seed) for seed in range(5)), -CONTRIBUTION, CONTRIBUTION.abs()):
        assert deletion_curve(linear, PICTURE, BASELINE, scores).auc > best_deletion
        assert insertion_curve(linear, PICTURE, BASELINE, scores).auc < best_insertion


def test_insertion_is_the_deletion_of_the_opposite_map_read_backwards() -> None:
    scores = draw(*SIZE, seed=4)
    forward = insertion_curve(curved, PICTURE, BASELINE, scores, n_steps=10)
    backward = deletion_curve(curved, PICTURE, BASELINE, -scores, n_steps=10)
    assert torch.allclose(forward.logits, backward.logits.flip(0))


def test_equal_scores_go_in_row_major_order_and_batches_do_not_matter() -> None:
    seen: list[Tensor] = []

    def record(pixel_values: Tensor) -> Tensor:
        seen.append(pixel_values)
        assert not torch.is_grad_enabled()
        return pixel_values.sum(dim=(1, 2, 3))

    curve = deletion_curve(
        record, torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(2, 3), n_steps=3, batch_size=3
    )
    assert [len(batch) for batch in seen] == [3, 1]
    assert torch.cat(seen).flatten(1).int().tolist() == [
        [1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ]
    assert curve.logits.tolist() == [6, 4, 2, 0]


@pytest.mark.parametrize("normalize", [False, True])
def test_the_exact_map_has_no_infidelity(normalize: bool) -> None:
    options: dict[str, Any] = {"sha256": SHA256, "normalize": normalize}
    exact = infidelity(linear, PICTURE, BASELINE, CONTRIBUTION, multiply_by_inputs=True, **options)
    assert exact == pytest.approx(0, abs=1e-9)
    exact = infidelity(linear, PICTURE, BASELINE, WEIGHT[0], multiply_by_inputs=False, **options)
    assert exact == pytest.approx(0, abs=1e-9)
    for wrong in (-CONTRIBUTION, CONTRIBUTION.flip(1), torch.zeros(SIZE)):
        is_wrong = infidelity(linear, PICTURE, BASELINE, wrong, multiply_by_inputs=True, **options) > 0.1
        assert is_wrong != (normalize and torch.equal(wrong, -CONTRIBUTION))  # normalised, the sign is not judged


def test_infidelity_equals_its_definition_on_the_squares_that_the_model_saw() -> None:
    seen: list[Tensor] = []

    def record(pixel_values: Tensor) -> Tensor:
        seen.append(pixel_values)
        return curved(pixel_values)

    scores = draw(*SIZE, seed=5)
    for multiply_by_inputs in (True, False):
        seen.clear()
        answer = infidelity(
            record,
            PICTURE,
            BASELINE,
            scores,
            sha256=SHA256,
            multiply_by_inputs=multiply_by_inputs,
            n_perturb_samples=20,
            max_examples_per_batch=7,
        )
        removed = torch.cat([batch for batch in seen if not (len(batch) == 1 and torch.equal(batch[0], PICTURE))])
        assert len(removed) == 20
        steps = (removed != PICTURE).double() if multiply_by_inputs else PICTURE - removed
        predicted = (steps[:, 0] * scores).sum(dim=(1, 2))
        errors = (predicted - (curved(PICTURE[None]) - curved(removed))) ** 2
        assert answer == pytest.approx(float(errors.mean()))


def test_squares_are_squares_of_many_sizes_from_the_seed_and_the_picture() -> None:
    removed: list[Tensor] = []

    def record(pixel_values: Tensor) -> Tensor:
        removed.extend(pixel_values == 0)
        return pixel_values.sum(dim=(1, 2, 3))

    def areas(seed: int, sha256: str, max_examples_per_batch: int) -> list[int]:
        removed.clear()
        infidelity(
            record,
            torch.ones(1, 56, 28),
            torch.zeros(1, 56, 28),
            torch.zeros(56, 28),
            sha256=sha256,
            multiply_by_inputs=True,
            max_examples_per_batch=max_examples_per_batch,
            seed=seed,
        )
        return [int(each.sum()) for each in removed if each.any()]

    first = areas(0, SHA256, 16)
    assert len(first) == 64
    assert {area**0.5 for area in first} <= {float(side) for side in range(2, 15)}  # 28 / 14 to 28 / 2
    assert len(set(first)) > 8
    assert areas(0, SHA256, 5) == first
    assert areas(1, SHA256, 16) != first != areas(0, "cd" * 32, 16)


def test_infidelity_does_not_depend_on_the_number_of_equal_channels() -> None:
    def grey(pixel_values: Tensor) -> Tensor:
        return linear(pixel_values.mean(dim=1, keepdim=True))

    options: dict[str, Any] = {"sha256": SHA256, "n_perturb_samples": 9}
    for multiply_by_inputs in (True, False):
        scores = draw(*SIZE, seed=6)
        one = infidelity(linear, PICTURE, BASELINE, scores, multiply_by_inputs=multiply_by_inputs, **options)
        three = (PICTURE.repeat(3, 1, 1), BASELINE.repeat(3, 1, 1))
        assert infidelity(grey, *three, scores, multiply_by_inputs=multiply_by_inputs, **options) == pytest.approx(one)


def test_normalised_infidelity_does_not_see_the_scale() -> None:
    options: dict[str, Any] = {"sha256": SHA256, "multiply_by_inputs": True, "normalize": True}
    once = infidelity(curved, PICTURE, BASELINE, CONTRIBUTION, **options)
    assert infidelity(curved, PICTURE, BASELINE, 50 * CONTRIBUTION, **options) == pytest.approx(once)


def test_sensitivity_is_the_greatest_relative_change() -> None:
    seen: list[Tensor] = []

    def identity(pixel_values: Tensor) -> Tensor:
        seen.append(pixel_values)
        return pixel_values[:, 0]

    answer = max_sensitivity(identity, PICTURE, sha256=SHA256, perturb_radius=0.3, max_examples_per_batch=3)
    noise = torch.cat(seen[1:]) - PICTURE
    assert noise.shape == (10, 1, *SIZE)
    assert 0.29 < float(noise.abs().max()) <= 0.3
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert len(noise.unique()) == noise.numel()
    assert answer == pytest.approx(float(noise.flatten(1).norm(dim=1).max() / PICTURE.norm()))
    again = [max_sensitivity(identity, PICTURE, sha256=SHA256, perturb_radius=0.3, seed=seed) for seed in (0, 1)]
    assert again[0] == pytest.approx(answer)  # whatever the batches
    assert again[1] != pytest.approx(answer)


def test_a_map_that_ignores_the_picture_has_no_sensitivity() -> None:
    assert max_sensitivity(lambda x: WEIGHT[0].expand(len(x), *SIZE), PICTURE, sha256=SHA256) == 0


@pytest.mark.parametrize(
    ("method", "multiply_by_inputs"),
    [
        (make_method("gradient"), False),
        (make_method("integrated_gradients", n_steps=2), True),
        (make_method("occlusion", sliding_window_shapes=1, strides=1), True),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_methods_are_faithful_to_a_linear_model(method: Method, multiply_by_inputs: bool) -> None:
    model = LinearModel()
    readout = DirectionReadout(draw(1, 6), embed_dim=6, normalize=False)
    inputs = random_inputs(1, model)
    black = model.preprocessing.normalize(torch.zeros_like(inputs.pixel_values))[0]

    def score(pixel_values: Tensor) -> Tensor:
        return readout(model.embed_images(pixel_values))[:, 0]

    def explain(pixel_values: Tensor) -> Tensor:
        copies = replace(
            inputs,
            pixel_values=pixel_values,
            content=inputs.content.expand(len(pixel_values), -1, -1),
            sha256=inputs.sha256 * len(pixel_values),
        )
        return method.attribute(model, copies, readout).values[:, 0]

    picture, scores = inputs.pixel_values[0], explain(inputs.pixel_values)[0]
    unfaithful = infidelity(score, picture, black, scores, sha256=SHA256, multiply_by_inputs=multiply_by_inputs)
    assert unfaithful == pytest.approx(0, abs=1e-6)
    if multiply_by_inputs:
        difference = float(score(picture[None]) - score(black[None]))
        assert completeness_residual(scores, difference) == pytest.approx(0, abs=1e-6)
    sensitivity = max_sensitivity(explain, picture, sha256=SHA256)
    assert 0 < sensitivity < 0.1 if multiply_by_inputs else sensitivity == pytest.approx(0, abs=1e-12)


def test_completeness_residual_is_relative_with_a_floor() -> None:
    scores = torch.tensor([[1.0, -0.5], [0.5, 0.0]])
    assert completeness_residual(scores, 1.0) == 0
    assert completeness_residual(scores, 2.0) == 0.5
    assert completeness_residual(scores, -1.0) == 2
    assert completeness_residual(scores, 0.0) == pytest.approx(10)


def curve_of(**changes: Any) -> Callable[[], object]:
    arguments: dict[str, Any] = {
        "score": linear,
        "pixel_values": PICTURE,
        "baseline": BASELINE,
        "attribution": CONTRIBUTION,
        **changes,
    }
    return lambda: deletion_curve(**arguments)


@pytest.mark.usefixtures("plain_types")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            curve_of(attribution=CONTRIBUTION.T),
            r"attribution of shape \(10, 8\) does not fit a channel of shape \(8, 10\)",
        ),
        (curve_of(attribution=CONTRIBUTION * torch.nan), "holds 80 values that are NaN or infinite"),
        (curve_of(baseline=BASELINE[:, 1:]), r"baseline of shape \(1, 7, 10\) does not fit pixel_values of shape"),
        (curve_of(pixel_values=PICTURE[None]), r"pixel_values of shape \(1, 1, 8, 10\) are no picture"),
        (curve_of(pixel_values=PICTURE * torch.inf), "are no picture; it is .* and finite"),
        (curve_of(n_steps=81), "n_steps is 81; each step replaces at least one of 80 pixels"),
        (curve_of(n_steps=0), "n_steps is 0"),
        (curve_of(score=lambda x: linear(x)[:, None]), r"score answered shape \(16, 1\) for 16 pictures"),
        (
            lambda: infidelity(linear, PICTURE, BASELINE[0], CONTRIBUTION, sha256=SHA256, multiply_by_inputs=True),
            r"baseline of shape \(8, 10\) does not fit",
        ),
        (lambda: max_sensitivity(lambda x: x[:, 0], PICTURE * torch.nan, sha256=SHA256), "are no picture"),
        (lambda: completeness_residual(CONTRIBUTION * torch.nan, 1.0), "holds 80 values"),
    ],
)
def test_what_cannot_be_scored_is_refused(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()
