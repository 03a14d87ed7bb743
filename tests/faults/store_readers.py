"""Readers that poll a store as hard as they can while a job writes it, is killed, and is started again.

    python -m tests.faults.store_readers FOLDER N_KILLS     the last line on standard output is JSON

Forked from a process that has imported the store and nothing heavy.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from select import select
from socket import socket
from typing import Any

import numpy as np

from mapstack.errors import StoreError
from mapstack.store import Store, StoreWriter, finish, open_store_for_writing, record_failure, verify
from tests.faults.processes import fork
from tests.faults.recording import SlowDisk, Watch

N_READERS = 2
N_PER_KILL = 30
N_NUMBERS = 25_000  # 100 kB a record
BATCH = 3
MAX_PART_BYTES = 1_000_000


def write_store(folder: Path, n_samples: int, parent: socket) -> None:
    """Write samples "0", "1", ... of which every tenth fails; each holds nothing but its own number.

    For each sample the parent sends one byte.
    """
    with open_store_for_writing(folder, {"identity": {"seed": 0}}, expected=n_samples) as session:
        with StoreWriter(folder, session.run, 0, max_part_bytes=MAX_PART_BYTES) as writer:
            for index in range(n_samples):
                if str(index) in session.done | session.failed:
                    continue
                parent.recv(1)
                if index % 10 == 9:
                    record_failure(folder, str(index), "s-0.tar", "the picture is truncated")
                else:
                    writer.write(str(index), {"stack": np.full(N_NUMBERS, index, np.float32)}, {"index": index})
                if index % BATCH == 0:
                    writer.commit()
        finish(session, n_samples)


def write_slowly(folder: Path, n_samples: int, parent: socket) -> None:
    """Write so that a reader has time to look between any two steps."""
    with Watch(folder, SlowDisk(pause_s=0.0002)):
        write_store(folder, n_samples, parent)


class Reader:
    """Opens the store again and again, and reads everything that it had not seen before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        self.result: dict[str, Any] = {"n_opened": 0, "n_read": 0, "n_verified": 0, "sizes": [], "bad": []}

    def poll(self) -> None:
        """Look once."""
        try:
            self._look()
        except StoreError as error:
            # Only before the job has written its first manifest is the folder no store.
            if self._seen or "is no stack store" not in str(error):
                self.result["bad"].append(str(error))

    def _look(self) -> None:
        store = Store(self._folder)
        keys = set(store.keys())
        self.result["n_opened"] += 1
        if not keys >= self._seen:
            self.result["bad"].append(f"{sorted(self._seen - keys)} are gone")
        for key in sorted(keys - self._seen):
            record = store.read(key, check=True)
            if record.info["index"] != int(key) or not (record.arrays["stack"] == int(key)).all():
                self.result["bad"].append(f"{key} is another record")
            self.result["n_read"] += 1
        if keys != self._seen:
            self.result["sizes"].append(len(keys))
            found = verify(self._folder)
            self.result["n_verified"] += 1
            if found.n_damaged or found.n_done < len(keys):
                self.result["bad"].append(str(found))
        self._seen |= keys


def read_until_stopped(folder: Path, parent: socket) -> None:
    """Poll until the parent sends a byte, then report to it."""
    reader = Reader(folder)
    while not select([parent], [], [], 0)[0]:
        reader.poll()
    parent.recv(1)
    reader.poll()
    parent.sendall(json.dumps(reader.result).encode())


def campaign(folder: Path, n_kills: int) -> dict[str, Any]:
    """Write a store in `n_kills + 1` starts of a job, with readers beside it."""
    readers = [fork(lambda parent: read_until_stopped(folder, parent)) for _ in range(N_READERS)]
    rng = random.Random(0)
    n_killed = 0
    n_samples = N_PER_KILL * (n_kills + 1)
    for number in range(n_kills + 1):
        process, writer = fork(lambda parent: write_slowly(folder, n_samples, parent))
        with writer:
            writer.sendall(bytes(n_samples if number == n_kills else rng.randint(1, N_PER_KILL)))
            if number < n_kills:
                time.sleep(rng.uniform(0, 0.2))
                os.kill(process, signal.SIGKILL)
            n_killed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
    results = [finish_reader(process, reader) for process, reader in readers]
    return {"n_killed": n_killed, "n_done": len(Store(folder)), "sound": verify(folder).is_sound, "readers": results}


def finish_reader(process: int, reader: socket) -> Any:
    """Let a reader look once more, and take its report."""
    with reader, reader.makefile() as report:
        reader.sendall(b"x")
        result = json.loads(report.read())
        os.waitpid(process, 0)
    return result


if __name__ == "__main__":
    print(json.dumps(campaign(Path(sys.argv[1]), n_kills=int(sys.argv[2]))))
