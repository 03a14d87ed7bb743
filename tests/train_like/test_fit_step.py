import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizerFast

from mapstack.job_configs import FitConfig
from mapstack.models.medclip import MedCLIPText, build_medclip
from mapstack.phantom import LABELS
from tests.toys import SMALL_TEXT, SMALL_VISION, VOCABULARY
from train_like import fit as fit_module
from train_like.fit import PhantomFit, semantic_matching_loss
from train_like.phantom_data import Pair, label_vector

VISION = {**SMALL_VISION, "patch_size": 16, "embed_dim": 8, "num_heads": [2, 2]}


def loss_by_loop(logits: np.ndarray, seen: np.ndarray, said: np.ndarray, sharpness: float) -> float:
    """The mean over both ways of the mean cross-entropy, number by number."""
    similarity = np.empty(logits.shape)
    for i, j in np.ndindex(logits.shape):
        similarity[i, j] = sharpness * sum(seen[i] * said[j]) / math.sqrt(sum(seen[i] ** 2) * sum(said[j] ** 2))
    ways = []
    for scores, similar in ((logits, similarity), (logits.T, similarity.T)):
        entropies = []
        for score, like in zip(scores, similar, strict=True):
            targets = [math.exp(each) / sum(math.exp(other) for other in like) for each in like]
            logs = [each - math.log(sum(math.exp(other) for other in score)) for each in score]
            entropies.append(-sum(target * log for target, log in zip(targets, logs, strict=True)))
        ways.append(np.mean(entropies))
    return float(np.mean(ways))


@pytest.mark.parametrize("sharpness", [1.0, 10.0])
@pytest.mark.parametrize(("n_pictures", "n_texts"), [(4, 4), (5, 3), (1, 6)])
def test_loss_equals_the_loop(n_pictures: int, n_texts: int, sharpness: float) -> None:
    source = np.random.default_rng(n_pictures)
    logits = source.normal(0, 4, (n_pictures, n_texts))
    seen, said = (source.random((n, 5)) < 0.4 for n in (n_pictures, n_texts))
    seen[:, 0], said[:, 1] = True, True  # no vector is empty
    given = (torch.from_numpy(each).double() for each in (logits, seen, said))
    assert semantic_matching_loss(*given, sharpness=sharpness).item() == pytest.approx(
        loss_by_loop(logits, seen.astype(float), said.astype(float), sharpness)
    )


def test_loss_of_known_labels_in_closed_form() -> None:
    n, scale = 4, 3.0
    labels = torch.eye(n)
    for sharpness, given in ((10.0, {}), (2.0, {"sharpness": 2.0})):
        right = math.exp(sharpness) / (math.exp(sharpness) + n - 1)
        loss = semantic_matching_loss(scale * labels, labels, labels, **given)
        assert loss.item() == pytest.approx(math.log(math.exp(scale) + n - 1) - right * scale)


def test_loss_goes_both_ways() -> None:
    """Against one candidate alone there is nothing to choose: only the other way counts."""
    a, b = 1.5, -0.5
    right = 1 / (1 + math.exp(-10))
    one_way = (math.log(math.exp(a) + math.exp(b)) - right * a - (1 - right) * b) / 2
    logits, labels = torch.tensor([[a, b]]), torch.eye(2)
    assert semantic_matching_loss(logits, labels[:1], labels).item() == pytest.approx(one_way)
    assert semantic_matching_loss(logits.T, labels, labels[:1]).item() == pytest.approx(one_way)


def test_targets_are_those_of_the_similarity_of_label_vectors() -> None:
    """At equal logits the gradient is (equal share - target): it shows the targets."""
    seen = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    said = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    logits = torch.zeros(2, 2, requires_grad=True)
    semantic_matching_loss(logits, seen, said).backward()
    half, whole = 1 / (1 + math.exp(-10 / math.sqrt(2))), 1 / (1 + math.exp(-10))
    # Each logit has a share of its row and of its column, each mean over two.
    expected = [[0.5 - (half + half) / 2, 0.5 - (1 - half + 1 - whole) / 2]]
    expected += [[0.5 - (1 - whole + 1 - half) / 2, 0.5 - (whole + whole) / 2]]
    assert logits.grad is not None
    assert logits.grad.numpy() == pytest.approx(np.array(expected) / 2, abs=1e-6)


@pytest.fixture
def tokens(tmp_path: Path) -> BertTokenizerFast:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    return BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))


def untrained(tokens: BertTokenizerFast, vision: dict[str, object]) -> PhantomFit:
    torch.manual_seed(0)
    model = build_medclip("vit", {"vision": vision, "text": SMALL_TEXT})
    return PhantomFit(model, tokens, FitConfig(n_steps=100)).eval()


@pytest.fixture
def module(tokens: BertTokenizerFast) -> PhantomFit:
    """Without dropout; its image tower has seven cells a side."""
    return untrained(tokens, VISION)


@pytest.fixture
def logged(module: PhantomFit, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", values.__setitem__)
    return values


TEXTS = ["left effusion", "no nodule in the right lung, no pleural effusion", "left effusion"]


def three_pairs(n_cells: int = 7) -> list[Pair]:
    """Two texts of different lengths, one of them twice."""
    pictures, cells = torch.randn(3, 1, 224, 224), 0.2 * torch.rand(3, len(LABELS) - 1, n_cells, n_cells)
    cells[0, 2, 3:6, 2:5] = 1
    return [
        Pair(picture, label_vector([label, 2]), text, label_vector([label]), each)
        for picture, label, text, each in zip(pictures, [0, 1, 0], TEXTS, cells, strict=True)
    ]


def embed_alone(module: PhantomFit, text: str) -> Tensor:
    """By upstream's own text tower, which would take padding for words."""
    tokens = module._tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
    (embedding,) = module.model.text_model(tokens["input_ids"], tokens["attention_mask"])
    return embedding / embedding.norm()


@torch.no_grad()
def test_sentences_are_embedded_as_each_is_alone_and_as_inference_does(module: PhantomFit, tmp_path: Path) -> None:
    texts = ["left effusion", "nodule", "the heart, " * 40, TEXTS[1]]
    assert len({len(module._tokenizer(text)["input_ids"]) for text in texts}) == 4
    together = module._embed(texts)
    for text, embedding in zip(texts, together, strict=True):
        assert torch.allclose(embedding, embed_alone(module, text), atol=1e-5), text
        assert torch.allclose(module._embed([text])[0], embedding, atol=1e-5), text
    inference = MedCLIPText(module.model.text_model, 1.0, tmp_path, "none")
    assert torch.allclose(together, inference.embed_texts(texts), atol=1e-5)
    # What padding would change, so that the comparison means something.
    padded = MedCLIPText(module.model.text_model, 1.0, tmp_path, "longest")
    assert not torch.allclose(together, padded.embed_texts(texts), atol=1e-2)


def test_a_sentence_that_comes_twice_is_one_text_of_the_batch(module: PhantomFit, logged: dict[str, Tensor]) -> None:
    pairs = three_pairs()
    with torch.no_grad():
        module.training_step(pairs, 0)
        image = module.model.vision_model(torch.stack([pair.pixel_values for pair in pairs]))
        text = torch.stack([embed_alone(module, each) for each in TEXTS[:2]])
    cosines = torch.cosine_similarity(image[:, None], text[None], dim=2)
    seen, said = (torch.stack([getattr(pair, name) for pair in pairs]).numpy() for name in ("seen", "said"))
    logits = cosines.double().numpy() / 0.07  # CLIP's initial temperature
    assert logged["loss"].item() == pytest.approx(loss_by_loop(logits, seen, said[:2], sharpness=10), rel=1e-5)


def test_the_start_loss_reads_the_cells_of_each_stage_and_ends_after_two_thirds(
    tokens: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 28 patches a side, transformers tells of 14 cells, of 7, and of the same 7 after the last stage."""
    module = untrained(tokens, {**VISION, "patch_size": 8, "depths": [1, 1, 1], "num_heads": [2, 2, 2]})
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", logged.__setitem__)
    pairs = three_pairs(n_cells=14)
    with torch.no_grad():
        pictures = torch.stack([pair.pixel_values for pair in pairs]).expand(-1, 3, -1, -1)
        found = module.model.vision_model.model(pictures, output_hidden_states=True)
        stages = [found.hidden_states[1], found.hidden_states[2], found.last_hidden_state]
        told = [torch.sigmoid(read(stage)).double() for read, stage in zip(module._readers, stages, strict=True)]
    entropy = 0.0
    for chances, side, full in zip(told, (14, 7, 7), (1 / 4, 1 / 8, 1 / 8), strict=True):
        assert chances.shape == (3, side**2, len(LABELS) - 1)
        step = 14 // side
        for i, row, column, label in np.ndindex(3, side, side, len(LABELS) - 1):
            cells = pairs[i].cells[label, row * step : (row + 1) * step, column * step : (column + 1) * step]
            truth = min(1.0, float(cells.mean()) / full)
            chance = float(chances[i, side * row + column, label])
            entropy -= (truth * math.log(chance) + (1 - truth) * math.log(1 - chance)) / (3 * side**2)
    for step, share in ((0, 1.0), (20, 0.7), (66, 0.01), (67, 0.0), (99, 0.0)):
        monkeypatch.setattr(PhantomFit, "global_step", step)
        with torch.no_grad():
            whole = module.training_step(pairs, 0)
        start = fit_module._START_WEIGHT * share * entropy
        assert float(whole - logged["loss"]) == pytest.approx(start, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("patch_size", "depths", "n_cells"), [(16, [1], 7), (16, [1, 1, 1], 7), (32, [1, 1], 4)])
def test_cells_are_those_of_the_towers_first_merged_layer(
    patch_size: int, depths: list[int], n_cells: int, tokens: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swin pads what it cannot halve: of seven patches a side it makes four."""
    sizes = {"patch_size": patch_size, "window_size": 4, "depths": depths, "num_heads": [2] * len(depths)}
    module = untrained(tokens, {**VISION, **sizes})
    monkeypatch.setattr(module, "log", lambda *_: None)
    assert module.n_cells == n_cells
    if len(depths) > 1:
        found = module.model.vision_model.model(torch.zeros(1, 3, 224, 224), output_hidden_states=True)
        assert found.hidden_states[1].shape[1] == n_cells**2
    assert module.training_step(three_pairs(n_cells), 0).isfinite()


def test_the_time_before_a_stop_counts(tokens: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(fit_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    stopped, resumed = untrained(tokens, VISION), untrained(tokens, VISION)
    checkpoint: dict[str, float] = {}
    now[0] = 100.0
    stopped.on_train_start()
    now[0] = 130.0
    stopped.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    now[0] = 500.0
    resumed.on_train_start()
    now[0] = 512.0
    resumed.on_save_checkpoint(checkpoint)
    resumed.on_train_end()
    assert (resumed.seconds, checkpoint["seconds"]) == (42, 42)


def test_the_decay_of_the_average_ends_at_0_998(module: PhantomFit, monkeypatch: pytest.MonkeyPatch) -> None:
    head = module.model.vision_model.projection_head.weight
    before = head.detach().clone()
    with torch.no_grad():
        head.fill_(1000.0)
    monkeypatch.setattr(PhantomFit, "global_step", 10_000)
    module.on_train_batch_end()
    kept = module.averaged()["vision_model.projection_head.weight"]
    assert torch.allclose(kept, 0.998 * before + 0.002 * 1000, rtol=1e-4)


def test_the_closing_steps_go_on_from_the_average_without_the_start_loss(
    module: PhantomFit, logged: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.1)
    closing = module.closing()
    for name, value in closing.model.state_dict().items():
        assert torch.equal(value, module.averaged()[name]), name
        assert torch.equal(value, closing.averaged()[name]), name
    assert not torch.equal(closing.model.logit_scale, module.model.logit_scale)
    assert closing.kept_at != module.kept_at
    closing.log = logged.__setitem__  # type: ignore[assignment]
    loss = closing.training_step(three_pairs(), 0)
    assert loss == logged["loss"]


def test_the_closing_steps_alter_few_pictures_at_a_low_rate(
    tokens: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FitConfig(n_steps=100, n_closing_steps=40)
    model = untrained(tokens, VISION).model
    main, closing = (PhantomFit(model, tokens, config, is_closing=is_closing) for is_closing in (False, True))
    assert (main.n_steps, closing.n_steps) == (100, 40)
    monkeypatch.setattr(PhantomFit, "global_step", 90)
    assert (main.strength(), closing.strength()) == (1.0, 0.25)
    peaks = [
        fit.configure_optimizers()["lr_scheduler"]["scheduler"].optimizer.param_groups[0]["max_lr"]
        for fit in (main, closing)
    ]
    assert peaks == pytest.approx([1e-3, 4e-4])
