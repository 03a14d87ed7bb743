import contextlib
import io
import json
import math
import multiprocessing
import multiprocessing.dummy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizerFast

from mapstack.config import FitConfig
from mapstack.images import MEDCLIP
from mapstack.models import load_model
from mapstack.models.medclip import build_medclip
from mapstack.phantom import LABELS, NO_FINDING
from mapstack.prompts import PromptSet, load_prompt_set
from tests.toys import SMALL_TEXT, SMALL_VISION, VOCABULARY
from tests.train_like.jobs import Ended
from train_like import fit as fit_module
from train_like import phantom_data
from train_like.cli import main
from train_like.fit import NOTE, PhantomFit, semantic_matching_loss, zero_shot_accuracy
from train_like.phantom_data import N_FILMS, Pair, PhantomArrays, PhantomPairs, label_vector

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "phantom.yaml"
VISION = {**SMALL_VISION, "patch_size": 16, "embed_dim": 8, "num_heads": [2, 2]}
TEXT = {name: size for name, size in SMALL_TEXT.items() if name != "vocab_size"}
N_LONG = 100


@dataclass
class Fitted:
    """A run of the command, and what was recorded in it."""

    ended: Ended
    folder: Path
    seeds: list[range] = field(default_factory=list)
    phantoms: list[PhantomArrays] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def checkpoint(self) -> dict[str, Tensor]:
        return torch.load(self.folder / "pytorch_model.bin", weights_only=True)


Run = Callable[..., Fitted]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run `fit`, by threads in place of processes, which need seconds for their imports."""

    def run_fit(*overrides: str) -> Fitted:
        folder = tmp_path_factory.mktemp("fit")
        settings = {"vision": VISION, "text": TEXT, "prompts": str(PROMPTS), "cache": str(cache), "batch_size": 8}
        (folder / "fit.yaml").write_text(json.dumps({"output": str(folder / "model"), **settings}))
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(multiprocessing, "get_context", lambda method: multiprocessing.dummy)
            fitted = recorded(patch, folder / "model")
            code = main(["fit", str(folder / "fit.yaml"), *overrides])
        fitted.ended = Ended(code, json.loads(out.getvalue().splitlines()[-1]), out.getvalue(), err.getvalue())
        return fitted

    return run_fit


def recorded(patch: pytest.MonkeyPatch, folder: Path) -> Fitted:
    """Note which phantoms are drawn and shown; of each step the loss, the learning rate and the weights after it."""
    fitted = Fitted(Ended(-1, {}, "", ""), folder)

    def noted(draw: Callable[..., PhantomArrays]) -> Callable[..., PhantomArrays]:
        def draw_and_note(n: int, *, first_seed: int, cache: Path) -> PhantomArrays:
            fitted.seeds.append(range(first_seed, first_seed + n))
            fitted.phantoms.append(draw(n, first_seed=first_seed, cache=cache))
            return fitted.phantoms[-1]

        return draw_and_note

    class Pairs(PhantomPairs):
        def __getitem__(self, index: int) -> Pair:
            fitted.shown.append(index)
            fitted.strengths.append(self.strength)
            return super().__getitem__(index)

    class Recorder(PhantomFit):
        def on_fit_start(self) -> None:
            self.note_weights()

        def log(self, name: str, value: Any, *arguments: Any, **options: Any) -> None:
            super().log(name, value, *arguments, **options)
            fitted.losses.append(value.item())
            fitted.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            self.note_weights()

        def note_weights(self) -> None:
            fitted.weights.append({name: value.clone() for name, value in self.model.state_dict().items()})

    for name in ("draw_patients", "draw_phantoms"):
        patch.setattr(fit_module, name, noted(getattr(phantom_data, name)))
    patch.setattr(fit_module, "PhantomPairs", Pairs)
    patch.setattr(fit_module, "PhantomFit", Recorder)
    return fitted


@pytest.fixture(scope="module")
def short(run: Run) -> Fitted:
    return run("n_patients=5", "n_test=8", "n_steps=3")


@pytest.fixture(scope="module")
def long(run: Run) -> Fitted:
    """Eight phantoms, shown as they are, learned by heart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom_data, "_cover", lambda picture, visible, numbers: picture)
        patch.setattr(phantom_data, "_expose", lambda picture, numbers: picture)
        return run("n_patients=2", "n_test=8", f"n_steps={N_LONG}", "learning_rate=0.003", "weight_decay=0")


@pytest.fixture(scope="module")
def prompt_set() -> PromptSet:
    return load_prompt_set(PROMPTS)


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


def names(labels: np.ndarray) -> list[str]:
    return [LABELS[label] for label in labels if label >= 0] or [NO_FINDING]


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
def module(tmp_path: Path) -> PhantomFit:
    """Untrained, without dropout; its image tower has seven cells a side."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    model = build_medclip("vit", {"vision": VISION, "text": SMALL_TEXT})
    return PhantomFit(model, tokenizer, FitConfig(n_steps=100)).eval()


@pytest.fixture
def logged(module: PhantomFit, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", values.__setitem__)
    return values


TEXTS = ["left effusion", "no nodule", "left effusion"]


def three_pairs() -> list[Pair]:
    """Two texts, one of them twice."""
    pictures, cells = torch.randn(3, 1, 224, 224), torch.rand(3, len(LABELS) - 1, 7, 7)
    return [
        Pair(picture, label_vector([label, 2]), text, label_vector([label]), each)
        for picture, label, text, each in zip(pictures, [0, 1, 0], TEXTS, cells, strict=True)
    ]


def test_a_sentence_that_comes_twice_is_one_text_of_the_batch(module: PhantomFit, logged: dict[str, Tensor]) -> None:
    pairs = three_pairs()
    with torch.no_grad():
        module.training_step(pairs, 0)
        image = module.model.vision_model(torch.stack([pair.pixel_values for pair in pairs]))
        tokens = module._tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
        text = module.model.text_model(tokens["input_ids"], tokens["attention_mask"])
    cosines = torch.cosine_similarity(image[:, None], text[None], dim=2)
    seen, said = (torch.stack([getattr(pair, name) for pair in pairs]).numpy() for name in ("seen", "said"))
    logits = cosines.double().numpy() / 0.07  # CLIP's initial temperature
    assert logged["loss"].item() == pytest.approx(loss_by_loop(logits, seen, said[:2], sharpness=10), rel=1e-5)


def test_the_start_loss_reads_the_cells_and_ends_after_two_thirds(
    module: PhantomFit, logged: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = three_pairs()
    with torch.no_grad():
        pictures = torch.stack([pair.pixel_values for pair in pairs]).expand(-1, 3, -1, -1)
        layer = module.model.vision_model.model(pictures).last_hidden_state
        told = torch.sigmoid(module._read_cells(layer)).double().numpy()
    entropy = 0.0
    for i, row, column in np.ndindex(3, 7, 7):
        for label, chance in enumerate(told[i, 7 * row + column]):
            truth = float(pairs[i].cells[label, row, column])
            entropy -= truth * math.log(chance) + (1 - truth) * math.log(1 - chance)
    for step, share in ((0, 1.0), (20, 0.7), (66, 0.01), (67, 0.0), (99, 0.0)):
        monkeypatch.setattr(PhantomFit, "global_step", step)
        with torch.no_grad():
            whole = module.training_step(pairs, 0)
        start = fit_module._START_WEIGHT * share * entropy / (3 * 7 * 7)
        assert float(whole - logged["loss"]) == pytest.approx(start, rel=1e-4, abs=1e-5)


def test_the_command_tells_what_it_made(short: Fitted) -> None:
    assert short.ended.code == 0
    assert short.ended.out.count("\n") == 1
    line = short.ended.line
    assert (line["command"], line["status"], line["output"]) == ("fit", "done", str(short.folder))
    sizes = {path.name: path.stat().st_size for path in short.folder.iterdir()}
    assert sizes.keys() == {"pytorch_model.bin", "config.json", "vocab.txt"}
    assert line["bytes"] == sum(sizes.values())
    assert 0 <= line["seconds"] < 60
    shown = {label for labels in short.phantoms[1].labels for label in names(labels)}
    assert line["accuracy"].keys() == {"all", *shown}
    assert f"loss {short.losses[2]:.3f}" in short.ended.err
    assert "3/3" in short.ended.err


def test_the_checkpoint_has_the_official_layout(short: Fitted) -> None:
    model = load_model("medclip-vit", short.folder)
    assert model.note == NOTE
    assert model.embed_images(torch.zeros(1, 1, 224, 224)).shape == (1, 512)
    sizes = json.loads((short.folder / "config.json").read_text())
    vocabulary = (short.folder / "vocab.txt").read_text().splitlines()
    assert sizes["vision"] == VISION
    assert sizes["text"] == {**TEXT, "vocab_size": len(vocabulary)}
    ours, upstream = short.checkpoint, build_medclip("vit", sizes).state_dict()
    assert {name: ours[name].shape for name in ours} == {name: upstream[name].shape for name in upstream}


def test_no_phantom_is_trained_on_and_tested_on(short: Fitted) -> None:
    train, test = short.seeds
    assert (len(train), len(test)) == (5, 8)
    assert [len(phantoms) for phantoms in short.phantoms] == [5 * N_FILMS, 8]
    assert not set(train) & set(test)
    assert test.start - train.start > 1_000_000  # nor would those of a large training set be


def test_a_batch_holds_whole_patients(short: Fitted) -> None:
    patients = [short.shown[i : i + N_FILMS] for i in range(0, 3 * 8, N_FILMS)]
    assert all(films == list(range(films[0], films[0] + N_FILMS)) for films in patients)
    firsts = [films[0] for films in patients[:4]]
    assert (len(set(firsts)), firsts == sorted(firsts)) == (4, False)


def test_the_vocabulary_has_every_word(short: Fitted, prompt_set: PromptSet) -> None:
    tokenizer = BertTokenizerFast(vocab_file=str(short.folder / "vocab.txt"))
    sentences = [text for entry in prompt_set.classes for text in (entry.label, *entry.prompts)]
    sentences += [sentence for phantoms in short.phantoms for row in phantoms.sentences for sentence in row]
    for sentence in sentences:
        tokens = tokenizer.tokenize(sentence)
        assert "".join(tokens) == sentence.lower().replace(" ", "")
        assert "[UNK]" not in tokens
        assert not any(token.startswith("##") for token in tokens)


def test_training_lowers_the_loss_and_what_is_kept_knows_the_phantoms(long: Fitted, prompt_set: PromptSet) -> None:
    assert len(long.losses) == N_LONG
    assert np.mean(long.losses[:3]) == pytest.approx(math.log(8), abs=0.3)  # chance
    assert np.mean(long.losses[-10:]) < np.mean(long.losses[:3]) - 0.5
    assert zero_shot_accuracy(long.folder, long.phantoms[0], prompt_set)["all"] > 0.4  # one class for all: 0.2


def test_pictures_are_altered_more_and_more(long: Fitted) -> None:
    of_batches = np.array(long.strengths[8::8])  # the first is drawn before the first step
    expected = np.interp(np.arange(1, N_LONG) / N_LONG, [fit_module._PLAIN, fit_module._ALTERED], [0, 1])
    assert of_batches == pytest.approx(expected, abs=0.05)
    assert (of_batches.min(), of_batches.max()) == (0, 1)


def test_the_rate_rises_for_a_tenth_of_the_steps(long: Fitted) -> None:
    assert long.rates.index(max(long.rates)) == N_LONG // 10 - 1
    assert max(long.rates) == pytest.approx(0.003)
    assert long.rates[0] < 0.003 / 20
    assert long.rates[-1] < 0.003 / 20


def test_what_is_kept_is_the_running_average(long: Fitted) -> None:
    average = {name: value for name, value in long.weights[0].items() if value.is_floating_point()}
    for step, weights in enumerate(long.weights[1:], 1):
        decay = (1 + step) / (10 + step)
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
    for name, value in average.items():
        assert torch.allclose(long.checkpoint[name], value, rtol=1e-4, atol=1e-6), name
    head = "vision_model.projection_head.weight"
    assert not torch.allclose(long.checkpoint[head], long.weights[-1][head], rtol=1e-2)


def test_the_decay_of_the_average_ends_at_0_998(module: PhantomFit, monkeypatch: pytest.MonkeyPatch) -> None:
    head = module.model.vision_model.projection_head.weight
    before = head.detach().clone()
    with torch.no_grad():
        head.fill_(1000.0)
    monkeypatch.setattr(PhantomFit, "global_step", 10_000)
    module.on_train_batch_end()
    kept = module.averaged()["vision_model.projection_head.weight"]
    assert torch.allclose(kept, 0.998 * before + 0.002 * 1000, rtol=1e-4)


def test_the_seed_decides_the_weights(run: Run, short: Fitted) -> None:
    again = run("n_patients=5", "n_test=8", "n_steps=3")
    assert again.losses == short.losses
    assert again.ended.line["accuracy"] == short.ended.line["accuracy"]
    for name, value in again.checkpoint.items():
        assert torch.equal(value, short.checkpoint[name]), name
    other = run("n_patients=2", "n_test=1", "n_steps=1", "seed=1")
    assert other.seeds[0].start == 1
    first = "vision_model.model.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(again.weights[0][first], short.weights[0][first])
    assert not torch.equal(other.weights[0][first], short.weights[0][first])


def test_accuracy_is_the_share_of_findings_of_films_whose_best_class_is_true(
    long: Fitted, short: Fitted, prompt_set: PromptSet
) -> None:
    films = short.phantoms[0]  # 20: a batch of 16, and an uneven one
    model = load_model("medclip-vit", long.folder)
    prompts = {entry.label: model.text_directions(entry.prompts) for entry in prompt_set.classes}
    hits: dict[str, list[bool]] = {}
    for pixels, labels in zip(films.pixels, films.labels, strict=True):
        (embedding,) = model.embed_images(MEDCLIP.normalize(torch.from_numpy(pixels / 255).float()[None, None]))
        logits = {label: float((texts @ embedding).mean() / embedding.norm()) for label, texts in prompts.items()}
        best = max(logits, key=lambda label: logits[label])
        for label in names(labels):
            hits.setdefault(label, []).append(best in names(labels))
    everything = [hit for each in hits.values() for hit in each]
    assert len(everything) > len(films) == 20
    assert set(everything) == {False, True}
    assert NO_FINDING in hits
    expected = {"all": np.mean(everything), **{label: np.mean(each) for label, each in hits.items()}}
    assert zero_shot_accuracy(long.folder, films, prompt_set) == pytest.approx(expected)
