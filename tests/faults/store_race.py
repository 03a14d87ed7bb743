"""Jobs that open one store at the same moment, and die with it open.

    python -m tests.faults.store_race FOLDER N_ROUNDS     the last line on standard output is JSON

Forked from a process that has imported the store and nothing heavy.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from socket import socket
from typing import Any

from mapstack.errors import StoreError
from mapstack.store import open_store_for_writing
from tests.faults.processes import fork

N_JOBS = 6


def try_to_open(folder: Path, parent: socket) -> None:
    """Open the store once the parent says so, tell how that went, and keep it open until the parent ends this."""
    parent.recv(1)
    begun = time.perf_counter()
    try:
        session = open_store_for_writing(folder, {"identity": {"seed": 0}})
        told = f"open for run {session.run}"
    except StoreError as error:
        told = str(error)
    parent.sendall(json.dumps([told, time.perf_counter() - begun]).encode())
    parent.recv(1)


def race(folder: Path) -> dict[str, Any]:
    """Let the jobs go at once; say who has the store, and what the others were told."""
    jobs = [fork(lambda parent: try_to_open(folder, parent)) for _ in range(N_JOBS)]
    for _, job in jobs:
        job.sendall(b"x")
    told = {process: json.loads(job.recv(10_000)) for process, job in jobs}
    for process, job in jobs:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        job.close()
    holders = [process for process, (text, _) in told.items() if text.startswith("open for run")]
    refusals = [(text, took_s) for process, (text, took_s) in told.items() if process not in holders]
    return {
        "n_holders": len(holders),
        "n_refused": sum("is being written by" in text for text, _ in refusals),
        "n_named": sum(any(f"pid {holder} " in text for holder in holders) for text, _ in refusals),
        "slowest_s": max(took_s for _, took_s in refusals),
    }


if __name__ == "__main__":
    # The next race finds the lock of a holder that is dead.
    print(json.dumps([race(Path(sys.argv[1])) for _ in range(int(sys.argv[2]))]))
