"""A cache of phantoms that other code has drawn is drawn again, whatever it was that changed."""

import multiprocessing
import multiprocessing.dummy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from mapstack.phantom import Phantom, phantom
from train_like import phantom_data
from train_like.phantom_data import draw_patients, draw_phantoms


@pytest.fixture(autouse=True)
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw without the seconds that a new process needs for its imports."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: multiprocessing.dummy)


def with_old_sentences(film: Phantom) -> Phantom:
    findings = tuple(replace(finding, prompt=f"Old: {finding.prompt}") for finding in film.findings)
    return replace(film, findings=findings, report=f"Old: {film.report}")


def with_old_masks(film: Phantom) -> Phantom:
    return replace(film, findings=tuple(replace(each, mask=~each.mask) for each in film.findings))


@pytest.mark.parametrize("change", [with_old_sentences, with_old_masks])
@pytest.mark.parametrize("draw", [draw_phantoms, draw_patients])
def test_what_does_not_show_in_the_pixels_is_compared_too(
    draw: Any, change: Callable[[Phantom], Phantom], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(phantom_data, "phantom", lambda seed, **options: change(phantom(seed, **options)))
        earlier = draw(2, first_seed=5, cache=tmp_path)
    drawn = draw(2, first_seed=5, cache=tmp_path)
    assert np.array_equal(drawn.pixels, earlier.pixels)
    assert not any(sentence.startswith("Old") for film in drawn.sentences for sentence in film)
    assert (drawn.sentences, drawn.masks.tobytes()) != (earlier.sentences, earlier.masks.tobytes())


def test_two_runs_that_draw_the_same_do_not_write_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def note(path: Path, **_: Any) -> NoReturn:
        written.append(path.name)
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", note)
    with pytest.raises(OSError, match="no space left"):
        draw_phantoms(1, first_seed=5, cache=tmp_path)
    assert written == [f"phantoms-5-1.{os.getpid()}.partial.npz"]
