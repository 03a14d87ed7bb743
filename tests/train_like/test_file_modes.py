"""Who may read what a command writes: maps are patients' data."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.train_like.jobs import Ended

TEXTS = "prompts.texts=[heart, no nodule]"


@pytest.fixture(params=[0o022, 0o000, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The caller's, from what is usual to what is stricter than ours."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_others_may_not_read_maps(
    mask: int, command: Callable[..., Ended], clean_store: Path, job_config: Path, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    ended = command("project", job_config, f"output={clean_store}", f"project.output={maps}", TEXTS, "project.limit=1")
    assert ended.code == 0, ended.err
    written = [maps, *maps.rglob("*")]
    assert any(path.suffix == ".png" for path in written)
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) & (0o027 | mask) == 0, path
        assert path.stat().st_mode & stat.S_IRUSR
    assert os.umask(mask) == mask  # the caller's own is back


def test_the_callers_mask_is_back_after_a_refusal(mask: int, command: Callable[..., Ended], tmp_path: Path) -> None:
    assert command("verify", tmp_path / "nothing").code != 0
    assert os.umask(mask) == mask
