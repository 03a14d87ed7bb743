import multiprocessing
import multiprocessing.dummy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mapstack.images import MEDCLIP
from mapstack.phantom import LABELS, NO_FINDING, Phantom, phantom
from mapstack.prompts import PromptSet, load_prompt_set
from train_like import phantom_data
from train_like.phantom_data import (
    N_FILMS,
    Pair,
    PatientOrder,
    PhantomArrays,
    PhantomPairs,
    draw_patients,
    draw_phantoms,
    label_vector,
)

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "phantom.yaml"
FIRST_SEED, N = 100, 12
SIDE, N_CELLS = 224, 7


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def phantoms(cache: Path) -> PhantomArrays:
    """Drawn by processes, as a training run draws them."""
    return draw_phantoms(N, first_seed=FIRST_SEED, cache=cache)


@pytest.fixture(scope="module")
def prompt_set() -> PromptSet:
    return load_prompt_set(PROMPTS)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw without the seconds that a new process needs for its imports."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: multiprocessing.dummy)


def unpacked(masks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The masks of one film, `[2, 224, 224]`."""
    return np.unpackbits(masks, axis=1).reshape(2, SIDE, SIDE).astype(bool)


def noisy_phantom(labels: Sequence[int], masks: Sequence[NDArray[np.bool_]]) -> PhantomArrays:
    """One picture, neither black nor white anywhere, none of whose pixels tells of its neighbours."""
    pixels = np.random.default_rng(0).integers(25, 231, (1, SIDE, SIDE), dtype=np.uint8)
    packed = np.zeros((1, 2, SIDE * SIDE // 8), np.uint8)
    numbers = np.full((1, 2), -1)
    for i, (label, mask) in enumerate(zip(labels, masks, strict=True)):
        packed[0, i], numbers[0, i] = np.packbits(mask), label
    return PhantomArrays(pixels, packed, numbers, [[f"sentence {i}" for i in range(max(len(labels), 1))]])


def rows(first: int, last: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[first:last] = True
    return mask


def expected_sum(first: int, last: int) -> float:
    """Of the cells of a finding that is seen in these rows."""
    side = SIDE // N_CELLS
    n_rows = [len(range(max(first, top), min(last, top + side))) for top in range(0, SIDE, side)]
    return sum(N_CELLS * n / side for n in n_rows)


def draw_pairs(pairs: PhantomPairs, index: int, n: int) -> Iterator[Pair]:
    torch.manual_seed(0)
    for _ in range(n):
        yield pairs[index]


def names(vector: torch.Tensor) -> set[str]:
    assert set(vector.tolist()) <= {0.0, 1.0}
    return {LABELS[i] for i in vector.nonzero().flatten().tolist()}


def test_phantoms_are_those_of_successive_seeds(phantoms: PhantomArrays) -> None:
    assert len(phantoms) == N
    films = [phantom(seed, size=SIDE) for seed in range(FIRST_SEED, FIRST_SEED + N)]
    assert {len(film.findings) for film in films} == {0, 1, 2}
    for i, film in enumerate(films):
        n_findings = len(film.findings)
        assert np.array_equal(phantoms.pixels[i], film.pixels)
        assert [LABELS[label] for label in phantoms.labels[i, :n_findings]] == [each.label for each in film.findings]
        assert (phantoms.labels[i, n_findings:] == -1).all()
        masks = unpacked(phantoms.masks[i])
        for mask, finding in zip(masks, film.findings, strict=False):
            assert np.array_equal(mask, finding.mask)
        assert not masks[n_findings:].any()
        assert phantoms.sentences[i] == ([each.prompt for each in film.findings] or [film.report])


@pytest.mark.usefixtures("in_threads")
def test_films_of_a_patient_differ_in_their_findings_and_in_nothing_else(tmp_path: Path) -> None:
    n_patients = 3
    films = draw_patients(n_patients, first_seed=7, cache=tmp_path)
    assert len(films) == n_patients * N_FILMS
    sets = [tuple(LABELS[label] for label in row if label >= 0) for row in films.labels]
    for patient in range(n_patients):
        own = sets[patient * N_FILMS : (patient + 1) * N_FILMS]
        assert own[0] == ()
        assert len({label for labels in own for label in labels}) == sum(map(len, own)) >= N_FILMS - 1
        for i, labels in enumerate(own, patient * N_FILMS):
            film = phantom(7 + patient, size=SIDE, labels=labels)
            assert np.array_equal(films.pixels[i], film.pixels)
            assert films.sentences[i] == ([each.prompt for each in film.findings] or [film.report])
            is_changed = films.pixels[i] != films.pixels[patient * N_FILMS]
            assert bool(is_changed.any()) == bool(labels)
            assert not (is_changed & ~unpacked(films.masks[i]).any(axis=0)).any()
    assert len(set(sets)) > N_FILMS  # not the same for all


@pytest.mark.usefixtures("in_threads")
def test_phantoms_and_patients_are_not_mixed_up(tmp_path: Path) -> None:
    lengths = [len(draw(1, first_seed=7, cache=tmp_path)) for draw in (draw_phantoms, draw_patients, draw_phantoms)]
    assert lengths == [1, N_FILMS, 1]


def test_a_patients_films_come_together_and_patients_in_random_order() -> None:
    order = PatientOrder(5 * N_FILMS)
    torch.manual_seed(0)
    drawn = [list(order) for _ in range(3)]
    for films in drawn:
        assert len(films) == len(order)
        patients = [films[i : i + N_FILMS] for i in range(0, len(films), N_FILMS)]
        assert sorted(patients) == [list(range(first, first + N_FILMS)) for first in range(0, 5 * N_FILMS, N_FILMS)]
    assert drawn[0] != drawn[1] != drawn[2]
    torch.manual_seed(0)
    assert list(order) == drawn[0]


def test_phantoms_are_drawn_once(phantoms: PhantomArrays, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(method: str) -> NoReturn:
        raise AssertionError("phantoms are drawn")

    monkeypatch.setattr(multiprocessing, "get_context", refuse)
    again = draw_phantoms(N, first_seed=FIRST_SEED, cache=cache)
    assert again.sentences == phantoms.sentences
    for name in ("pixels", "masks", "labels"):
        assert np.array_equal(getattr(again, name), getattr(phantoms, name))
    for n, first_seed in ((N - 1, FIRST_SEED), (N, FIRST_SEED + 1)):
        with pytest.raises(AssertionError, match="phantoms are drawn"):
            draw_phantoms(n, first_seed=first_seed, cache=cache)


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize(("draw", "n_films"), [(draw_phantoms, 1), (draw_patients, N_FILMS)])
def test_what_was_drawn_by_other_code_is_drawn_again(
    draw: Callable[..., PhantomArrays], n_films: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_earlier(seed: int, **options: Any) -> Phantom:
        film = phantom(seed, **options)
        return replace(film, pixels=film.pixels // 2)

    with monkeypatch.context() as patch:
        patch.setattr(phantom_data, "phantom", draw_earlier)
        earlier = draw(1, first_seed=3, cache=tmp_path)
    drawn = draw(1, first_seed=3, cache=tmp_path)
    assert len(drawn) == n_films
    assert np.array_equal(earlier.pixels, drawn.pixels // 2)
    assert (drawn.pixels.max(axis=(1, 2)) > 128).all()
    written = [path.stat().st_mtime_ns for path in tmp_path.iterdir()]
    draw(1, first_seed=3, cache=tmp_path)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == written  # once is enough


@pytest.mark.usefixtures("in_threads")
def test_what_an_interrupted_drawing_left_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk(path: Path, **_: Any) -> NoReturn:
        path.write_bytes(b"PK")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fill_the_disk)
        with pytest.raises(OSError, match="no space left"):
            draw_phantoms(1, first_seed=3, cache=tmp_path / "new")
    drawn = draw_phantoms(1, first_seed=3, cache=tmp_path / "new")
    assert np.array_equal(drawn.pixels[0], phantom(3, size=SIDE).pixels)


@pytest.mark.parametrize("labels", [[], [0], [3, 1], [len(LABELS) - 1]])
def test_label_vector(labels: list[int]) -> None:
    wanted = {LABELS[label] for label in labels} or {NO_FINDING}
    assert label_vector(labels).tolist() == [1.0 if name in wanted else 0.0 for name in LABELS]


@pytest.mark.parametrize(("n_rows_covered", "is_said"), [(59, True), (60, True), (61, False)])
def test_a_finding_covered_beyond_60_percent_is_not_said(
    n_rows_covered: int, is_said: bool, prompt_set: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_covered: list[bool] = []

    def cover_rows(picture: Any, visible: NDArray[np.bool_], numbers: np.random.Generator) -> Any:
        visible[:n_rows_covered] = False
        was_covered.append(True)
        return picture

    monkeypatch.setattr(phantom_data, "_cover", cover_rows)
    upper, lower = (LABELS.index(name) for name in ("Pneumothorax", "Pleural Effusion"))
    alone = PhantomPairs(noisy_phantom([upper], [rows(0, 100)]), prompt_set, N_CELLS, seed=0)
    both = PhantomPairs(noisy_phantom([upper, lower], [rows(0, 100), rows(100, 200)]), prompt_set, N_CELLS, seed=0)
    outcomes = set()
    torch.manual_seed(0)
    for _ in range(30):
        for pairs, others in ((alone, set()), (both, {"Pleural Effusion"})):
            was_covered.clear()
            pair = pairs[0]
            expected = others | ({"Pneumothorax"} if is_said or not was_covered else set())
            assert names(pair.seen) == (expected or {NO_FINDING})
            assert names(pair.said) <= names(pair.seen)
            n_rows_seen = 0 if "Pneumothorax" not in expected else 100 - (n_rows_covered if was_covered else 0)
            assert pair.cells[upper].sum() == pytest.approx(expected_sum(100 - n_rows_seen, 100))
            outcomes.add(bool(was_covered))
    assert outcomes == {True, False}


def test_what_counts_as_hidden_is_what_was_covered_and_the_rest_keeps_its_place(
    prompt_set: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    covers: list[NDArray[np.bool_]] = []
    real = phantom_data._cover

    def spy(picture: Any, visible: NDArray[np.bool_], numbers: np.random.Generator) -> Any:
        covered = real(picture, visible, numbers)
        assert np.array_equal(covered != picture, ~visible)
        covers.append(~visible)
        return covered

    monkeypatch.setattr(phantom_data, "_cover", spy)
    phantoms = noisy_phantom([], [])
    pairs = PhantomPairs(phantoms, prompt_set, N_CELLS, seed=0)
    original = phantoms.pixels[0] / 255
    slopes, n_before = [], 0
    for pair in draw_pairs(pairs, 0, 40):
        hidden = covers[-1] if len(covers) > n_before else np.zeros((SIDE, SIDE), bool)
        n_before = len(covers)
        # Not `denormalize`: it would cut off the noise beyond black and white.
        picture = pair.pixel_values[0].numpy() * MEDCLIP.std[0] + MEDCLIP.mean[0]
        slope, offset = np.polyfit(original[~hidden], picture[~hidden], 1)
        noise = picture[~hidden] - slope * original[~hidden] - offset
        if noise.std() < 1e-6:  # not exposed anew
            assert (slope, offset) == pytest.approx((1, 0), abs=1e-5)
        else:
            assert noise.std() == pytest.approx(0.01, rel=0.1)
            slopes.append(slope)
    assert 0.3 < min(slopes) < 0.6
    assert 0.9 < max(slopes) < 1.02
    assert 15 <= len(slopes) < 35
    assert 15 <= len(covers) < 35
    assert all(12 * 12 <= cover.sum() <= 4 * 80 * 80 for cover in covers)


def test_covers_reach_the_edges_of_the_picture_no_more_often_than_other_lines() -> None:
    numbers, n_times = np.random.default_rng(0), np.zeros(4)
    for _ in range(400):
        visible = np.ones((SIDE, SIDE), bool)
        phantom_data._cover(np.zeros((SIDE, SIDE), np.float32), visible, numbers)
        n_times += [not edge.all() for edge in (visible[0], visible[-1], visible[:, 0], visible[:, -1])]
    # A thousand patches, each at one of about 180 places along a side: 5.7 at each end.
    assert (n_times > 0).all()
    assert (n_times < 20).all()


def test_strength_is_how_often_pictures_are_altered(prompt_set: PromptSet) -> None:
    phantoms = noisy_phantom([], [])
    pairs = PhantomPairs(phantoms, prompt_set, N_CELLS, seed=0)
    original = MEDCLIP.normalize(torch.from_numpy(phantoms.pixels[:1] / 255).float())
    shares = []
    for pairs.strength in (0.0, 0.5, 1.0):
        is_altered = [not torch.allclose(pair.pixel_values, original) for pair in draw_pairs(pairs, 0, 60)]
        shares.append(sum(is_altered) / 60)
    # Covered or exposed: 1 - (1 - 0.6 strength)^2.
    assert shares == pytest.approx([0, 0.51, 0.84], abs=0.12)
    assert shares[0] == 0


def test_cells_tell_where_each_finding_is(
    phantoms: PhantomArrays, prompt_set: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phantom_data, "_cover", lambda picture, visible, numbers: picture)
    for n_cells in (14, 7):
        side = SIDE // n_cells
        pairs = PhantomPairs(phantoms, prompt_set, n_cells, seed=0)
        for index in range(N):
            cells = torch.zeros(len(LABELS) - 1, n_cells, n_cells)
            for label, mask in zip(phantoms.labels[index], unpacked(phantoms.masks[index]), strict=True):
                for row, column in np.ndindex((n_cells, n_cells) if label >= 0 else (0, 0)):
                    cell = mask[row * side : (row + 1) * side, column * side : (column + 1) * side]
                    cells[label, row, column] = cell.mean()
            assert torch.allclose(pairs[index].cells, cells, atol=1e-6)


def test_labels_and_sentence_of_a_picture_agree(phantoms: PhantomArrays, prompt_set: PromptSet) -> None:
    of_class = {entry.label: {entry.label, *entry.prompts} for entry in prompt_set.classes}
    pairs = PhantomPairs(phantoms, prompt_set, N_CELLS, seed=0)
    assert len(pairs) == N
    n_own = n_general = n_hidden = 0
    for index in range(N):
        own = {
            LABELS[label]: sentence
            for label, sentence in zip(phantoms.labels[index], phantoms.sentences[index], strict=False)
            if label >= 0
        }
        for pair in draw_pairs(pairs, index, 12):
            (said,) = names(pair.said)
            assert said in names(pair.seen)
            assert names(pair.seen) <= own.keys() or names(pair.seen) == {NO_FINDING}
            assert pair.sentence in of_class[said] | {own.get(said)}
            n_own += pair.sentence == own.get(said)
            n_general += pair.sentence in of_class[said] and said != NO_FINDING
            n_hidden += len(names(pair.seen) & own.keys()) < len(own)
    assert 0.3 < n_own / (n_own + n_general) < 0.7
    assert n_hidden > 0


def test_seeds_decide_the_pair(phantoms: PhantomArrays, prompt_set: PromptSet) -> None:
    def drawn(seed: int, torch_seed: int) -> list[Pair]:
        torch.manual_seed(torch_seed)
        pairs = PhantomPairs(phantoms, prompt_set, N_CELLS, seed)
        return [pairs[index] for index in range(4)]

    def same(first: Pair, second: Pair) -> bool:
        return first.sentence == second.sentence and torch.equal(first.pixel_values, second.pixel_values)

    known = drawn(seed=1, torch_seed=2)
    assert all(map(same, known, drawn(seed=1, torch_seed=2)))
    assert not any(map(same, known, drawn(seed=1, torch_seed=3)))
    assert not any(map(same, known, drawn(seed=2, torch_seed=2)))
