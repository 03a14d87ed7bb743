"""Writing beside the loop: order, what is durable when, errors, and the end."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapstack.errors import StoreDiskError, StoreError
from mapstack.store import (
    Failure,
    Packed,
    Record,
    Store,
    StoreSession,
    StoreWriter,
    finish,
    open_store_for_writing,
    verify,
)
from train_like.background import BackgroundWriter, Stored

MANIFEST = {"identity": {"model": {"fingerprint": "3f2a"}, "seed": 0}}
WAIT_S = 20


def record(key: str) -> Record:
    return Record(key, {"stack": np.full((2, 3, 4), len(key), np.float32)}, {"text": key})


def batch(*keys: str) -> list[Record | Failure]:
    return [record(key) for key in keys]


def assert_whole(session: StoreSession, n_records: int) -> None:
    """No record is torn or unsealed."""
    finish(session, n_records)
    assert verify(session.folder).is_sound
    assert len(Store(session.folder)) == n_records


@pytest.fixture
def session(tmp_path: Path) -> Iterator[StoreSession]:
    with open_store_for_writing(tmp_path / "store", MANIFEST) as opened:
        yield opened


@pytest.fixture
def writer(session: StoreSession) -> Iterator[BackgroundWriter]:
    writer = BackgroundWriter(session.folder, session.run, 0)
    yield writer
    writer.close()


class Gate:
    """Holds the writing thread up before each commit, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open = threading.Event()
        self.arrived = threading.Event()
        self.n_commits = 0
        commit = StoreWriter.commit

        def wait_and_commit(writer: StoreWriter) -> None:
            self.arrived.set()
            assert self.is_open.wait(WAIT_S)
            commit(writer)
            self.n_commits += 1

        monkeypatch.setattr(StoreWriter, "commit", wait_and_commit)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.is_open.set()


def test_records_are_written_in_the_order_of_the_batches(
    writer: BackgroundWriter, session: StoreSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first of a batch takes longest to pack."""
    keys = [f"k{i}" for i in range(12)]
    pack = StoreWriter.pack

    def pack_slowly(store_writer: StoreWriter, key: str, *rest: Any) -> Packed:
        time.sleep(0.01 * (3 - int(key[1:]) % 4))
        return pack(store_writer, key, *rest)

    monkeypatch.setattr(StoreWriter, "pack", pack_slowly)
    for start in range(0, len(keys), 4):
        writer.submit(batch(*keys[start : start + 4]))
    writer.close()
    store = Store(session.folder)
    assert store.keys() == keys
    assert [each.info["text"] for each in store] == keys
    n_bytes = sum(len(part.read_bytes()) for part in session.folder.glob("*.tar"))
    assert writer.stored.n_records == 12
    assert 0 < writer.stored.n_bytes <= n_bytes < writer.stored.n_bytes + 10240 + 1024  # a tar's end


def test_handing_over_waits_for_the_batch_before_and_not_for_its_own(
    writer: BackgroundWriter, session: StoreSession, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.submit(batch("a", "b"))  # would never return if it waited for the commit
    assert gate.arrived.wait(WAIT_S)
    assert len(Store(session.folder)) == 0
    assert writer.stored == Stored()

    committed_at_writing: list[int] = []
    append = StoreWriter.append

    def note_and_append(store_writer: StoreWriter, packed: Packed) -> int:
        committed_at_writing.append(gate.n_commits)
        return append(store_writer, packed)

    monkeypatch.setattr(StoreWriter, "append", note_and_append)
    threading.Timer(0.2, gate.is_open.set).start()
    writer.submit(batch("c"))
    assert gate.n_commits >= 1  # nothing is acknowledged before it is durable
    assert Store(session.folder).keys()[:2] == ["a", "b"]
    assert writer.stored.n_records == 2
    writer.flush()
    assert committed_at_writing == [1]  # nothing of c was written before
    assert Store(session.folder).keys() == ["a", "b", "c"]
    assert writer.stored.n_records == 3


def test_one_thread_has_the_writer(
    session: StoreSession, monkeypatch: pytest.MonkeyPatch, writer: BackgroundWriter
) -> None:
    threads: dict[str, set[int]] = {}
    for name in ("append", "commit", "close"):
        original = getattr(StoreWriter, name)

        def note(*arguments: Any, _name: str = name, _original: Callable[..., Any] = original) -> Any:
            threads.setdefault(_name, set()).add(threading.get_ident())
            return _original(*arguments)

        monkeypatch.setattr(StoreWriter, name, note)
    for key in "abc":
        writer.submit(batch(key))
    writer.close()
    assert threads.keys() == {"append", "commit", "close"}
    (thread,) = set.union(*threads.values())
    assert thread != threading.get_ident()


def test_failures_are_named_and_counted(writer: BackgroundWriter, session: StoreSession) -> None:
    writer.submit([record("good"), Failure("bad", "s-0.tar", "it is empty.")])
    writer.flush()
    assert (writer.stored.n_records, writer.stored.n_failures) == (1, 1)
    store = Store(session.folder)
    assert store.keys() == ["good"]
    assert [(each.key, each.shard, each.reason) for each in store.failures()] == [("bad", "s-0.tar", "it is empty.")]


def break_the_disk(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    append = StoreWriter.append

    def fail(writer: StoreWriter, packed: Packed) -> int:
        if packed.key == at:
            raise StoreDiskError("the disk is full.")
        return append(writer, packed)

    monkeypatch.setattr(StoreWriter, "append", fail)


def test_a_batch_is_packed_while_the_one_before_is_written(
    writer: BackgroundWriter, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_packed = threading.Event()
    pack = StoreWriter.pack

    def pack_and_tell(store_writer: StoreWriter, key: str, *rest: Any) -> Packed:
        packed = pack(store_writer, key, *rest)
        if key == "b":
            is_packed.set()
            gate.is_open.set()
        return packed

    monkeypatch.setattr(StoreWriter, "pack", pack_and_tell)
    writer.submit(batch("a"))
    assert gate.arrived.wait(WAIT_S)
    writer.submit(batch("b"))  # the commit of a waits until b is packed
    assert is_packed.is_set()
    assert writer.stored.n_records == 1


def test_a_batch_that_may_not_be_written_is_not(writer: BackgroundWriter, session: StoreSession) -> None:
    n_stored: list[int] = []

    def refuse() -> None:
        n_stored.append(writer.stored.n_records)
        raise StoreDiskError("the rest does not fit.")

    writer.submit(batch("a", "b"))
    with pytest.raises(StoreDiskError, match="does not fit"):
        writer.submit(batch("c"), refuse)
    writer.close()
    assert n_stored == [2]  # asked once the batch before is durable
    assert Store(session.folder).keys() == ["a", "b"]


def test_an_error_comes_out_once_at_the_next_batch(
    writer: BackgroundWriter, session: StoreSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_disk(monkeypatch, at="b")
    writer.submit(batch("a"))
    writer.submit(batch("b"))
    with pytest.raises(StoreDiskError, match=r"the disk is full\."):
        writer.submit(batch("c"))
    with pytest.raises(StoreError, match="is closed; nothing follows what it has sealed"):
        writer.submit(batch("d"))
    writer.flush()
    writer.close()
    assert writer.stored.n_records == 1
    assert Store(session.folder).keys() == ["a"]
    session.close()
    with open_store_for_writing(session.folder, MANIFEST) as again:  # the thread has let go of the lock
        assert again.done == {"a"}


@pytest.mark.parametrize("ending", ["flush", "close"])
def test_an_error_of_the_last_batch_is_not_lost(
    writer: BackgroundWriter, session: StoreSession, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    break_the_disk(monkeypatch, at="b")
    writer.submit(batch("a", "b"))
    with pytest.raises(StoreDiskError, match=r"the disk is full\."):
        getattr(writer, ending)()
    writer.close()
    assert_whole(session, n_records=1)


def test_what_cannot_be_stored_is_named_and_the_others_are_written(
    writer: BackgroundWriter, session: StoreSession
) -> None:
    bad = Record("b", {"stack": np.array([np.nan])}, {"shard": "x.tar"})
    worse = Record("d", {}, {"shard": "x.tar", "map_error": float("nan")})
    writer.submit([record("a"), bad, record("c"), worse])
    writer.close()
    assert (writer.stored.n_records, writer.stored.n_failures) == (2, 2)
    store = Store(session.folder)
    assert store.keys() == ["a", "c"]
    assert [(failure.key, failure.shard) for failure in store.failures()] == [("b", "x.tar"), ("d", "x.tar")]
    assert all("holds" in failure.reason for failure in store.failures())
    finish(session, 4)
    assert verify(session.folder).is_sound


def test_a_failing_seal_is_told(
    writer: BackgroundWriter, session: StoreSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.submit(batch("a"))
    writer.flush()
    close = StoreWriter.close

    def fail(store_writer: StoreWriter) -> None:
        close(store_writer)
        raise StoreDiskError("the disk is full.")

    monkeypatch.setattr(StoreWriter, "close", fail)
    with pytest.raises(StoreDiskError):
        writer.close()
    writer.close()


def test_a_signal_during_the_wait_loses_nothing(writer: BackgroundWriter, session: StoreSession, gate: Gate) -> None:
    """Ctrl-C raises in the main thread, wherever that is."""

    def raise_interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, raise_interrupt)
    try:
        writer.submit(batch("a", "b"))
        assert gate.arrived.wait(WAIT_S)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            writer.submit(batch("c"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gate.is_open.set()
    writer.close()
    assert writer.stored.n_records == 2
    assert Store(session.folder).keys() == ["a", "b"]
    assert_whole(session, n_records=2)


KILLS = """
import json, os, sys
from pathlib import Path
from mapstack.store import Store, open_store_for_writing
from tests.faults.recording import CallList, Killer, Watch
from tests.train_like.test_background import MANIFEST, batch
from train_like.background import BackgroundWriter

BATCHES = [["a", "b"], ["c", "d"], ["e"], ["f", "g"]]

def job(folder, acknowledge):
    with open_store_for_writing(folder, MANIFEST) as session:
        todo = [[key for key in keys if key not in session.done] for keys in BATCHES]
        writer, before = BackgroundWriter(folder, session.run, 0), []
        for keys in todo:
            writer.submit(batch(*keys))
            acknowledge(before)
            before = keys
        writer.close()
        acknowledge(before)

def trial(folder, at, is_torn):
    reader, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        with Watch(folder.parent, Killer(at, is_torn)):
            job(folder, lambda keys: os.write(pipe, "".join(key + "\\n" for key in keys).encode()))
        os._exit(0)
    os.close(pipe)
    acknowledged = open(reader).read().split()
    was_killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    there = {key for key in (Store(folder).keys() if (folder / "manifest.json").exists() else [])}
    lost = set(acknowledged) - there
    torn = [key for key in there if Store(folder).read(key, check=True).info["text"] != key]
    job(folder, lambda keys: None)
    whole = sorted(Store(folder).keys()) == sorted(sum(BATCHES, []))
    return was_killed, not lost and not torn and whole

os.fsync = lambda fd: None  # a killed process loses nothing that it handed to the system
root = Path(sys.argv[1])
calls = CallList()
(root / "clean").mkdir()
with Watch(root / "clean", calls):
    job(root / "clean" / "store", lambda keys: None)
points = [(at, False) for at in range(len(calls.calls))]
points += [(at, True) for at, call in enumerate(calls.calls) if len(call.data) > 1]
points = points[int(sys.argv[2]) // 2 :: int(sys.argv[2])]
results = []
for number, (at, is_torn) in enumerate(points):
    (root / str(number)).mkdir()
    results.append(trial(root / str(number) / "store", at, is_torn))
assert not {"torch", "lightning", "webdataset"} & sys.modules.keys()
print(json.dumps([len(points), sum(killed for killed, _ in results), sum(not good for _, good in results)]))
os._exit(0)
"""


@pytest.mark.fault("W1")
def test_killed_at_any_call_it_leaves_whole_records_and_all_that_was_acknowledged(
    tmp_path: Path, campaign: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    every = campaign(3, 1)
    ended = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path, str(every)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    n_points, n_killed, n_bad = json.loads(ended.stdout.splitlines()[-1])
    assert n_points >= campaign(40, 120)
    assert (n_killed, n_bad) == (n_points, 0)
    figure(f"writing in a thread of its own: {n_points} kill points, {n_bad} with a record lost or torn")
