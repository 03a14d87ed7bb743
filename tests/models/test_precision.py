"""Half precision: what it leaves of a map, and that nothing else is rounded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mapstack.errors import ConfigError
from mapstack.explainer import Explainer
from mapstack.methods import CaptumMethod, Gradient, GradientShap, IntegratedGradients, Method, Occlusion
from mapstack.methods.engine import pictures_at_once, row_gradients
from mapstack.models import EmbeddingModel, in_precision, load_model
from mapstack.models.medclip import save_random_medclip
from mapstack.models.precision import float32_convolutions
from mapstack.readouts import DirectionReadout
from tests.toys import CurvedModel, random_inputs

METHODS = (Gradient(), IntegratedGradients(n_steps=4), Occlusion(sliding_window_shapes=4, strides=4))
CONVOLUTIONS = torch.backends.cudnn.conv  # torch's setting for a GPU; it can be read without one


def toy() -> EmbeddingModel:
    return CurvedModel().float()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_half_precision_changes_the_digits_of_a_map_and_not_the_map(method: Method, precision: str) -> None:
    inputs = random_inputs(2, toy())
    full, half = (Explainer(in_precision(toy(), name), method).stack(inputs) for name in ("32-true", precision))
    expected, found = full.axis_maps(), half.axis_maps()
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(2), expected.flatten(2), dim=2).min() > 0.995
    assert (found - expected).abs().max() > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_medclips_own_tower_has_maps_in_half_precision(precision: str, tmp_path: Path) -> None:
    """Its layer norms are what half precision breaks on a CPU."""
    sizes = {
        "vision": {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "patch_size": 8},
        "text": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    }
    save_random_medclip(
        tmp_path, tower="vit", sizes=sizes, vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"], seed=0
    )
    model = load_model("medclip-vit", tmp_path)
    model.vision_model.register_forward_hook(lambda *_: seen.append(CONVOLUTIONS.fp32_precision))
    seen: list[str] = []
    inputs = random_inputs(1, model)
    model.embed_images(inputs.pixel_values)
    assert seen == ["ieee"]
    readout = DirectionReadout(torch.eye(512)[:9], embed_dim=512)
    expected, found = (
        Gradient().attribute(in_precision(model, name), inputs, readout).values for name in ("32-true", precision)
    )
    assert torch.cosine_similarity(found.flatten(2), expected.flatten(2), dim=2).min() > 0.99
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_is_around_the_image_half_stays_in_single_precision() -> None:
    half = in_precision(toy(), "bf16-mixed")
    assert (half.dtype, half.precision, toy().precision) == (torch.float32, "bf16-mixed", "32-true")
    embedding = half.embed_images(random_inputs(1, half).pixel_values)
    assert embedding.dtype == torch.float32
    assert half.fingerprint == toy().fingerprint
    assert torch.equal(half.text_directions(["a"]), toy().text_directions(["a"]))
    assert in_precision(toy(), "64-true").dtype == torch.float64


class Watched(CurvedModel):
    """Notes how convolutions of float32 are set, forward and when it is pulled back."""

    def __init__(self) -> None:
        super().__init__()
        self.forward_set: set[str] = set()
        self.backward_set: set[str] = set()

    def embed_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.forward_set.add(CONVOLUTIONS.fp32_precision)
        embedding: torch.Tensor = self.tower(pixel_values)
        if embedding.requires_grad:
            embedding.register_hook(lambda _: self.backward_set.add(CONVOLUTIONS.fp32_precision))
        return embedding


@pytest.fixture
def rounding_by_torch() -> Iterator[None]:
    """Torch as it comes."""
    kept = CONVOLUTIONS.fp32_precision
    CONVOLUTIONS.fp32_precision = "tf32"
    yield
    CONVOLUTIONS.fp32_precision = kept


@pytest.mark.usefixtures("rounding_by_torch")
@pytest.mark.parametrize(
    "method",
    [
        Gradient(),
        IntegratedGradients(n_steps=2),
        IntegratedGradients(n_steps="auto"),
        GradientShap(n_samples=2),
        Occlusion(sliding_window_shapes=8, strides=8),
        CaptumMethod(attribution="captum.attr.Saliency"),
    ],
    ids=lambda method: f"{method.name}-{getattr(method, 'n_steps', '')}",
)
def test_float32_is_float32_on_every_card(method: Method) -> None:
    """From Ampere on torch rounds the factors of convolutions to TF32 where it is not told otherwise."""
    model = Watched()
    method.attribute(model, random_inputs(1, model), DirectionReadout(None, embed_dim=6))
    Explainer(model, method).stack(random_inputs(1, model))
    assert model.forward_set == {"ieee"}
    assert model.backward_set == (set() if isinstance(method, Occlusion) else {"ieee"})
    assert CONVOLUTIONS.fp32_precision == "tf32"


@pytest.mark.usefixtures("rounding_by_torch")
def test_torchs_setting_is_put_back_when_the_last_has_left() -> None:
    one, other = float32_convolutions(), float32_convolutions()  # as of two threads
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert CONVOLUTIONS.fp32_precision == "ieee"
    other.__exit__(None, None, None)
    assert CONVOLUTIONS.fp32_precision == "tf32"
    with pytest.raises(ValueError, match="broken off"), float32_convolutions():
        raise ValueError("broken off")
    assert CONVOLUTIONS.fp32_precision == "tf32"


class Steep(CurvedModel):
    """A tower whose gradients lie outside the range of float16 unless the cotangent is scaled."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.float()

    def embed_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.tower(pixel_values)
        return embedding * self.factor


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e5])
def test_float16_neither_drowns_small_gradients_nor_overflows(factor: float) -> None:
    inputs = random_inputs(1, toy())
    full, half = (
        Gradient().attribute(
            in_precision(Steep(factor), name), inputs, DirectionReadout(None, embed_dim=6, normalize=False)
        )
        for name in ("32-true", "16-mixed")
    )
    assert torch.cosine_similarity(half.values.flatten(2), full.values.flatten(2), dim=2).min() > 0.999
    assert (half.values - full.values).abs().max() <= 0.01 * full.values.abs().max()


def test_a_chunk_that_does_not_fit_is_halved_and_later_ones_are_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    model, readout = toy(), DirectionReadout(None, embed_dim=6, normalize=False)
    points = random_inputs(1, model).pixel_values
    _, whole = row_gradients(model, points, readout, rows_per_pass=6)
    expected = torch.cat([gradient for _, gradient in whole])
    asked: list[int] = []
    vmap = torch.vmap

    def vmap_of_two(function: object) -> object:
        def run(cotangents: torch.Tensor) -> torch.Tensor:
            asked.append(len(cotangents))
            if len(cotangents) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return vmap(function)(cotangents)

        return run

    monkeypatch.setattr(torch, "vmap", vmap_of_two)
    for expected_sizes in ([5, 3, 2, 2, 2], [2, 2, 2]):
        _, chunks = row_gradients(model, points, readout, rows_per_pass=5)
        assert torch.equal(torch.cat([gradient for _, gradient in chunks]), expected)
        assert asked == expected_sizes
        asked.clear()
    monkeypatch.setattr(
        torch, "vmap", lambda function: lambda cotangents: (_ for _ in ()).throw(torch.OutOfMemoryError)
    )
    with pytest.raises(torch.OutOfMemoryError):
        next(row_gradients(model, points, readout, rows_per_pass=1)[1])


class Small(CurvedModel):
    """Has memory to run so many pictures at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.asked: list[int] = []

    def embed_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(pixel_values))
        if len(pixel_values) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().embed_images(pixel_values)


@pytest.mark.parametrize(
    ("method", "n_pictures", "room", "first", "later"),
    [
        (Gradient(), 3, 1, [3, 2, 1, 1, 1], [1, 1, 1]),
        (Gradient(), 5, 4, [5, 3, 2], [3, 2]),
        (IntegratedGradients(n_steps=5, internal_batch_size=4), 1, 3, [1, 1, 4, 2, 2, 1], [1, 1, 2, 2, 1]),
        (GradientShap(n_samples=6, internal_batch_size=6), 1, 4, [1, 4, 6, 3, 3], [1, 4, 3, 3]),
        (
            Occlusion(sliding_window_shapes=4, strides=4, perturbations_per_eval=16),
            *(1, 5, [16, 8, 4, 4, 4, 4, 1, 1], [4, 4, 4, 4, 1, 1]),
        ),
    ],
    ids=["gradient", "uneven", "integrated_gradients", "gradient_shap", "occlusion"],
)
def test_a_forward_pass_that_does_not_fit_is_halved_too(
    method: Method, n_pictures: int, room: int, first: list[int], later: list[int]
) -> None:
    model, readout = Small(room), DirectionReadout(None, embed_dim=6)
    inputs = random_inputs(n_pictures, model)
    expected = method.attribute(Small(100), inputs, readout)
    for sizes in (first, later):
        model.asked.clear()
        found = method.attribute(model, inputs, readout)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found.embedding, expected.embedding)
        assert model.asked == sizes
    with pytest.raises(torch.OutOfMemoryError):
        method.attribute(Small(0), inputs, readout)


def test_windows_at_once_are_those_that_a_device_does_best_with() -> None:
    assert Occlusion().perturbations_per_eval is None
    assert [pictures_at_once(torch.device(name)) for name in ("cpu", "cuda")] == [6, 256]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision '8-true' is unknown; choose one of 32-true, 64-true"):
        in_precision(toy(), "8-true")
