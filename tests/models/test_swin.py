"""Variants of a picture, of which a Swin tower computes only what differs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mapstack.models import EmbeddingModel, in_precision, load_model
from mapstack.models.medclip import MedCLIP, save_random_medclip
from mapstack.models.swin import SwinVariants
from tests.toys import SMALL_TEXT, SMALL_VISION, VOCABULARY

SIZES: dict[str, dict[str, Any]] = {
    "demo": {"depths": [2, 2, 2], "num_heads": [1, 2, 4]},  # the last stage is one window, which is not shifted
    "four pixels a patch": {"patch_size": 4, "depths": [2, 2], "embed_dim": 12, "num_heads": [1, 2]},
    "no shift": {"depths": [1, 1]},
}
PADDED = {"image_size": 224, "patch_size": 8, "window_size": 6}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], MedCLIP]:
    """Return a tower of random weights and of these sizes."""

    def make(sizes: dict[str, Any]) -> MedCLIP:
        folder = tmp_path_factory.mktemp("swin")
        vision = {**SMALL_VISION, **sizes}
        save_random_medclip(
            folder, tower="vit", sizes={"vision": vision, "text": SMALL_TEXT}, vocabulary=VOCABULARY, seed=3
        )
        model = load_model("medclip-vit", folder)
        assert isinstance(model, MedCLIP)
        return model

    return make


@pytest.fixture
def picture() -> Tensor:
    return torch.rand(1, 224, 224, generator=torch.Generator().manual_seed(5))


def variants_of(picture: Tensor) -> Tensor:
    """Return the picture with a corner, the middle, an edge, a pixel and two places far apart changed, and itself."""
    variants = picture.repeat(6, 1, 1, 1)
    variants[0, :, :16, :16] = 0
    variants[1, :, 100:132, 96:112] = 0
    variants[2, :, 200:, 50:60] = 1
    variants[3, :, 77, 130] = 0
    variants[4, :, 3:9, 3:9] = 0
    variants[4, :, 180:190, 200:224] = 1
    return variants


@pytest.mark.parametrize("name", SIZES)
def test_variants_have_the_embeddings_that_the_whole_tower_gives_them(
    name: str, build: Callable[[dict[str, Any]], MedCLIP], picture: Tensor
) -> None:
    model = build(SIZES[name])
    variants = variants_of(picture)
    with torch.no_grad():
        expected, own = model.embed_images(variants), model.embed_images(picture[None])
    embed = model.variant_embedder(picture)
    found = embed(variants)
    smallest = (expected[:5] - own).abs().amax(dim=1).min()
    assert smallest > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=float(smallest) * 1e-3)
    torch.testing.assert_close(embed(variants[5:]), expected[5:])  # no group at all is run
    assert not found.requires_grad


def test_only_windows_that_a_change_has_reached_are_run(
    build: Callable[[dict[str, Any]], MedCLIP], picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(SIZES["four pixels a patch"])
    embed = model.variant_embedder(picture)
    tower: Any = model.vision_model
    counted: list[list[int]] = []
    for stage in tower.model.encoder.layers:
        for block in stage.blocks:
            n_windows: list[int] = []
            counted.append(n_windows)
            block.layernorm_before.register_forward_hook(lambda _, inputs, __, n=n_windows: n.append(len(inputs[0])))
    corner = picture[None].clone()
    corner[..., :16, :16] = 0
    embed(corner)
    # Of 64 windows in the first stage: the corner's; the four that the shift lays over it; those at the other edges
    # that the shift wraps around to, where the mask lets nothing through, are not told apart.
    assert [sum(n) for n in counted[:2]] == [1, 4]
    assert sum(counted[2]) < 16


def test_a_frame_that_needs_padding_is_run_whole(build: Callable[[dict[str, Any]], MedCLIP], picture: Tensor) -> None:
    model = build(PADDED)
    vision: Any = model.vision_model
    assert not SwinVariants.serves(vision.model, picture)
    variants = variants_of(picture)
    with torch.no_grad():
        assert torch.equal(model.variant_embedder(picture)(variants), model.embed_images(variants))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_precision_is_that_of_the_whole_tower(
    precision: str, build: Callable[[dict[str, Any]], MedCLIP], picture: Tensor
) -> None:
    model: EmbeddingModel = in_precision(build(SIZES["demo"]), precision)
    variants, picture = variants_of(picture).to(model.dtype), picture.to(model.dtype)
    found = model.variant_embedder(picture)(variants)
    with torch.no_grad():
        expected = model.embed_images(variants)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 if precision == "bf16-mixed" else 1e-12)
