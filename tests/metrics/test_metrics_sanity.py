import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from transformers import CLIPConfig, CLIPModel

from mapstack.errors import InputError
from mapstack.images import MEDCLIP, Preprocessing
from mapstack.metrics.sanity import MAX_STAGES, cascade, stage_names
from mapstack.models import EmbeddingModel
from mapstack.models.medclip import build_medclip
from tests.toys import SMALL_TEXT, CurvedModel, LinearModel, SeededText

SWIN_STAGES = [
    "vision_model.projection_head",
    "vision_model.model.layernorm",
    "vision_model.model.encoder.layers.1",
    "vision_model.model.encoder.layers.0",
    "vision_model.model.embeddings.norm",
    "vision_model.model.embeddings.patch_embeddings.projection",
]


class Tower(EmbeddingModel):
    """An image tower with stand-in texts."""

    def __init__(self, vision_model: nn.Module, preprocessing: Preprocessing = MEDCLIP) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.preprocessing = preprocessing
        self.embed_dim = 512
        self.text = SeededText(512)
        self.freeze()

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        if isinstance(self.vision_model, CLIPModel):
            answer: Tensor = self.vision_model.get_image_features(pixel_values)
        else:
            answer = self.vision_model(pixel_values)
        return answer


def swin(n_stages: int, patch_size: int) -> Tower:
    sizes = {"patch_size": patch_size, "embed_dim": 8, "depths": [2] * n_stages, "num_heads": [2] * n_stages}
    return Tower(build_medclip("vit", {"vision": sizes, "text": SMALL_TEXT}).vision_model)


@pytest.fixture(scope="module")
def trained(small_model: EmbeddingModel) -> EmbeddingModel:
    """Every parameter away from what an initialiser gives: norms of one and biases of zero included."""
    model = copy.deepcopy(small_model)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    return model


@pytest.fixture(scope="module")
def steps(trained: EmbeddingModel) -> list[tuple[str, EmbeddingModel]]:
    return list(cascade(trained, seed=3))


def changed(model: EmbeddingModel, other: EmbeddingModel) -> set[str]:
    weights = other.state_dict()
    return {name for name, values in model.state_dict().items() if not torch.equal(values, weights[name])}


def parameters_of(model: EmbeddingModel, *stages: str) -> set[str]:
    names = {name for name, _ in model.named_parameters()}
    return {name for name in names if any(name.startswith(f"{stage}.") for stage in stages)}


def test_each_step_randomises_one_more_stage_and_nothing_else(
    trained: EmbeddingModel, steps: list[tuple[str, EmbeddingModel]]
) -> None:
    assert [name for name, _ in steps] == SWIN_STAGES
    for number, (_, model) in enumerate(steps):
        assert changed(model, trained) == parameters_of(trained, *SWIN_STAGES[: number + 1])
    assert changed(steps[-1][1], trained) == parameters_of(trained, "vision_model")


def test_what_a_step_randomised_stays_as_it_is(steps: list[tuple[str, EmbeddingModel]]) -> None:
    for number in range(1, len(steps)):
        (_, before), (name, after) = steps[number - 1 : number + 1]
        assert changed(after, before) == parameters_of(after, name)


def test_the_trained_model_is_not_touched(trained: EmbeddingModel, small_model: EmbeddingModel) -> None:
    before = {name: values.clone() for name, values in trained.state_dict().items()}
    for _, model in cascade(trained):
        assert model is not trained
        assert model.text is trained.text  # the directions explained stay
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not model.training
    assert all(torch.equal(values, before[name]) for name, values in trained.state_dict().items())
    assert not any(module._forward_pre_hooks for module in trained.modules())


def test_the_seed_decides_the_weights_and_the_global_draws_do_not_move(
    trained: EmbeddingModel, steps: list[tuple[str, EmbeddingModel]]
) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    again = list(cascade(trained, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    for (_, first), (_, second) in zip(steps, again, strict=True):
        assert not changed(first, second)
    other = next(cascade(trained, seed=4))[1]
    assert changed(other, steps[0][1]) == parameters_of(trained, "vision_model.projection_head")


def test_new_weights_are_those_of_an_untrained_module(steps: list[tuple[str, EmbeddingModel]]) -> None:
    weights = steps[-1][1].state_dict()
    norm = "vision_model.model.layernorm"
    assert torch.equal(weights[f"{norm}.weight"], torch.ones(48))
    assert torch.equal(weights[f"{norm}.bias"], torch.zeros(48))
    head = weights["vision_model.projection_head.weight"]
    assert head.abs().max() <= 48**-0.5  # uniform within 1 / sqrt(fan-in)
    assert head.std() == pytest.approx(48**-0.5 / 3**0.5, rel=0.02)
    table = weights["vision_model.model.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"]
    assert table.std() == pytest.approx(0.02, rel=0.15)
    # Two modules of the same shape do not get the same values.
    blocks = "vision_model.model.encoder.layers.0.blocks.0.attention.self"
    assert not torch.equal(weights[f"{blocks}.query.weight"], weights[f"{blocks}.key.weight"])


def test_the_embedding_loses_what_was_learned(trained: EmbeddingModel, steps: list[tuple[str, EmbeddingModel]]) -> None:
    pictures = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        known = trained.embed_images(pictures)
        for _, model in steps:
            embedding = model.embed_images(pictures)
            assert embedding.isfinite().all()
            assert torch.cosine_similarity(known, embedding).abs().max() < 0.3


def test_stages_of_the_towers() -> None:
    for n_stages, patch_size in ((3, 8), (4, 4)):
        names = [name.removeprefix("vision_model.") for name in stage_names(swin(n_stages, patch_size))]
        assert names == [
            "projection_head",
            "model.layernorm",
            *(f"model.encoder.layers.{stage}" for stage in reversed(range(n_stages))),
            "model.embeddings.norm",
            "model.embeddings.patch_embeddings.projection",
        ]
        assert len(names) <= MAX_STAGES

    resnet = Tower(resnet18(weights=None), Preprocessing(32, (0.5,) * 3, (0.5,) * 3, fit="pad"))
    assert [name.removeprefix("vision_model.") for name in stage_names(resnet)] == [
        *("fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1")
    ]
    assert stage_names(CurvedModel()) == ["tower.3", "tower.0"]


def test_the_text_half_of_clip_is_no_stage() -> None:
    sides = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 12}
    config = CLIPConfig(vision_config={**sides, "image_size": 16, "patch_size": 8}, text_config=sides)
    model = Tower(CLIPModel(config), Preprocessing(16, (0.5,) * 3, (0.5,) * 3, fit="crop"))
    assert [name.removeprefix("vision_model.") for name in stage_names(model)] == [
        "visual_projection",
        "vision_model.post_layernorm",
        "vision_model.encoder.layers",
        "vision_model.pre_layrnorm",
        "vision_model.embeddings",
    ]
    name, randomised = list(cascade(model))[-1]
    assert name == "vision_model.vision_model.embeddings"
    assert not any("text" in each or "logit_scale" in each for each in changed(randomised, model))


def test_a_model_without_modules_is_refused() -> None:
    with pytest.raises(InputError, match="image half of LinearModel has no module with parameters"):
        next(cascade(LinearModel()))
