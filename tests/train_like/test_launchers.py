"""The job under every launcher on two ranks, and killed: each run is processes of its own.

Two ranks on the CPU talk through gloo. Most of the time goes into starting Python.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mapstack.store.layout import list_parts
from tests.train_like.jobs import Ended, record_bytes
from tests.train_like.launched import EXTRACT, TIMEOUT_S, free_port, processes, run, wait_for_records
from train_like.cli import main

BIN = Path(sys.executable).parent
MODULE = EXTRACT[1:]
Figure = Callable[[str], None]


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
    (ended,) = run([*EXTRACT, *two_ranks, "data.num_workers=1"])
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


@pytest.mark.fault("W6")
def test_srun_goes_on_with_what_one_rank_began(
    two_ranks: list[object], job_config: Path, tmp_path: Path, clean_store: Path, figure: Figure
) -> None:
    assert main(["extract", str(job_config), "data.limit=2"]) == 0
    command = [*EXTRACT, *two_ranks]
    slurm = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1, "PROCID": "{number}", "LOCALID": "{number}", "NODEID": 0}
    job = {"JOB_ID": 4242, "JOB_NAME": "maps", "NODELIST": "127.0.0.1"}
    environment = {f"SLURM_{name}": value for name, value in (slurm | job).items()}
    first, second = run(command, command, **environment, MASTER_PORT=free_port())
    assert "2 records are done already" in first.err
    assert_done_by_two(first, tmp_path / "store", clean_store, by_rank_0=2)
    assert (second.code, second.out) == (0, "")
    assert_quiet(second.err)
    figure("2 of 7 done by 1 rank: 2 ranks compute the other 5, bit for bit as 1 would")


def test_a_rank_without_work_ends_with_the_others(two_ranks: list[object], tmp_path: Path) -> None:
    (ended,) = run([*EXTRACT, *two_ranks, "data.limit=1"])
    assert ended.code == 0, ended.err
    assert (ended.line["done"], ended.line["computed_by_rank_0"]) == (1, 0)
    assert len(record_bytes(tmp_path / "store")) == 1


def test_a_stray_rank_in_the_environment_loses_nothing(job_config: Path, tmp_path: Path, clean_store: Path) -> None:
    (ended,) = run([*EXTRACT, job_config], RANK=1, WORLD_SIZE=2)
    assert ended.code == 0, ended.err
    assert (ended.line["done"], ended.line["computed_by_rank_0"]) == (7, 7)
    assert record_bytes(tmp_path / "store") == record_bytes(clean_store)


@pytest.mark.fault("W5")
def test_killed_and_terminated_runs_are_continued(job_config: Path, tmp_path: Path, figure: Figure) -> None:
    """SIGKILL, then SIGTERM to the whole process group with its readers, as SLURM sends it; then left in peace."""
    overrides = ["method.strides=8", "data.batch_size=1"]
    command = [*EXTRACT, job_config, *overrides, "data.num_workers=1"]
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
    figure(
        f"1 rank with a reader: {n_killed} of 7 kept through SIGKILL, {n_terminated} after SIGTERM to the group (143), "
        "then 7 of 7, bit for bit"
    )
