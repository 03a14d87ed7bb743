"""Phantoms as training pairs: pictures, what is visible in them and where, and sentences that say so."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from mapstack.images import MEDCLIP
from mapstack.phantom import LABELS, NO_FINDING, Phantom, phantom
from mapstack.prompts import PromptSet

_SIZE = MEDCLIP.image_size
_MAX_FINDINGS = 2
_FILMS = 20  # a purpose of random numbers that `phantom` does not use
_HIDDEN_SHARE = 0.6  # of a finding's mask: beyond it, nobody could tell that it is there
_N_CHECKED = 8  # seeds that are drawn again to tell whether a cache is current: enough to show every finding
_COVERED_SHARE, _EXPOSED_SHARE = 0.6, 0.6  # of the pictures

N_FILMS = 4
"""Films of a patient: without a finding, and with three sets of findings."""


@dataclass(frozen=True)
class PhantomArrays:
    """Drawn phantoms.

    Attributes:
        pixels: uint8 `[n, 224, 224]`.
        masks: Of each finding, packed bits `[n, 2, 224 * 28]`.
        labels: Number of each finding in `LABELS`, -1 for none, `[n, 2]`.
        sentences: The sentence of each finding; of a normal film, its report.
    """

    pixels: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sentences: list[list[str]]

    def __len__(self) -> int:
        return len(self.pixels)


def draw_phantoms(n: int, *, first_seed: int, cache: Path) -> PhantomArrays:
    """Draw phantoms of successive seeds, with the findings that their seeds give them.

    Args:
        n: How many.
        first_seed: Seed of the first.
        cache: Folder where they are kept: an earlier drawing is read again, unless phantoms have changed since.
    """
    return _cached(cache / f"phantoms-{first_seed}-{n}.npz", _draw_phantom, range(first_seed, first_seed + n))


def draw_patients(n: int, *, first_seed: int, cache: Path) -> PhantomArrays:
    """Draw `N_FILMS` films of each patient, one after the other, that differ in the findings and in nothing else.

    Args:
        n: How many patients.
        first_seed: Seed of the first.
        cache: Folder where they are kept: an earlier drawing is read again.
    """
    return _cached(cache / f"patients-{first_seed}-{n}.npz", _draw_patient, range(first_seed, first_seed + n))


_Drawn = tuple[NDArray[np.uint8], NDArray[np.uint8], list[int], list[str]]


def _cached(path: Path, draw: Callable[[int], list[_Drawn]], seeds: range) -> PhantomArrays:
    if not _is_current(path, draw, seeds):
        path.parent.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("forkserver").Pool() as pool:
            shown = tqdm(pool.imap(draw, seeds, chunksize=8), total=len(seeds), desc=path.stem, file=sys.stderr)
            pixels, masks, labels, sentences = zip(*chain.from_iterable(shown), strict=True)
        partial_path = path.with_suffix(f".{os.getpid()}.partial.npz")  # two runs may draw the same
        np.savez(partial_path, pixels=pixels, masks=masks, labels=labels, sentences=np.array(sentences))
        partial_path.replace(path)
    with np.load(path, allow_pickle=False) as stored:
        texts = [[each for each in row if each] for row in stored["sentences"].tolist()]
        return PhantomArrays(stored["pixels"], stored["masks"], stored["labels"], texts)


def _is_current(path: Path, draw: Callable[[int], list[_Drawn]], seeds: range) -> bool:
    """Say whether a file holds what would be drawn now: phantoms change with the code that draws them."""
    if not path.exists():
        return False
    drawn = [film for seed in seeds[:_N_CHECKED] for film in draw(seed)]
    with np.load(path, allow_pickle=False) as stored:
        names = ("pixels", "masks", "labels", "sentences")
        return all(
            np.array_equal(stored[name][: len(drawn)], values)
            for name, values in zip(names, zip(*drawn, strict=True), strict=True)
        )


def _draw_phantom(seed: int) -> list[_Drawn]:
    return [_arrays(phantom(seed, size=_SIZE))]


def _draw_patient(seed: int) -> list[_Drawn]:
    numbers = np.random.default_rng([seed, _FILMS])
    order = [str(label) for label in numbers.permutation(LABELS[:-1])]
    last = order[2:4] if numbers.random() < 0.5 else order[2:3]
    return [_arrays(phantom(seed, size=_SIZE, labels=labels)) for labels in ([], order[:1], order[1:2], last)]


def _arrays(film: Phantom) -> _Drawn:
    masks = np.zeros((_MAX_FINDINGS, _SIZE * _SIZE // 8), np.uint8)
    labels, sentences = [-1] * _MAX_FINDINGS, [""] * _MAX_FINDINGS
    for i, finding in enumerate(film.findings):
        masks[i] = np.packbits(finding.mask)
        labels[i], sentences[i] = LABELS.index(finding.label), finding.prompt
    if not film.findings:
        sentences[0] = film.report
    return film.pixels, masks, labels, sentences


@dataclass(frozen=True)
class Pair:
    """One training pair.

    Attributes:
        pixel_values: The altered picture, model-input frame.
        seen: Which labels it shows, by `LABELS`.
        sentence: A text about one of them.
        said: Which labels the text names.
        cells: How much of each cell of a grid over the picture shows each finding [0, 1], by `LABELS` without the last.
    """

    pixel_values: Float[Tensor, "1 height width"]
    seen: Float[Tensor, " labels"]
    sentence: str
    said: Float[Tensor, " labels"]
    cells: Float[Tensor, "findings rows columns"]


class PhantomPairs(Dataset[Pair]):
    """Altered phantoms with a sentence for each.

    Alterations make the pictures that attribution methods ask about ordinary ones: patches are covered, as occlusion
    does, and pictures are dimmed or lightened, as on the path from a black or white baseline. A finding that a patch
    hides is no longer said to be there. Nothing is mirrored: left and right are part of the truth.

    Args:
        phantoms: What to draw from.
        prompt_set: Its sentences and labels are used beside the phantoms' own.
        n_cells: Cells along each side of the grid in `Pair.cells`.
        seed: Of the alterations and the choice of sentences.

    Attributes:
        strength: How often pictures are altered, from never (0) to as often as in the end (1). Training starts with
            what is easy.
    """

    def __init__(self, phantoms: PhantomArrays, prompt_set: PromptSet, n_cells: int, seed: int) -> None:
        self._phantoms = phantoms
        self._n_cells = n_cells
        self._texts = {entry.label: (entry.label, *entry.prompts) for entry in prompt_set.classes}
        self._seed = seed
        self.strength = 1.0

    def __len__(self) -> int:
        return len(self._phantoms)

    def __getitem__(self, index: int) -> Pair:
        numbers = np.random.default_rng([self._seed, index, int(torch.randint(2**31, ()))])
        picture = self._phantoms.pixels[index].astype(np.float32) / 255
        visible = np.ones((_SIZE, _SIZE), bool)
        if numbers.random() < _COVERED_SHARE * self.strength:
            picture = _cover(picture, visible, numbers)
        if numbers.random() < _EXPOSED_SHARE * self.strength:
            picture = _expose(picture, numbers)
        found: list[tuple[int, str]] = []
        cells = torch.zeros(len(LABELS) - 1, self._n_cells, self._n_cells)
        for label, sentence, mask in self._findings(index):
            seen = mask & visible
            if seen.sum() >= (1 - _HIDDEN_SHARE) * mask.sum():
                found.append((label, sentence))
                cells[label] = self._cells(seen)
        sentence, said = self._say(found, numbers)
        return Pair(
            MEDCLIP.normalize(torch.from_numpy(picture)[None]),
            label_vector([label for label, _ in found]),
            sentence,
            said,
            cells,
        )

    def _findings(self, index: int) -> Iterator[tuple[int, str, NDArray[np.bool_]]]:
        rows = zip(
            self._phantoms.labels[index], self._phantoms.sentences[index], self._phantoms.masks[index], strict=False
        )
        for label, sentence, packed in rows:
            if label >= 0:
                yield int(label), sentence, np.unpackbits(packed).reshape(_SIZE, _SIZE).astype(bool)

    def _cells(self, seen: NDArray[np.bool_]) -> Float[Tensor, "rows columns"]:
        return F.adaptive_avg_pool2d(torch.from_numpy(seen)[None].float(), self._n_cells)[0]

    def _say(self, found: Sequence[tuple[int, str]], numbers: np.random.Generator) -> tuple[str, Tensor]:
        if not found:
            choices = self._texts[NO_FINDING]
            return str(choices[int(numbers.integers(len(choices)))]), label_vector([])
        label, sentence = found[int(numbers.integers(len(found)))]
        if numbers.random() < 0.5:
            choices = self._texts[LABELS[label]]
            sentence = choices[int(numbers.integers(len(choices)))]
        return sentence, label_vector([label])


class PatientOrder(Sampler[int]):
    """All films, those of a patient together, patients in random order.

    A batch that holds a patient with and without a finding teaches the finding, and not the patient.
    """

    def __init__(self, n_films: int) -> None:
        self._n_films = n_films

    def __len__(self) -> int:
        return self._n_films

    def __iter__(self) -> Iterator[int]:
        for patient in torch.randperm(self._n_films // N_FILMS).tolist():
            yield from range(patient * N_FILMS, (patient + 1) * N_FILMS)


def label_vector(labels: Sequence[int]) -> Float[Tensor, " labels"]:
    """Return 1 for each label; "No Finding" where there is none."""
    vector = torch.zeros(len(LABELS))
    vector[list(labels) or [LABELS.index(NO_FINDING)]] = 1
    return vector


def _cover(
    picture: NDArray[np.float32], visible: NDArray[np.bool_], numbers: np.random.Generator
) -> NDArray[np.float32]:
    """Cover one to four patches with black, white, the mean or noise; note in `visible` what is gone."""
    covered = picture.copy()
    for _ in range(numbers.integers(1, 5)):
        height, width = numbers.integers(12, 81, size=2)
        row, column = numbers.integers(0, _SIZE - height + 1), numbers.integers(0, _SIZE - width + 1)
        region = (slice(row, row + height), slice(column, column + width))
        fills = (0.0, 1.0, picture.mean(), numbers.random((height, width)))
        covered[region] = fills[numbers.choice(4, p=[0.4, 0.15, 0.3, 0.15])]
        visible[region] = False
    return covered


def _expose(picture: NDArray[np.float32], numbers: np.random.Generator) -> NDArray[np.float32]:
    """Dim towards black, white or grey, and add noise."""
    share = numbers.uniform(0.35, 1.0)
    target = numbers.choice([0.0, 0.0, 1.0, picture.mean()])
    exposed = target + share * (picture - target) + numbers.normal(0, 0.01, picture.shape)
    return exposed.astype(np.float32)
