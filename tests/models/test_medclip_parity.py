"""Our embeddings and logits against the `medclip` package's own classes, on the full-size architecture."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from medclip import modeling_medclip as upstream
from torch import Tensor, nn

from mapstack.models import EmbeddingModel, load_model, load_text_tower
from mapstack.models.base import normalised
from mapstack.models.medclip import _offline, save_random_medclip
from mapstack.prompts import TextGroup
from mapstack.readouts import TextReadout
from tests.toys import VOCABULARY

TEXTS = ("left pleural effusion", "no nodule in the right lung, the heart is large", "heart")


@pytest.fixture(scope="module", params=["medclip-vit", "medclip-resnet50"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingModel, nn.Module]:
    """One official-layout checkpoint of the full size, through our loader and through upstream's."""
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    save_random_medclip(
        folder,
        tower=name.removeprefix("medclip-"),
        sizes={},
        vocabulary=VOCABULARY,
        seed=1,  # type: ignore[arg-type]
    )
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert "text_model.model.embeddings.position_ids" in weights
    weights["logit_scale"] = torch.tensor(7.0)  # beyond the clamp
    torch.save(weights, folder / "pytorch_model.bin")
    vision = upstream.MedCLIPVisionModelViT if name == "medclip-vit" else upstream.MedCLIPVisionModel
    with _offline({}):
        theirs = upstream.MedCLIPModel(vision_cls=vision)
    weights.pop("text_model.model.embeddings.position_ids")
    theirs.load_state_dict(weights)
    return load_model(name, folder, prompt_padding="longest"), theirs.eval()


@pytest.fixture
def no_cuda_calls() -> object:
    """Upstream hard-codes `.cuda()`; here it stays where it is."""
    with mock.patch.object(Tensor, "cuda", lambda self: self):
        yield


def test_the_full_size_is_the_official_one(pair: tuple[EmbeddingModel, nn.Module]) -> None:
    ours, theirs = pair
    n_vit, n_resnet = 136_600_000, 132_800_000
    n_parameters = sum(each.numel() for each in theirs.parameters())
    assert min(abs(n_parameters - n_vit), abs(n_parameters - n_resnet)) < 500_000
    assert ours.embed_dim == 512


@pytest.mark.usefixtures("no_cuda_calls")
def test_embeddings_and_logits_equal_upstream(pair: tuple[EmbeddingModel, nn.Module]) -> None:
    ours, theirs = pair
    pixel_values = torch.randn(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    tokens = ours.text._tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(tokens["input_ids"], pixel_values, tokens["attention_mask"])
        image = normalised(ours.embed_images(pixel_values))
        directions = ours.text_directions(TEXTS)
    assert ours.logit_scale == pytest.approx(100.0, rel=1e-4)
    assert (image - expected["img_embeds"]).abs().max() <= 1e-6
    assert (directions / ours.logit_scale - expected["text_embeds"]).abs().max() <= 1e-6
    assert (image @ directions.T - expected["logits"]).abs().max() <= 1e-6 * 100


@pytest.mark.usefixtures("no_cuda_calls")
@pytest.mark.parametrize("ensemble", ["mean", "max"])
def test_ensembles_equal_prompt_classifier(pair: tuple[EmbeddingModel, nn.Module], ensemble: str) -> None:
    ours, theirs = pair
    classes = {"Effusion": TEXTS[:2], "Heart": TEXTS[1:]}
    pixel_values = torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(1))
    tokens = ours.text._tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    rows = {"Effusion": slice(0, 2), "Heart": slice(1, 3)}
    inputs = {
        name: {key: value[rows[name]] for key, value in tokens.items() if key != "token_type_ids"} for name in classes
    }
    classifier = upstream.PromptClassifier(theirs, ensemble=ensemble == "mean")
    with torch.no_grad():
        expected = classifier(pixel_values, inputs)["logits"]
        groups = [TextGroup(name, texts, ensemble) for name, texts in classes.items()]  # type: ignore[arg-type]
        found = TextReadout(groups, ours.text)(ours.embed_images(pixel_values))
    assert (found - expected).abs().max() <= 1e-4


def test_the_text_half_alone_gives_the_same_texts(pair: tuple[EmbeddingModel, nn.Module]) -> None:
    ours, _ = pair
    folder: Path = ours.text._folder
    name = "medclip-vit" if "vit" in folder.name else "medclip-resnet50"
    tower = load_text_tower(name, folder, prompt_padding="longest")
    assert tower.fingerprint == ours.fingerprint
    assert tower.logit_scale == ours.logit_scale
    assert torch.equal(tower.embed_texts(TEXTS), ours.text.embed_texts(TEXTS))
