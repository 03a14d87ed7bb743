"""Runs of the job as processes of their own: starting them, watching them, and leaving none behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mapstack.store.journal import read_journal
from mapstack.store.layout import LOCK, list_parts
from tests.train_like.jobs import Ended

ROOT = Path(__file__).parents[2]
EXTRACT = (sys.executable, "-m", "train_like", "extract")
TIMEOUT_S = 240
LAUNCHERS = re.compile(r"(SLURM|PMI|OMPI|TORCHELASTIC|LT)_|(MASTER|NODE|LOCAL|GROUP|WORLD)_|RANK$|PYTEST")


@contextmanager
def processes(*commands: Sequence[object], **environment: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Start commands from the checkout, in process groups of their own, which are gone at the end."""
    clean = {name: value for name, value in os.environ.items() if not LAUNCHERS.match(name)}
    started = [
        subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=clean
            | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            | {name: str(value).format(number=number) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number, command in enumerate(commands)
    ]
    try:
        yield started
    finally:
        for process in started:
            end_group(process)


def end_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for the end of a process, and of every other that writes into its pipes."""
    out, err = process.communicate(timeout=TIMEOUT_S)
    return Ended(process.returncode, json.loads(out.splitlines()[-1]) if out else {}, out, err)


def run(*commands: Sequence[object], **environment: object) -> list[Ended]:
    with processes(*commands, **environment) as started:
        return [ended(process) for process in started]


def journalled(store: Path, rank: int | None = None) -> set[str]:
    """The keys that are acknowledged by now, of all ranks or of one."""
    parts = [part for part in list_parts(store) if rank in (None, part.rank)] if store.is_dir() else []
    return {entry.key for part in parts for entry in read_journal(part.journal(store)).entries}


def wait_for_records(store: Path, n: int, process: subprocess.Popen[str], rank: int | None = None) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while len(journalled(store, rank)) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rank_pids(store: Path) -> dict[int, int]:
    """The processes that have the store open, by rank."""
    holders = [json.loads(line) for line in (store / LOCK).read_text().splitlines()]
    return {holder["rank"]: holder["pid"] for holder in holders}


def living(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended in between
            state, _, members = path.read_text().rpartition(")")[2].split()[:3]
            if int(members) == group and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def seconds_until_gone(group: int) -> float:
    """Wait until no process of a group lives; one closes its pipes a moment before it has ended."""
    since = time.monotonic()
    while living(group):
        assert time.monotonic() - since < TIMEOUT_S, "processes are left behind"
        time.sleep(0.02)
    return time.monotonic() - since
