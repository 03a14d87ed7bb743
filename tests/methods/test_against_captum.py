"""Each method against Captum's class of the same name, row by row and for a projected text."""

from collections.abc import Callable

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor

from mapstack.baselines import baseline, baseline_distribution
from mapstack.images import Inputs
from mapstack.methods import Gradient, GradientShap, IntegratedGradients, Method, Occlusion, Saliency
from mapstack.methods.captum import ExplainedModule
from mapstack.methods.path import draw_shap
from mapstack.models import EmbeddingModel
from mapstack.readouts import DirectionReadout
from tests.toys import CurvedModel, random_inputs

Reference = Callable[[ExplainedModule, Inputs, EmbeddingModel, int], Tensor]


def captum_gradient(module: ExplainedModule, inputs: Inputs, model: EmbeddingModel, row: int) -> Tensor:
    return captum.attr.Saliency(module).attribute(inputs.pixel_values.clone().requires_grad_(), target=row, abs=False)


def captum_saliency(module: ExplainedModule, inputs: Inputs, model: EmbeddingModel, row: int) -> Tensor:
    return captum.attr.Saliency(module).attribute(inputs.pixel_values.clone().requires_grad_(), target=row)


def captum_integrated_gradients(module: ExplainedModule, inputs: Inputs, model: EmbeddingModel, row: int) -> Tensor:
    start = baseline("white", inputs, model.preprocessing, 0).to(inputs.pixel_values)
    return captum.attr.IntegratedGradients(module).attribute(
        inputs.pixel_values.clone().requires_grad_(), start, target=row, n_steps=7
    )


def captum_occlusion(module: ExplainedModule, inputs: Inputs, model: EmbeddingModel, row: int) -> Tensor:
    start = baseline("white", inputs, model.preprocessing, 0).to(inputs.pixel_values)
    channels = inputs.pixel_values.shape[1]
    occlude = captum.attr.Occlusion(module)
    window = (channels, 5, 5)
    values = occlude.attribute(inputs.pixel_values, window, strides=(channels, 3, 3), baselines=start, target=row)
    return values / channels  # Captum repeats a window's score in every channel; ours counts it once


def captum_gradient_shap(module: ExplainedModule, inputs: Inputs, model: EmbeddingModel, row: int) -> Tensor:
    """GradientShap's own inner step, fed with our draws: Captum draws its own at every call."""
    draws = [draw_shap(SHAP, 3, *each, n_baselines=4) for each in zip(inputs.sha256, inputs.content, strict=True)]
    candidates = baseline_distribution(SHAP.baselines, inputs, model.preprocessing, 3).to(inputs.pixel_values)
    total = torch.zeros_like(inputs.pixel_values)
    for k in range(SHAP.n_samples):
        noisy = inputs.pixel_values + torch.stack([each.noise[k] for each in draws])
        start = torch.stack([candidates[i, each.choice[k]] for i, each in enumerate(draws)])
        positions = np.array([float(each.position[k]) for each in draws])
        step = captum.attr._core.gradient_shap.InputBaselineXGradient(module)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "uniform", lambda *_, given=positions, **__: given)
            total += step.attribute(noisy, start, target=row)
    return total / SHAP.n_samples


SHAP = GradientShap(n_samples=5, stdevs=0.2, internal_batch_size=3)
PAIRS: list[tuple[Method, Reference]] = [
    (Gradient(rows_per_pass=4), captum_gradient),
    (Saliency(), captum_saliency),
    (IntegratedGradients(n_steps=7, baseline="white", internal_batch_size=4), captum_integrated_gradients),
    (Occlusion(sliding_window_shapes=5, strides=3, baseline="white", perturbations_per_eval=7), captum_occlusion),
    (SHAP, captum_gradient_shap),
]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("method", "reference"), PAIRS, ids=lambda each: getattr(each, "name", ""))
def test_every_row_equals_captum(method: Method, reference: Reference, channels: int, normalize: bool) -> None:
    model = CurvedModel(channels=channels)
    inputs = random_inputs(2, model)
    readout = DirectionReadout(None, embed_dim=model.embed_dim, normalize=normalize)
    found = method.attribute(model, inputs, readout, seed=3)
    module = ExplainedModule(model, readout)
    for row in range(model.embed_dim):
        expected = reference(module, inputs, model, row).sum(dim=1)
        # Captum's Occlusion counts in float32 whatever the model, and its path's points and weights are float32.
        tolerance = 1e-6 if isinstance(method, Occlusion | IntegratedGradients) else 1e-12
        assert (found.values[:, row] - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("method", "reference"), [p for p in PAIRS if p[0].is_linear], ids=lambda e: getattr(e, "name", "")
)
def test_a_projected_text_equals_captum_on_the_logit(method: Method, reference: Reference) -> None:
    model = CurvedModel()
    inputs = random_inputs(2, model)
    direction = model.text.text_directions(["left pleural effusion"]).double()
    axes = method.attribute(model, inputs, DirectionReadout(None, embed_dim=model.embed_dim), seed=3).values
    projected = torch.einsum("d,bdhw->bhw", direction[0], axes)
    logit = ExplainedModule(model, DirectionReadout(direction, embed_dim=model.embed_dim))
    expected = reference(logit, inputs, model, 0).sum(dim=1)
    assert (projected - expected).abs().max() <= 1e-6 * expected.abs().max()
