"""Phantoms as training pairs: pictures, what is visible in them, and sentences that say so."""

import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mapstack.images import MEDCLIP
from mapstack.phantom import LABELS, NO_FINDING, phantom
from mapstack.prompts import PromptSet

_SIZE = MEDCLIP.image_size
_MAX_FINDINGS = 2
_HIDDEN_SHARE = 0.6  # of a finding's mask: beyond it, nobody could tell that it is there


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
    """Draw phantoms of successive seeds in parallel, or read them from an earlier run."""
    path = cache / f"phantoms-{first_seed}-{n}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("forkserver").Pool() as pool:
            drawn = pool.imap(_draw, range(first_seed, first_seed + n), chunksize=16)
            pixels, masks, labels, sentences = zip(*tqdm(drawn, total=n, desc="phantoms", file=sys.stderr), strict=True)
        partial_path = path.with_suffix(".partial.npz")
        np.savez(partial_path, pixels=pixels, masks=masks, labels=labels, sentences=np.array(sentences))
        partial_path.replace(path)
    with np.load(path, allow_pickle=False) as stored:
        texts = [[each for each in row if each] for row in stored["sentences"].tolist()]
        return PhantomArrays(stored["pixels"], stored["masks"], stored["labels"], texts)


def _draw(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int], list[str]]:
    film = phantom(seed, size=_SIZE)
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
    """

    pixel_values: Float[Tensor, "1 height width"]
    seen: Float[Tensor, " labels"]
    sentence: str
    said: Float[Tensor, " labels"]


class PhantomPairs(Dataset[Pair]):
    """Altered phantoms with a sentence for each.

    Alterations make the pictures that attribution methods ask about ordinary ones: patches are covered, as occlusion
    does, and pictures are dimmed or lightened, as on the path from a black or white baseline. A finding that a patch
    hides is no longer said to be there. Nothing is mirrored: left and right are part of the truth.

    Args:
        phantoms: What to draw from.
        prompt_set: Its sentences and labels are used beside the phantoms' own.
        seed: Of the alterations and the choice of sentences.
    """

    def __init__(self, phantoms: PhantomArrays, prompt_set: PromptSet, seed: int) -> None:
        self._phantoms = phantoms
        self._texts = {entry.label: (entry.label, *entry.prompts) for entry in prompt_set.classes}
        self._seed = seed

    def __len__(self) -> int:
        return len(self._phantoms)

    def __getitem__(self, index: int) -> Pair:
        numbers = np.random.default_rng([self._seed, index, int(torch.randint(2**31, ()))])
        picture = self._phantoms.pixels[index].astype(np.float32) / 255
        visible = np.ones((_SIZE, _SIZE), bool)
        if numbers.random() < 0.7:
            picture = _cover(picture, visible, numbers)
        picture = _expose(picture, numbers)
        found = [
            (int(label), str(sentence))
            for label, mask, sentence in zip(
                self._phantoms.labels[index], self._phantoms.masks[index], self._phantoms.sentences[index], strict=False
            )
            if label >= 0 and _is_visible(mask, visible)
        ]
        sentence, said = self._say(found, numbers)
        return Pair(
            MEDCLIP.normalize(torch.from_numpy(picture)[None]),
            label_vector([label for label, _ in found]),
            sentence,
            said,
        )

    def _say(self, found: Sequence[tuple[int, str]], numbers: np.random.Generator) -> tuple[str, Tensor]:
        if not found:
            choices = self._texts[NO_FINDING]
            return str(choices[int(numbers.integers(len(choices)))]), label_vector([])
        label, sentence = found[int(numbers.integers(len(found)))]
        if numbers.random() < 0.5:
            choices = self._texts[LABELS[label]]
            sentence = choices[int(numbers.integers(len(choices)))]
        return sentence, label_vector([label])


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
        row, column = numbers.integers(0, _SIZE - height), numbers.integers(0, _SIZE - width)
        region = (slice(row, row + height), slice(column, column + width))
        fills = (0.0, 1.0, picture.mean(), numbers.random((height, width)))
        covered[region] = fills[numbers.choice(4, p=[0.4, 0.15, 0.3, 0.15])]
        visible[region] = False
    return covered


def _expose(picture: NDArray[np.float32], numbers: np.random.Generator) -> NDArray[np.float32]:
    """Dim towards black, white or grey, and add noise."""
    share = numbers.uniform(0.35, 1.0) if numbers.random() < 0.6 else 1.0
    target = numbers.choice([0.0, 0.0, 1.0, picture.mean()])
    exposed = target + share * (picture - target) + numbers.normal(0, 0.01, picture.shape)
    return exposed.astype(np.float32)


def _is_visible(packed: NDArray[np.uint8], visible: NDArray[np.bool_]) -> bool:
    mask = np.unpackbits(packed).reshape(_SIZE, _SIZE).astype(bool)
    return bool((mask & visible).sum() >= (1 - _HIDDEN_SHARE) * mask.sum())
