import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.power import Died, Recorder
from tests.faults.recording import Watch
from tests.faults.store_job import run_job

TEN_YEARS_S = 10 * 365 * 24 * 3600.0
NOW_S = 1_800_000_000.0  # in 2027
N_CALLS = 65  # of 106: the first part is committed by then, and not sealed


@contextmanager
def clock(patch: pytest.MonkeyPatch, times: Iterator[float]) -> Iterator[None]:
    """Let every clock that Python has show the next of the times."""
    with patch.context() as patched:
        for name in ("time", "monotonic", "perf_counter"):
            patched.setattr(time, name, lambda: next(times))
            patched.setattr(time, f"{name}_ns", lambda: int(next(times) * 1e9))
        for name in ("gmtime", "localtime"):
            real = getattr(time, name)
            patched.setattr(time, name, lambda at=None, real=real: real(next(times) if at is None else at))
        yield


def write_in_two_runs(
    folder: Path, first: Iterator[float], second: Iterator[float], patch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """Kill a job, change the times of its files, and go on; give the bytes of all files but the lock."""
    recorder = Recorder()
    recorder.die_at(N_CALLS)
    with Watch(folder, recorder), clock(patch, first), suppress(Died):
        run_job(folder)
    for path in folder.iterdir():
        os.utime(path, (next(second), next(second)))
    with clock(patch, second):
        run_job(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "store.lock"}


@pytest.mark.fault("W7")
def test_no_clock_and_no_time_of_a_file_changes_the_bytes(tmp_path: Path, figure, monkeypatch):
    now, ahead, behind = (itertools.repeat(NOW_S + offset_s) for offset_s in (0, TEN_YEARS_S, -TEN_YEARS_S))
    expected = write_in_two_runs(tmp_path / "now", now, now, monkeypatch)
    assert sorted(name for name in expected if name.endswith(".tar")) == [
        "part-0001-0000-0000.tar",
        "part-0002-0000-0000.tar",
    ]
    assert b'"complete": true' in expected["manifest.json"]
    clocks = {
        "ten years ahead": (ahead, ahead),
        "ten years ahead, then ten years behind": (ahead, behind),
        "running backwards": (itertools.count(NOW_S, -3600.0), itertools.count(NOW_S - TEN_YEARS_S, -3600.0)),
        "before 1970": (itertools.repeat(-TEN_YEARS_S), itertools.repeat(0.0)),
    }
    for name, times in clocks.items():
        assert write_in_two_runs(tmp_path / name, *times, monkeypatch) == expected, name
    # The clock was indeed another: the lock says since when it is held, which nothing decides by.
    assert b'"started": "2037-' in (tmp_path / "ten years ahead" / "store.lock").read_bytes()
    figure(f"{len(clocks)} wrong clocks, {len(expected)} files each: the same bytes")
