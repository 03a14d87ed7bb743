import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mapstack.errors import StoreDiskError, StoreError
from mapstack.store import StoreWriter, open_store_for_writing
from mapstack.store.lock import refuse_if_held

HOLD = """
import sys, time
from mapstack.store import StoreWriter, open_store_for_writing
session = open_store_for_writing(sys.argv[1], {"identity": {"model": {"fingerprint": "3f2a"},
    "method": {"name": "occlusion", "n_steps": 20}, "seed": 0}})
print(session.run, flush=True)
time.sleep(60)
"""
JOIN = """
import sys, time
from mapstack.store import StoreWriter
writer = StoreWriter(sys.argv[1], 1, 1)
print("joined", flush=True)
time.sleep(60)
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    job = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline()
    return job


def kill(job: subprocess.Popen[str]) -> None:
    job.send_signal(signal.SIGKILL)
    job.communicate()


@pytest.mark.fault("W4")
def test_w4_a_second_job_is_refused_at_once_and_told_who(tmp_path: Path, manifest, figure):
    folder = tmp_path / "store"
    job = start(HOLD, folder)
    try:
        begun = time.monotonic()
        with pytest.raises(StoreError, match=f"is being written by host {os.uname().nodename}, pid {job.pid} .rank 0"):
            open_store_for_writing(folder, manifest)
        with pytest.raises(StoreError, match="one job writes to a store at a time"):
            open_store_for_writing(folder, manifest, overwrite=True)
        took_s = time.monotonic() - begun
        figure(f"two second jobs refused in {took_s:.3f} s; the lock of the killed holder taken over")
        assert took_s < 1
    finally:
        kill(job)
    open_store_for_writing(folder, manifest).close()  # the lock of a dead holder is free


@pytest.mark.fault("W4")
def test_w4_a_rank_that_outlived_its_job_still_holds_the_store(tmp_path: Path, manifest, figure):
    folder = tmp_path / "store"
    opener = start(HOLD, folder)
    rank = start(JOIN, folder)
    kill(opener)
    try:
        with pytest.raises(StoreError, match=rf"pid {rank.pid} \(rank 1, since"):
            open_store_for_writing(folder, manifest)
    finally:
        kill(rank)
    open_store_for_writing(folder, manifest).close()
    figure("1 rank outlived its job: refused while it lived, taken over once it was killed")


def test_a_closed_session_lets_the_next_one_in(tmp_path: Path, manifest):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest), pytest.raises(StoreError, match="is being written by"):
        open_store_for_writing(folder, manifest)
    session = open_store_for_writing(folder, manifest)
    session.close()
    session.close()
    open_store_for_writing(folder, manifest).close()


def test_a_forked_data_worker_does_not_keep_the_lock(tmp_path: Path, manifest):
    folder = tmp_path / "store"
    session = open_store_for_writing(folder, manifest)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(reader, 1) == b"x"
        with pytest.raises(StoreError, match="is being written by"):  # the parent holds it as before
            open_store_for_writing(folder, manifest)
        session.close()
        open_store_for_writing(folder, manifest).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_a_writer_of_another_run_is_refused(tmp_path: Path, manifest):
    folder = tmp_path / "store"
    with (
        open_store_for_writing(folder, manifest),
        pytest.raises(StoreError, match="was opened for run 1, this writer belongs to run 7"),
    ):
        StoreWriter(folder, 7, 1)


def test_a_writer_needs_an_open_store(tmp_path: Path):
    with pytest.raises(StoreError, match=r"has no store.lock; a rank writes into a store that rank 0 has opened"):
        StoreWriter(tmp_path, 1, 0)


def test_a_file_system_without_locks_is_refused(tmp_path: Path, manifest, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(
        StoreDiskError, match=r"cannot lock a file \(Function not implemented\); without a lock two jobs"
    ):
        open_store_for_writing(tmp_path / "store", manifest)


def test_who_only_asks_changes_nothing(tmp_path: Path, manifest):
    folder = tmp_path / "store"
    refuse_if_held(folder)
    folder.mkdir()
    refuse_if_held(folder)
    assert not list(folder.iterdir())
    with open_store_for_writing(folder, manifest):
        before = (folder / "store.lock").read_bytes()
        with pytest.raises(StoreError, match=f"is being written by .*pid {os.getpid()} .rank 0"):
            refuse_if_held(folder)
        assert (folder / "store.lock").read_bytes() == before
    refuse_if_held(folder)
    open_store_for_writing(folder, manifest).close()


def test_ranks_that_ask_at_once_do_not_refuse_each_other(tmp_path: Path, manifest, monkeypatch):
    """Each has the lock while it asks: here for 2 ms, as over a network."""
    folder = tmp_path / "store"
    open_store_for_writing(folder, manifest).close()
    n_ranks, met = 8, []
    flock, together = fcntl.flock, threading.Barrier(n_ranks, timeout=20)

    def lock_slowly(fd: int, operation: int) -> None:
        try:
            flock(fd, operation)
        except BlockingIOError:
            met.append(fd)
            raise
        time.sleep(0.002)

    def ask() -> None:
        together.wait()
        refuse_if_held(folder)

    monkeypatch.setattr("fcntl.flock", lock_slowly)
    with ThreadPoolExecutor(n_ranks) as ranks:
        for asked in [ranks.submit(ask) for _ in range(n_ranks)]:
            asked.result()
    assert met


def test_a_file_system_without_locks_is_refused_at_once(tmp_path: Path, manifest, monkeypatch):
    folder = tmp_path / "store"
    open_store_for_writing(folder, manifest).close()

    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(StoreDiskError, match="cannot lock a file"):
        refuse_if_held(folder)
