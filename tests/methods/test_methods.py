"""Methods on models whose attributions are known by hand, and the axioms that they keep."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mapstack.errors import ConfigError, InputError
from mapstack.images import Inputs
from mapstack.methods import (
    CaptumMethod,
    Gradient,
    GradientShap,
    IntegratedGradients,
    Method,
    Occlusion,
    Saliency,
    Windows,
    make_method,
)
from mapstack.models import EmbeddingModel
from mapstack.readouts import DirectionReadout
from tests.toys import CurvedModel, LinearModel, random_inputs

METHODS: list[Method] = [
    Gradient(),
    Saliency(),
    IntegratedGradients(n_steps=3),
    GradientShap(n_samples=4),
    Occlusion(sliding_window_shapes=4, strides=4),
    CaptumMethod(attribution="captum.attr.InputXGradient"),
    CaptumMethod(attribution="captum.attr.GradientShap", kwargs={"stdevs": 0.1}),
]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda each: getattr(each, "attribution", each.name))


def axes(model: EmbeddingModel, *, normalize: bool = False) -> DirectionReadout:
    return DirectionReadout(None, embed_dim=model.embed_dim, normalize=normalize)


def test_a_linear_model_has_its_weights_as_gradient() -> None:
    model = LinearModel()
    found = Gradient().attribute(model, random_inputs(2, model), axes(model))
    weights = model.weight.reshape(model.embed_dim, 16, 16)
    torch.testing.assert_close(found.values, weights.expand(2, -1, -1, -1))


def test_a_linear_model_has_absolute_weights_as_saliency() -> None:
    model = LinearModel()
    found = Saliency().attribute(model, random_inputs(1, model), axes(model))
    torch.testing.assert_close(found.values[0], model.weight.reshape(-1, 16, 16).abs())


@pytest.mark.parametrize("n_steps", [1, 5])
def test_a_linear_model_has_weights_times_difference_at_any_number_of_points(n_steps: int) -> None:
    model = LinearModel()
    inputs = random_inputs(2, model)
    found = IntegratedGradients(n_steps=n_steps, baseline="black").attribute(model, inputs, axes(model))
    black = -model.preprocessing.mean[0] / model.preprocessing.std[0]
    expected = model.weight.reshape(-1, 16, 16) * (inputs.pixel_values - black)
    torch.testing.assert_close(found.values, expected)
    assert found.baseline_embedding is not None
    total = found.embedding - found.baseline_embedding
    torch.testing.assert_close(found.values.sum(dim=(-2, -1)), total)


def test_a_linear_model_has_the_windows_share_as_occlusion() -> None:
    model = LinearModel()
    inputs = random_inputs(1, model)
    found = Occlusion(sliding_window_shapes=4, strides=4, baseline="black").attribute(model, inputs, axes(model))
    black = -model.preprocessing.mean[0] / model.preprocessing.std[0]
    terms = model.weight.reshape(-1, 16, 16) * (inputs.pixel_values[0] - black)
    shares = terms.unfold(1, 4, 4).unfold(2, 4, 4).sum(dim=(-2, -1))
    torch.testing.assert_close(found.values[0], shares.repeat_interleave(4, 1).repeat_interleave(4, 2))


@by_name
def test_a_batch_equals_one_by_one(method: Method) -> None:
    model = CurvedModel()
    inputs = random_inputs(3, model)
    together = method.attribute(model, inputs, axes(model), seed=1).values
    for i in range(3):
        alone = method.attribute(model, inputs[i : i + 1], axes(model), seed=1).values
        torch.testing.assert_close(alone[0], together[i], rtol=1e-6, atol=1e-9)


@by_name
def test_inference_mode_changes_nothing(method: Method) -> None:
    model = CurvedModel()
    inputs = random_inputs(2, model)
    outside = method.attribute(model, inputs, axes(model, normalize=True)).values
    with torch.inference_mode():
        made_inside = dataclasses.replace(inputs, pixel_values=inputs.pixel_values * 1)
        inside = method.attribute(model, made_inside, axes(model, normalize=True)).values
    assert outside.abs().max() > 0
    torch.testing.assert_close(inside, outside)


@by_name
def test_the_same_seed_gives_the_same_map_and_leaves_the_global_generator_alone(method: Method) -> None:
    model = CurvedModel()
    inputs = random_inputs(1, model)
    torch.manual_seed(5)
    first = method.attribute(model, inputs, axes(model), seed=1).values
    state = torch.get_rng_state()
    assert torch.equal(first, method.attribute(model, inputs, axes(model), seed=1).values)
    assert torch.equal(state, torch.get_rng_state())


def test_another_seed_or_another_picture_draws_otherwise() -> None:
    model = LinearModel()
    inputs = random_inputs(1, model)
    renamed = Inputs(inputs.pixel_values, inputs.content, ("f" * 64,))
    shap = GradientShap(n_samples=2)
    maps = [shap.attribute(model, i, axes(model), seed=s).values for i, s in [(inputs, 0), (inputs, 1), (renamed, 0)]]
    assert not torch.allclose(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


def test_gradient_shap_draws_from_reference_pictures(tmp_path: Path) -> None:
    model = LinearModel()
    path = tmp_path / "normal.png"
    Image.fromarray(np.full((16, 16), 128, dtype=np.uint8)).save(path)
    inputs = random_inputs(1, model)
    method = GradientShap(n_samples=3, stdevs=0.0, reference_pictures=(str(path),))
    found = method.attribute(model, inputs, axes(model))
    grey = (128 / 255 - model.preprocessing.mean[0]) / model.preprocessing.std[0]
    expected = model.weight.reshape(-1, 16, 16) * (inputs.pixel_values[0] - grey)
    torch.testing.assert_close(found.values[0], expected, rtol=1e-5, atol=1e-6)
    assert method.describe()["reference_pictures"] == [hashlib.sha256(path.read_bytes()).hexdigest()]


@pytest.mark.parametrize("method", [m for m in METHODS if m.is_linear], ids=lambda each: each.name)
def test_linear_methods_are_linear_in_the_direction(method: Method) -> None:
    model = CurvedModel()
    inputs = random_inputs(1, model)
    pair = torch.randn(2, model.embed_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mixed = torch.cat([pair, 2 * pair[:1] - 3 * pair[1:]])
    first, second, both = method.attribute(model, inputs, DirectionReadout(mixed, embed_dim=6)).values[0]
    assert (2 * first - 3 * second - both).abs().max() <= 1e-12 * both.abs().max()


def test_saliency_is_not_linear() -> None:
    model = CurvedModel()
    mixed = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, -1, 0, 0, 0, 0]], dtype=torch.float64)
    found = Saliency().attribute(model, random_inputs(1, model), DirectionReadout(mixed, embed_dim=6)).values[0]
    assert (found[0] - found[1] - found[2]).abs().max() > 0.1 * found[2].abs().max()
    assert not Saliency().is_linear


@pytest.mark.parametrize(
    "method", [IntegratedGradients(n_steps=4), GradientShap(n_samples=4), Occlusion(4, 4)], ids=lambda each: each.name
)
def test_no_attribution_falls_on_the_padding(method: Method) -> None:
    model = CurvedModel()
    inputs = random_inputs(2, model)
    content = inputs.content.clone()
    content[:, :, :5] = False
    padded = dataclasses.replace(inputs, content=content)
    values = method.attribute(model, padded, axes(model)).values
    if isinstance(method, Occlusion):
        assert values[..., :4].abs().max() <= 1e-12 * values.abs().max()  # the window that lies wholly in the padding
    else:
        assert values[..., :5].abs().max() == 0
    assert values[..., 8:].abs().max() > 0


def test_auto_points_meet_the_tolerance_where_few_do_not() -> None:
    model = CurvedModel()
    inputs = random_inputs(2, model)
    inputs = dataclasses.replace(inputs, pixel_values=inputs.pixel_values * 20)  # saturates the tanh
    readout = axes(model, normalize=True)

    def worst(method: IntegratedGradients) -> tuple[float, tuple[int, ...], tuple[bool, ...]]:
        found = method.attribute(model, inputs, readout)
        assert found.baseline_readout is not None
        difference = readout(found.embedding) - found.baseline_readout
        residual = (found.values.sum(dim=(-2, -1)) - difference).abs()
        return float((residual / difference.abs().clamp(min=0.1)).max()), found.n_steps, found.is_converged

    few, n_few, _ = worst(IntegratedGradients(n_steps=2))
    auto, n_auto, converged = worst(IntegratedGradients(n_steps="auto", max_steps=4096))
    capped, n_capped, not_converged = worst(IntegratedGradients(n_steps="auto", max_steps=3, tolerance=1e-9))
    assert n_few == (2, 2)
    assert few > 0.01
    assert auto <= 0.01
    assert converged == (True, True)
    assert min(n_auto) >= 16
    assert capped > 1e-9
    assert n_capped == (3, 3)
    assert not_converged == (False, False)


def test_windows_cover_the_frame_and_overlap_as_captum_counts() -> None:
    windows = Windows(image_size=10, size=4, stride=3)
    assert windows.n_per_side == 3
    expanded = windows.expand(torch.arange(9.0)[None, None])
    assert expanded[0, 0, 0, 0] == 0
    assert expanded[0, 0, 3, 3] == (0 + 1 + 3 + 4) / 4
    assert expanded[0, 0, 9, 9] == 8
    reaching_over = Windows(image_size=9, size=4, stride=3)
    assert reaching_over.n_per_side == 3
    assert reaching_over.expand(torch.arange(9.0)[None, None])[0, 0, 8, 8] == 8


def test_a_window_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(InputError, match=r"sliding_window_shapes is 300 px and the model-input frame 224 px"):
        Occlusion(sliding_window_shapes=300).windows(224)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
def test_a_captum_method_stated_linear_is_tested() -> None:
    model = CurvedModel()
    inputs = random_inputs(1, model)
    honest = CaptumMethod(attribution="captum.attr.DeepLift", linear=True)
    found = honest.attribute(LinearModel(), inputs, axes(model))
    assert honest.is_linear
    assert found.baseline_embedding is not None
    wrong = CaptumMethod(attribution="captum.attr.Saliency", linear=True)
    with pytest.raises(InputError, match=r"captum.attr.Saliency is stated to be linear and is off by"):
        wrong.attribute(model, inputs, axes(model))


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("captum.attr.NoSuch", "cannot be imported"),
        ("nothing", "cannot be imported"),
        ("collections.OrderedDict", "has no method 'attribute'"),
    ],
)
def test_a_wrong_dotted_path_is_refused(path: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        CaptumMethod(attribution=path)


def test_wrong_names_and_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method 'intgrad' is unknown; .* Did you mean 'integrated_gradients'\?"):
        make_method("intgrad")
    for wrong in (0, -3, "many"):
        with pytest.raises(ConfigError, match=r"n_steps is .*; it must be a positive number or auto"):
            IntegratedGradients(n_steps=wrong)
