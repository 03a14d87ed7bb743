import contextlib
import io
import json
import math
import multiprocessing
import multiprocessing.dummy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizerFast

from mapstack.errors import ConfigError
from mapstack.images import MEDCLIP
from mapstack.job_configs import FitConfig
from mapstack.models import load_model
from mapstack.models.medclip import build_medclip
from mapstack.phantom import LABELS, NO_FINDING
from mapstack.prompts import PromptSet, load_prompt_set
from tests.toys import SMALL_TEXT, SMALL_VISION
from tests.train_like.jobs import Ended
from train_like import fit as fit_module
from train_like import phantom_data
from train_like.cli import main
from train_like.fit import PhantomFit, semantic_matching_loss, zero_shot_accuracy
from train_like.model_card import NOTE
from train_like.phantom_data import N_FILMS, Pair, PhantomArrays, PhantomPairs

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "phantom.yaml"
VISION = {**SMALL_VISION, "patch_size": 16, "embed_dim": 8, "num_heads": [2, 2]}
TEXT = {name: size for name, size in SMALL_TEXT.items() if name != "vocab_size"}
N_SHORT, N_LONG = 20, 100  # the fewest that are allowed, and enough to learn a few phantoms


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
    return run("n_patients=5", "n_test=8", f"n_steps={N_SHORT}")


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


def names(labels: np.ndarray) -> list[str]:
    return [LABELS[label] for label in labels if label >= 0] or [NO_FINDING]


def is_average(kept: dict[str, Tensor], start: dict[str, Tensor], steps: list[tuple[int, dict[str, Tensor]]]) -> bool:
    average = {name: value for name, value in start.items() if value.is_floating_point()}
    for step, weights in steps:
        decay = (1 + step) / (10 + step)
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
    return all(torch.allclose(kept[name], value, rtol=1e-4, atol=1e-6) for name, value in average.items())


def test_the_command_tells_what_it_made(short: Fitted) -> None:
    assert short.ended.code == 0
    assert short.ended.out.count("\n") == 1
    line = short.ended.line
    assert (line["command"], line["status"], line["output"]) == ("fit", "done", str(short.folder))
    sizes = {path.name: path.stat().st_size for path in short.folder.iterdir()}
    assert sizes.keys() == {"pytorch_model.bin", "config.json", "vocab.txt", "README.md"}
    assert line["bytes"] == sum(sizes.values())
    assert 0 <= line["seconds"] < 60
    shown = {label for labels in short.phantoms[1].labels for label in names(labels)}
    assert line["accuracy"].keys() == {"all", *shown}
    assert f"loss {short.losses[-1]:.3f}" in short.ended.err
    assert f"{N_SHORT}/{N_SHORT}" in short.ended.err


def test_the_card_tells_how_it_was_made_and_how_good_it_is(short: Fitted) -> None:
    card = (short.folder / "README.md").read_text()
    accuracy = short.ended.line["accuracy"]
    rows = [row.strip("| ").split(" | ") for row in card.splitlines() if row.endswith("% |")]
    assert {label: float(share.rstrip("%")) for label, share in rows} == pytest.approx(
        {label: 100 * share for label, share in accuracy.items() if label != "all"}, abs=0.06
    )
    n_parameters = sum(value.numel() for name, value in short.checkpoint.items() if "index" not in name)
    for fact in (
        f"**It was {NOTE}.**",
        f"{n_parameters / 1e6:.2f} million parameters",
        f"5 patients with {N_FILMS} films each",
        f"{N_SHORT} steps of 8 films",
        "rate up to 0.001, averaged weights, seed 0;",
        "Share of 8 phantoms of other seeds",
        f"one that the phantom has: **{accuracy['all']:.1%}**",
    ):
        assert fact in card


def test_a_fit_that_was_stopped_goes_on(run: Run, short: Fitted, cache: Path) -> None:
    sizes = ("n_patients=5", "n_test=8", f"n_steps={N_SHORT}")
    n_left = iter(range(12))

    def stop_at_the_13th_step(*arguments: Tensor) -> Tensor:
        if next(n_left, None) is None:
            raise OSError("stopped")
        return semantic_matching_loss(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "_KEEP_EVERY", 5)
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(fit_module, "semantic_matching_loss", stop_at_the_13th_step)
            stopped = run(*sizes)
        assert (stopped.ended.code, len(stopped.losses)) == (4, 12)
        assert len(list(cache.glob("*.ckpt"))) == 1
        resumed = run(*sizes, f"output={stopped.folder}")
    assert (resumed.ended.code, resumed.ended.line["output"]) == (0, str(stopped.folder))
    assert resumed.rates == short.rates[10:]
    # The weights go on exactly; of the average, the step after which it was kept may be missing.
    steps = list(enumerate([*stopped.weights[1:11], *resumed.weights[1:]], 1))
    assert any(is_average(stopped.checkpoint, stopped.weights[0], seen) for seen in (steps, steps[:9] + steps[10:]))
    assert not list(cache.glob("*.ckpt"))  # the next one starts anew


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
    patients = [short.shown[i : i + N_FILMS] for i in range(0, len(short.shown), N_FILMS)]
    assert len(patients) == N_SHORT * 8 / N_FILMS
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
    of_batches = np.array(long.strengths).reshape(N_LONG, 8)
    assert (of_batches == of_batches[:, :1]).all()
    # A batch may be fetched in the step before.
    schedule = np.interp(np.arange(-1, N_LONG) / N_LONG, [fit_module._PLAIN, fit_module._ALTERED], [0, 1])
    assert (schedule[:-1] - 1e-6 <= of_batches[:, 0]).all()
    assert (of_batches[:, 0] <= schedule[1:] + 1e-6).all()
    assert (of_batches[0, 0], of_batches[-1, 0]) == (0, 1)


def test_the_rate_rises_for_a_tenth_of_the_steps(long: Fitted) -> None:
    assert long.rates.index(max(long.rates)) == N_LONG // 10 - 1
    assert max(long.rates) == pytest.approx(0.003)
    assert long.rates[0] < 0.003 / 20
    assert long.rates[-1] < 0.003 / 20


def test_what_is_kept_is_the_running_average(long: Fitted) -> None:
    assert is_average(long.checkpoint, long.weights[0], list(enumerate(long.weights[1:], 1)))
    head = "vision_model.projection_head.weight"
    assert not torch.allclose(long.checkpoint[head], long.weights[-1][head], rtol=1e-2)


def test_the_seed_decides_the_weights(run: Run, short: Fitted) -> None:
    again = run("n_patients=5", "n_test=8", f"n_steps={N_SHORT}")
    assert again.losses == short.losses
    assert again.ended.line["accuracy"] == short.ended.line["accuracy"]
    for name, value in again.checkpoint.items():
        assert torch.equal(value, short.checkpoint[name]), name
    other = run("n_patients=2", "n_test=1", f"n_steps={N_SHORT}", "seed=1")
    assert other.seeds[0].start == 1
    first = "vision_model.model.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(again.weights[0][first], short.weights[0][first])
    assert not torch.equal(other.weights[0][first], short.weights[0][first])


def test_accuracy_is_the_share_of_films_whose_best_class_is_true_and_of_each_class_its_recall(
    long: Fitted, short: Fitted, prompt_set: PromptSet
) -> None:
    films = short.phantoms[0]  # 20: a batch of 16, and an uneven one
    model = load_model("medclip-vit", long.folder)
    prompts = {entry.label: model.text_directions(entry.prompts) for entry in prompt_set.classes}
    labels, chosen = np.full((20, 2), -1), set()
    hits: dict[str, list[bool]] = {}
    for i, pixels in enumerate(films.pixels):
        (embedding,) = model.embed_images(MEDCLIP.normalize(torch.from_numpy(pixels / 255).float()[None, None]))
        logits = {label: float((texts @ embedding).mean() / embedding.norm()) for label, texts in prompts.items()}
        best = max(logits, key=lambda label: logits[label])
        chosen.add(best)
        # Films as if every second had what it is taken for, together with something else; the others not.
        is_hit, other = i % 2 == 0, LABELS[(LABELS.index(best) + 1 + i % 6) % 7]
        true = [other] if not is_hit else [] if best == NO_FINDING else [best, other]
        labels[i, : len(true)] = [LABELS.index(label) for label in true]
        for label in true or [NO_FINDING]:
            hits.setdefault(label, []).append(is_hit)
    assert len(chosen) > 1
    expected = {"all": 0.5, **{label: np.mean(each) for label, each in hits.items()}}
    assert zero_shot_accuracy(long.folder, replace(films, labels=labels), prompt_set) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((f"n_steps={N_SHORT - 1}",), "n_steps is 19; it must be at least 20; correct it."),
        (("n_patients=2", "batch_size=9"), "n_patients 2 give 8 films, fewer than batch_size 9; "),
        (("n_patients=0",), "n_patients is 0; it must be at least 1; correct it."),
        (("n_test=0",), "n_test is 0; it must be at least 1; correct it."),
    ],
)
def test_too_little_to_train_on_is_refused_before_anything_is_drawn(
    run: Run, overrides: tuple[str, ...], sentence: str
) -> None:
    refused = run("n_patients=5", "n_test=8", f"n_steps={N_SHORT}", *overrides)
    assert (refused.ended.code, refused.ended.line["status"]) == (2, "wrong_use")
    assert sentence in refused.ended.line["error"]
    assert refused.ended.err == f"fit: {refused.ended.line['error']}\n"
    assert not refused.seeds
    assert not refused.folder.exists()


def test_the_fewest_films_are_a_batch() -> None:
    """The rule's "4" is the number of a patient's films."""
    assert FitConfig(n_patients=3, batch_size=3 * N_FILMS).n_patients == 3
    with pytest.raises(ConfigError, match=f"give {3 * N_FILMS} films, fewer than batch_size {3 * N_FILMS + 1};"):
        FitConfig(n_patients=3, batch_size=3 * N_FILMS + 1)
