"""Rows to shards: side by side on all cores, each shard whole or not there, and nothing done twice.

A shard is the unit of work. When its tar is whole and durable, a record beside it says what it holds; a run that comes
later, after a kill or at another time, passes over every shard that has its record. Shards and records depend on the
rows alone, so that they are byte for byte those of a run without interruption.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mapstack.errors import MapstackError, ShardError
from mapstack.store.disk import write_atomic
from train_like.datasets.loading import Loaded, Rules, load_sample
from train_like.datasets.rows import Row
from train_like.errors import StoppedError
from train_like.tarshards import Sample, write_shard

PARTS = ".parts"
_VERSION = 1  # of what is written; a change makes shards of earlier code another dataset
_OTHERS_MAY_NOT = 0o027
_POLL_S = 0.2


@dataclass(frozen=True)
class Task:
    """One shard to write.

    Attributes:
        shard: Where it goes.
        record: Where its record goes.
        rows: What it holds, as far as their files can be read.
        rules: How they are read.
    """

    shard: Path
    record: Path
    rows: tuple[Row, ...]
    rules: Rules

    @cached_property
    def digest(self) -> str:
        """What decides its bytes, but for the pictures themselves."""
        return hashlib.sha256(repr((_VERSION, self.shard.name, self.rows, self.rules)).encode()).hexdigest()


def plan(rows: Sequence[Row], rules: Rules, folder: Path, name: str, n_per_shard: int) -> list[Task]:
    """Divide the rows into shards, in their order."""
    groups = [tuple(rows[first : first + n_per_shard]) for first in range(0, len(rows), n_per_shard)]
    return [
        Task(folder / f"{name}-{number:06d}.tar", folder / PARTS / f"{number:06d}.json", group, rules)
        for number, group in enumerate(groups)
    ]


@contextmanager
def dataset_folder(folder: Path, name: str, tasks: Sequence[Task], *, overwrite: bool) -> Iterator[None]:
    """Hold the folder of a dataset's shards while they are written; what is made in it only owner and group can read.

    Raises:
        ShardError: It holds other shards, another job writes there, or nobody can.
    """
    previous = os.umask(_OTHERS_MAY_NOT)
    try:
        with writable(folder):
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            file = (folder / PARTS / "lock").open("w")
        with file as lock:
            _take(lock.fileno(), folder)
            _require_same_plan(folder, name, tasks, overwrite=overwrite)
            yield
    finally:
        os.umask(previous)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say what an OSError of the block means for a folder that is to be written.

    Raises:
        ShardError: There was one.
    """
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"folder '{folder}' cannot be written ({error.strerror or type(error).__name__}); the shards go there; "
            "mend its permissions, or choose another output."
        ) from None


def _take(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ShardError(
            f"folder '{folder}' is being written by another job; one job writes a dataset; wait for it, or choose "
            "another output."
        ) from None


def _require_same_plan(folder: Path, name: str, tasks: Sequence[Task], *, overwrite: bool) -> None:
    digest = hashlib.sha256("".join(task.digest for task in tasks).encode()).hexdigest()
    path = folder / PARTS / "plan.json"
    content = (json.dumps({"digest": digest, "name": name, "shards": len(tasks)}) + "\n").encode()
    if path.exists() and path.read_bytes() == content:
        return
    found = sorted(folder.glob(f"{name}-[0-9]*.tar"))
    if (path.exists() or found) and not overwrite:
        raise ShardError(
            f"folder '{folder}' holds shards that were made otherwise (another dataset, selection or setting); a "
            "folder holds one dataset; choose another output, or set overwrite=true to replace them."
        )
    for shard in found:
        shard.unlink()
    for record in (folder / PARTS).glob("*.json"):
        record.unlink()
    write_atomic(path, content)


def prepare_workers(n_workers: int) -> None:
    """Start the process that the writing ones are forked from, which loads its modules beside what goes on here."""
    if n_workers > 1:
        _context()
        forkserver.ensure_running()


def _context() -> Any:
    # Not forked from this process: that would copy the locks of its threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def write_tasks(tasks: Sequence[Task], n_workers: int) -> None:
    """Write every shard that is not there yet, and show the progress.

    Raises:
        StoppedError: The disk is full, or a reading process died.
    """
    open_tasks = [task for task in tasks if not is_done(task)]
    n_rows = sum(len(task.rows) for task in tasks)
    n_done = n_rows - sum(len(task.rows) for task in open_tasks)
    with tqdm(total=n_rows, initial=n_done, desc="shards", unit="image", dynamic_ncols=True) as bar:
        if min(n_workers, len(open_tasks)) <= 1:
            for task in open_tasks:
                _write(task, bar.update)
        else:
            _write_side_by_side(open_tasks, min(n_workers, len(open_tasks)), bar)


def _write(task: Task, advance: Any) -> None:
    try:
        write_task(task, advance)
    except OSError as error:
        raise _stopped(error) from None


def _stopped(error: OSError) -> StoppedError:
    return StoppedError(
        f"a shard could not be written ({error.strerror or type(error).__name__}); whole shards are kept; free or mend "
        "the disk, then run the same command to go on."
    )


def _write_side_by_side(tasks: Sequence[Task], n_workers: int, bar: Any) -> None:
    context = _context()
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(n_workers, context, initializer=_begin, initargs=(counter,)) as pool:
        running: set[Future[None]] = {pool.submit(_write_counted, task) for task in tasks}
        try:
            while running:
                done, running = wait(running, timeout=_POLL_S)
                for future in done:
                    future.result()
                bar.update(counter.value - (bar.n - bar.initial))
        except BrokenProcessPool:
            raise StoppedError(
                "a process that reads pictures died (was it short of memory?); whole shards are kept; run the same "
                "command to go on, with fewer n_workers if need be."
            ) from None
        except OSError as error:
            raise _stopped(error) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_COUNTER: Any = None


def _begin(counter: Any) -> None:
    """Prepare a process that writes: its counter, its file modes, and an end when the command's process is gone."""
    global _COUNTER
    _COUNTER = counter
    os.umask(_OTHERS_MAY_NOT)
    parent = multiprocessing.parent_process()

    def wait_and_exit() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True).start()


def _write_counted(task: Task) -> None:
    def advance(n: int) -> None:
        with _COUNTER.get_lock():
            _COUNTER.value += n

    write_task(task, advance)


def is_done(task: Task) -> bool:
    """Say whether a shard is there with its record."""
    if not task.record.exists():
        return False
    record = read_record(task.record)
    n_bytes = task.shard.stat().st_size if task.shard.exists() else 0
    return bool(record.get("digest") == task.digest and record.get("bytes") == n_bytes)


def read_record(path: Path) -> dict[str, Any]:
    """Read what a shard holds; {} where its record is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def write_task(task: Task, advance: Any) -> None:
    """Write a shard and then its record; a shard of which no picture can be read is not written.

    Args:
        task: The shard.
        advance: Called with the number of rows that were worked on.
    """
    record: dict[str, Any] = {"digest": task.digest, "samples": [], "failed": [], "notes": {}}
    samples = _samples(task, record, advance)
    first = next(samples, None)
    if first is None:
        task.shard.unlink(missing_ok=True)
    else:
        write_shard(_chained(first, samples), task.shard, set())
    record["bytes"] = task.shard.stat().st_size if first is not None else 0
    write_atomic(task.record, (json.dumps(record, sort_keys=True) + "\n").encode())


def _chained(first: Sample, rest: Iterator[Sample]) -> Iterator[Sample]:
    yield first
    yield from rest


def _samples(task: Task, record: dict[str, Any], advance: Any) -> Iterator[Sample]:
    for row in task.rows:
        try:
            loaded = load_sample(row, task.rules)
        except MapstackError as error:
            record["failed"].append({"id": row.id, "key": row.key, "reason": str(error)})
        except (OSError, MemoryError):
            raise
        except Exception as error:
            # The text of an error that is not ours may quote the file.
            reason = f"its preparation failed with {type(error).__name__}; check the file."
            record["failed"].append({"id": row.id, "key": row.key, "reason": reason})
        else:
            record["samples"].append(_describe(row, loaded))
            for note in loaded.notes:
                record["notes"][note] = record["notes"].get(note, 0) + 1
            yield loaded.sample
        advance(1)


def _describe(row: Row, loaded: Loaded) -> dict[str, Any]:
    info = loaded.sample.info
    return {
        "key": row.key,
        "size": list(loaded.size),
        "bytes": len(loaded.sample.image),
        "boxes": [finding["label"] for finding in info.get("findings", ()) if "box" in finding],
        "masks": sorted(loaded.sample.masks),
        "has_report": "report" in info,
        **{name: info[name] for name in ("labels", "uncertain", "negative") if name in info},
        **{name: info[name] for name in ("split", "view", "patient", "study") if name in info},
    }
