"""`project` on a store larger than memory: in order, a few records ahead, and no further."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mapstack.explainer import Explainer
from mapstack.geometry import Geometry
from mapstack.stack import Stack
from tests.train_like.jobs import Ended, flat_png, write_shard
from tests.train_like.launched import ROOT
from train_like import project
from train_like.project import Projection

KEYS = [f"k{i}" for i in range(20)]


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> int:
    """However many cores this machine has."""
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    return 3


def projection(key: str) -> Projection:
    return Projection(key, torch.zeros(1, 4, 4), 1.0, Geometry((4, 4), 4, (0.0, 0.0, 4.0, 4.0)), {})


def test_projections_come_in_the_order_of_the_keys() -> None:
    def make(key: str) -> Projection:
        time.sleep(0.002 * (int(key[1:]) * 7 % 5))
        return projection(key)

    assert [each.key for each in project._work_ahead(KEYS, make)] == KEYS


def test_no_more_is_begun_than_the_threads_take(threads: int) -> None:
    begun: list[str] = []

    def make(key: str) -> Projection:
        begun.append(key)
        return projection(key)

    for n_taken, _ in enumerate(project._work_ahead(KEYS, make), start=1):
        time.sleep(0.005)  # as long as a thread would need to run away
        assert len(begun) <= n_taken + threads
    assert begun == KEYS


def test_threads_work_at_the_same_time(threads: int) -> None:
    together = threading.Barrier(threads, timeout=20)  # breaks unless that many are in it

    def make(key: str) -> Projection:
        together.wait()
        return projection(key)

    assert len(list(project._work_ahead(KEYS[: 2 * threads], make))) == 2 * threads


def test_an_error_comes_out_where_its_record_stands() -> None:
    def make(key: str) -> Projection:
        if key == "k3":
            raise ValueError("record 'k3' is damaged")
        return projection(key)

    taken = project._work_ahead(KEYS, make)
    assert [next(taken).key for _ in range(3)] == ["k0", "k1", "k2"]
    with pytest.raises(ValueError, match="record 'k3' is damaged"):
        next(taken)


FEW, MANY = 16, 64
RECORD_BYTES = 512 * 28 * 28 * 4
RESIDENT = """
import json, os, sys
from pathlib import Path
from train_like import cli, project
write, resident = project._write, []
def write_and_look(*arguments):
    write(*arguments)
    resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
project._write = write_and_look
assert cli.main(["project", sys.argv[1], "prompts.texts=[heart, no nodule]"]) == 0
print(json.dumps(resident))
"""


def test_memory_does_not_grow_with_the_records(
    write_config: Callable[[str | Path], Path],
    command: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    """In a process of its own; with all records kept it would be 77 MB more."""

    def make_stack(self: Explainer, inputs: Any, *_: Any, **__: Any) -> Stack:
        values = torch.ones(len(inputs), 512, 28, 28)
        return Stack(values.mean(dim=(2, 3)), self.normalize, values, is_raw=True)

    monkeypatch.setattr(Explainer, "stack", make_stack)
    config = write_config(write_shard(tmp_path / "s.tar", [(f"{i}", {"png": flat_png(i)}) for i in range(MANY)]))
    with config.open("a") as file:
        file.write(f"project: {{output: {tmp_path / 'maps'}, pictures: false}}\n")
    stack = "stack={map_size: 28, codec: float32}"
    assert command("extract", config, "method={name: gradient}", stack).line["done"] == MANY
    arguments = [sys.executable, "-c", RESIDENT, str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    resident = json.loads(ended.stdout.splitlines()[-1])
    assert len(resident) == len(list((tmp_path / "maps").glob("*.maps.npy"))) == MANY
    first, last = max(resident[:FEW]), max(resident)
    assert last - first < (MANY - FEW) * RECORD_BYTES / 2
    growth = f"{(last - first) / 1e6:+.1f} MB between {FEW} and {MANY} records of 1.6 MB"
    figure(f"project: {growth} ({last / 1e6:.0f} MB in all)")
