"""Trials in which a small job is killed: forked from a process that has imported the store and nothing heavy.

python -m tests.faults.store_trials FOLDER N_TWICE     the last line on standard output is JSON
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.recording import CallList, Killer, Watch
from tests.faults.store_job import faults_after, record_digests, run_job

Trial = list[
    tuple[int, bool]
]  # for each start of the job: before which call it is killed, and whether half-way through


def run_and_kill(folder: Path, killer: Killer) -> tuple[bool, list[str]]:
    """Run the job in a child; say whether it was killed, and what it had acknowledged."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with Watch(folder.parent, killer):
                run_job(folder, lambda key: os.write(writer, key.encode() + b"\n"))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as lines:
        acknowledged = lines.read().split()
    _, status = os.waitpid(child, 0)
    if status and os.WTERMSIG(status) != signal.SIGKILL:
        raise RuntimeError(f"the job ended with status {status}; it is killed or ends by itself")
    return os.WIFSIGNALED(status), acknowledged


def attempt(store: Path, trial: Trial, clean: dict[str, str]) -> tuple[int, list[str]]:
    """Run the job and kill it, as often as the trial says; say how often it died, and what is wrong then."""
    store.parent.mkdir()
    n_killed = 0
    acknowledged: list[str] = []
    for at, is_torn in trial:
        is_killed, keys = run_and_kill(store, Killer(at, is_torn))
        n_killed += is_killed
        acknowledged += keys
    faults = faults_after(store, acknowledged, clean)
    shutil.rmtree(store.parent)
    return n_killed, faults


def trials(n_calls: int, torn: list[int], n_twice: int) -> Iterable[Trial]:
    """Kill before every call, half-way through every write, and then at pairs of those."""
    points = [(index, False) for index in range(n_calls)] + [(index, True) for index in torn]
    yield from ([point] for point in points)
    rng = random.Random(0)
    yield from ([rng.choice(points), rng.choice(points)] for _ in range(n_twice))


def campaign(folder: Path, n_twice: int) -> dict[str, Any]:
    """Make all trials; a trial is bad where something acknowledged is lost, torn, or not as in a clean run."""
    os.fsync = lambda fd: None  # a killed process loses nothing that it handed to the system
    calls = CallList()
    with Watch(folder, calls):
        run_job(folder / "clean")
    clean = record_digests(folder / "clean")
    torn = [index for index, call in enumerate(calls.calls) if len(call.data) > 1]
    bad: list[Any] = []
    n_kills: Counter[tuple[int, int]] = Counter()  # by how often the job was to die, and did
    begun = time.perf_counter()
    for trial in trials(len(calls.calls), torn, n_twice):
        n_killed, faults = attempt(folder / "trial" / "store", trial, clean)
        n_kills[len(trial), n_killed] += 1
        bad += [[trial, faults]] if faults else []
    return {
        "calls": sorted({call.name for call in calls.calls}),
        "n_points": n_kills[1, 1],
        "n_torn": len(torn),
        "n_twice": n_kills[2, 2],
        "bad": bad,
        "s_per_trial": (time.perf_counter() - begun) / n_kills.total(),
        "heavy": sorted({"torch", "captum", "lightning", "PIL"} & sys.modules.keys()),
    }


if __name__ == "__main__":
    print(json.dumps(campaign(Path(sys.argv[1]), n_twice=int(sys.argv[2]))))
