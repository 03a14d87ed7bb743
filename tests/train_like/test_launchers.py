"""The job under every launcher on two ranks, and killed: each run is processes of its own.

Two ranks on the CPU talk through gloo. Most of the time goes into starting Python.
"""

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

import pytest

from mapstack.store.journal import read_journal
from mapstack.store.layout import list_parts
from tests.train_like.jobs import Ended, record_bytes
from train_like.cli import main

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MODULE = ("-m", "train_like", "extract")
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


def run(*commands: Sequence[object], **environment: object) -> list[Ended]:
    with processes(*commands, **environment) as started:
        endings = []
        for process in started:
            out, err = process.communicate(timeout=TIMEOUT_S)
            line = json.loads(out.splitlines()[-1]) if out else {}
            endings.append(Ended(process.returncode, line, out, err))
        return endings


def assert_quiet(err: str) -> None:
    """Nothing but progress on standard error: no warnings of Python's, no notes of Lightning's."""
    noise = [line for line in re.split(r"[\r\n]+", err) if line and not re.match(r"(\x1b\[A)*extract.*image", line)]
    assert noise == []


def assert_done_by_two(ended: Ended, store: Path, clean_store: Path, by_rank_0: int) -> None:
    assert ended.code == 0, ended.err
    assert (ended.line["status"], ended.line["expected"], ended.line["done"]) == ("done", 7, 7)
    assert ended.line["computed_by_rank_0"] == by_rank_0
    assert ended.out.count("\n") == 1
    # Bit for bit what one rank writes. That a key comes once is asserted where records are read.
    assert record_bytes(store) == record_bytes(clean_store)
    assert {part.rank for part in list_parts(store)} >= {0, 1}


@pytest.fixture
def two_ranks(job_config: Path) -> list[object]:
    return [job_config, "trainer.devices=2"]


def test_plain_launcher(two_ranks: list[object], tmp_path: Path, clean_store: Path) -> None:
    (ended,) = run([sys.executable, *MODULE, *two_ranks, "data.num_workers=1"])
    assert_done_by_two(ended, tmp_path / "store", clean_store, by_rank_0=3)
    assert_quiet(ended.err)


def test_torchrun(two_ranks: list[object], tmp_path: Path, clean_store: Path) -> None:
    torchrun = [BIN / "torchrun", "--nproc_per_node", 2, "--master_port", free_port()]
    (ended,) = run([*torchrun, *MODULE, *two_ranks])
    assert_done_by_two(ended, tmp_path / "store", clean_store, by_rank_0=3)
    assert_quiet(ended.err)


def test_fabric_run(two_ranks: list[object], tmp_path: Path, clean_store: Path) -> None:
    fabric = [BIN / "fabric", "run", "--accelerator", "cpu", "--devices", 2, "--strategy", "ddp"]
    script = ["--main-port", free_port(), "train_like/__main__.py", "extract"]
    (ended,) = run([*fabric, *script, *two_ranks])
    assert_done_by_two(ended, tmp_path / "store", clean_store, by_rank_0=3)
    assert_quiet(ended.err)


def test_srun_goes_on_with_what_one_rank_began(
    two_ranks: list[object], job_config: Path, tmp_path: Path, clean_store: Path
) -> None:
    assert main(["extract", str(job_config), "data.limit=2"]) == 0
    command = [sys.executable, *MODULE, *two_ranks]
    slurm = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1, "PROCID": "{number}", "LOCALID": "{number}", "NODEID": 0}
    job = {"JOB_ID": 4242, "JOB_NAME": "maps", "NODELIST": "127.0.0.1"}
    environment = {f"SLURM_{name}": value for name, value in (slurm | job).items()}
    first, second = run(command, command, **environment, MASTER_PORT=free_port())
    assert "2 records are done already" in first.err
    assert_done_by_two(first, tmp_path / "store", clean_store, by_rank_0=2)
    assert (second.code, second.out) == (0, "")
    assert_quiet(second.err)


def test_a_rank_without_work_ends_with_the_others(two_ranks: list[object], tmp_path: Path) -> None:
    (ended,) = run([sys.executable, *MODULE, *two_ranks, "data.limit=1"])
    assert ended.code == 0, ended.err
    assert (ended.line["done"], ended.line["computed_by_rank_0"]) == (1, 0)
    assert len(record_bytes(tmp_path / "store")) == 1


def test_a_stray_rank_in_the_environment_loses_nothing(job_config: Path, tmp_path: Path, clean_store: Path) -> None:
    (ended,) = run([sys.executable, *MODULE, job_config], RANK=1, WORLD_SIZE=2)
    assert ended.code == 0, ended.err
    assert (ended.line["done"], ended.line["computed_by_rank_0"]) == (7, 7)
    assert record_bytes(tmp_path / "store") == record_bytes(clean_store)


def wait_for_records(store: Path, n: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while sum(len(read_journal(part.journal(store)).entries) for part in list_parts(store)) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_and_terminated_runs_are_continued(job_config: Path, tmp_path: Path) -> None:
    """SIGKILL, then SIGTERM to the whole process group with its readers, as SLURM sends it; then left in peace."""
    overrides = ["method.strides=8", "data.batch_size=1"]
    command = [sys.executable, *MODULE, job_config, *overrides, "data.num_workers=1"]
    store = tmp_path / "store"
    store.mkdir()
    with processes(command) as (process,):
        wait_for_records(store, 1, process)
        process.kill()
        process.communicate(timeout=20)  # its readers end with it, and let go of its output
    n_killed = len(record_bytes(store))
    assert 1 <= n_killed < 6
    with processes(command) as (process,):
        wait_for_records(store, n_killed + 1, process)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 143, err
    assert json.loads(out)["status"] == "terminated"
    n_terminated = len(record_bytes(store))
    assert n_killed < n_terminated < 7
    assert not list(store.glob("*.partial"))
    assert main(["extract", str(job_config), *overrides]) == 0
    assert main(["extract", str(job_config), *overrides, f"output={tmp_path / 'clean'}"]) == 0
    assert len({part.run for part in list_parts(store)}) == 3
    assert record_bytes(store) == record_bytes(tmp_path / "clean")
