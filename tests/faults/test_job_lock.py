"""A second job on a store that another one writes: refused at once, whatever it would have to read first."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train_like.jobs import Ended
from tests.train_like.launched import ROOT
from train_like import extract

Command = Callable[..., Ended]
Figure = Callable[[str], None]

LIMIT_S = 1.0
HOLD = """
import sys, time
from pathlib import Path
from mapstack.store.lock import FolderLock
lock = FolderLock.exclusive(Path(sys.argv[1]))
if sys.argv[2] == "running":
    lock.share(1)  # what a job holds from its first record on
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["opening", "running"])
def holder(request: pytest.FixtureRequest, job_config: Path, command: Command, tmp_path: Path) -> Iterator[int]:
    """Another process that holds the store, which has a record already; its pid."""
    assert command("extract", job_config, "data.limit=1").code == 0
    arguments = [sys.executable, "-c", HOLD, str(tmp_path / "store"), request.param]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


@pytest.mark.fault("W4")
def test_a_second_job_is_refused_before_shards_are_walked_and_a_model_is_loaded(
    holder: int, job_config: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    """Both take minutes at full size."""

    def wait(*_: Any, **__: Any) -> None:
        pytest.fail("it was not refused before")

    monkeypatch.setattr(extract, "index_shards", wait)
    monkeypatch.setattr(extract, "load_model", wait)
    kept = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "store").iterdir()}
    longest_s = 0.0
    for override in ("overwrite=false", "overwrite=true"):
        since = time.perf_counter()
        ended = command("extract", job_config, override)
        longest_s = max(longest_s, time.perf_counter() - since)
        assert (ended.code, ended.line["status"]) == (3, "wrong_store")
        assert "is being written by host" in ended.err
        assert f"pid {holder} (rank 0, since" in ended.err
    assert longest_s < 10 * LIMIT_S
    now = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "store").iterdir()}
    assert now == kept
    figure(
        f"a held store: 2 second jobs of 2 refused by name within {longest_s:.2f} s, no shard walked, 0 files changed"
    )


def test_a_dead_job_holds_nothing_up(job_config: Path, command: Command, tmp_path: Path) -> None:
    assert command("extract", job_config, "data.limit=1").code == 0
    arguments = [sys.executable, "-c", HOLD, str(tmp_path / "store"), "running"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    ended = command("extract", job_config)
    assert (ended.code, ended.line["done"], ended.line["computed_by_rank_0"]) == (0, 7, 6)
