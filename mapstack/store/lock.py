"""The lock that keeps a folder to one job, with as many ranks as it has.

`flock` on one file: the process that opens the store takes it exclusively (nobody else alive writes here), and then
shares it with the ranks of its own job. The system drops the lock of a dead process by itself, so that no stale lock
has to be judged by a pid or by a clock; what the file says is only told to the person who is refused.
"""

import fcntl
import json
import os
import random
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mapstack.errors import StoreDiskError, StoreError
from mapstack.store.disk import FILE_MODE, write_all
from mapstack.store.layout import LOCK

_MAX_BYTES = 1024**2
_N_LOOKS = 10
_LOOK_S = 0.03


class FolderLock:
    """A hold on the folder of a stack store, kept until `release` or the end of the process."""

    def __init__(self, folder: Path, fd: int) -> None:
        """Wrap a file that is locked already; use `exclusive` or `join`."""
        self._folder = folder
        self._fd = fd
        _HELD.add(self)

    @classmethod
    def exclusive(cls, folder: Path) -> "FolderLock":
        """Take the folder for a new job.

        Raises:
            StoreError: A process of another job still holds it; the message says which.
        """
        lock = cls(folder, _lock(folder, os.O_CREAT, fcntl.LOCK_EX))
        with lock._kept_if_all_goes_well():
            os.ftruncate(lock._fd, 0)
            write_all(lock._fd, [_holder(rank=0)])
        return lock

    @classmethod
    def join(cls, folder: Path, run: int, rank: int) -> "FolderLock":
        """Share the folder as one rank of the job that opened it.

        Raises:
            StoreError: No store was opened there, or another job has it by now.
        """
        lock = cls(folder, _lock(folder, 0, fcntl.LOCK_SH))
        with lock._kept_if_all_goes_well():
            current = next((holder.get("run") for holder in _holders(lock._fd)), None)
            if current != run:
                raise StoreError(
                    f"stack store '{folder}' was opened for run {current}, this writer belongs to run {run}; all ranks "
                    "write for the session that is open now; take `run` from it."
                )
            write_all(lock._fd, [_holder(run=run, rank=rank)])
        return lock

    def share(self, run: int) -> None:
        """Let the ranks of this job join, as run number `run`.

        Raises:
            StoreError: Another job took the folder in between; this one has written no record yet.
        """
        os.ftruncate(self._fd, 0)
        write_all(self._fd, [_holder(run=run, rank=0)])
        _flock(self._folder, self._fd, fcntl.LOCK_SH)

    def release(self) -> None:
        """Give the folder back; again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def _kept_if_all_goes_well(self) -> Iterator[None]:
        # On a full disk the holder cannot be named; the lock must not outlive that, or this process could not retry.
        try:
            yield
        except BaseException:
            self.release()
            raise


def refuse_if_held(folder: Path) -> None:
    """Refuse a folder that another job holds, before anything slow is done; nothing is written, and no lock is kept.

    Every rank of a job that starts may ask, at the same moment: each has the lock for as long as it asks, so that only
    who finds it taken again and again is refused.

    Raises:
        StoreError: A process of another job holds it; the message says which.
        StoreDiskError: The file system has no locks.
    """
    try:
        fd = os.open(folder / LOCK, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):  # nobody has written there
        return
    try:
        for _ in range(_N_LOOKS):
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(random.uniform(0, 2 * _LOOK_S))
        _flock(folder, fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_inherited() -> None:
    # A forked data-loading worker shares its parent's lock, and would keep the folder locked after the parent died.
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_close_inherited)


def _lock(folder: Path, flags: int, operation: int) -> int:
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_APPEND | flags, FILE_MODE)
    except FileNotFoundError:
        raise StoreError(
            f"stack store '{folder}' has no {LOCK}; a rank writes into a store that rank 0 has opened; "
            "call open_store_for_writing first."
        ) from None
    try:
        _flock(folder, fd, operation)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _flock(folder: Path, fd: int, operation: int) -> None:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(
            f"stack store '{folder}' is being written by {_describe(fd)}; one job writes to a store at a time; "
            "wait for it or end it, or use another output folder."
        ) from None
    except OSError as error:
        raise StoreDiskError(
            f"the file system of stack store '{folder}' cannot lock a file ({error.strerror}); without a lock two jobs "
            "could write there at once; mount it with flock, or use another output folder."
        ) from error


def _holder(**numbers: int) -> bytes:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    holder = {"host": os.uname().nodename, "pid": os.getpid(), "started": started, **numbers}
    return json.dumps(holder).encode() + b"\n"


def _holders(fd: int) -> list[dict[str, Any]]:
    holders = []
    for line in os.pread(fd, _MAX_BYTES, 0).splitlines():
        try:
            holder = json.loads(line)
        except ValueError:  # the holder is writing this line now
            continue
        if isinstance(holder, dict):
            holders.append(holder)
    return holders


def _describe(fd: int) -> str:
    for _ in range(_N_LOOKS):
        # A holder writes its name just after it took the lock; until then the file is empty, or names one that is dead.
        time.sleep(_LOOK_S)
        holders = [
            f"host {holder.get('host')}, pid {holder.get('pid')} (rank {holder.get('rank')}, since "
            f"{holder.get('started')})"
            for holder in _holders(fd)
        ]
        if holders:
            return " and ".join(holders)
    return "a job that is just starting"
