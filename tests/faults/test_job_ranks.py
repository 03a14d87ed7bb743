"""Two ranks on the CPU, of which one is killed, signalled or fails: nothing hangs, stays behind or is lost."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mapstack.store import Store
from mapstack.store.layout import list_parts
from tests.train_like.jobs import Ended, record_bytes
from tests.train_like.launched import (
    EXTRACT,
    ROOT,
    TIMEOUT_S,
    ended,
    journalled,
    processes,
    rank_pids,
    run,
    seconds_until_gone,
    wait_for_records,
)
from train_like import writer
from train_like.cli import main
from train_like.local_ranks import LocalRanks
from train_like.module import StackModule

Campaign = Callable[[int, int], int]
Command = Callable[..., Ended]
Figure = Callable[[str], None]

SLOW = ("method.strides=8", "data.batch_size=1")  # so that a fault comes between the first sample and the last
KILLED, STOPPED, TERMINATED = -signal.SIGKILL, 4, 143


def fail_writing(pid: int) -> None:
    """Let every write of a process that would make a file longer raise OSError, as a full disk does."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


# What happens to a rank, and the exit code that it gives where it happens to rank 0 and to rank 1.
FAULTS: dict[str, tuple[Callable[[int], None], tuple[int, int]]] = {
    "SIGTERM": (lambda pid: os.kill(pid, signal.SIGTERM), (TERMINATED, TERMINATED)),
    "SIGKILL": (lambda pid: os.kill(pid, signal.SIGKILL), (KILLED, STOPPED)),
    "SIGINT": (lambda pid: os.kill(pid, signal.SIGINT), (STOPPED, STOPPED)),
    "an exception": (fail_writing, (STOPPED, STOPPED)),
}


@pytest.fixture(scope="module")
def uninterrupted(job_checkpoint: Path, job_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The records of a job that nothing happens to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = folder / "job.yaml"
    config.write_text(
        f"model: {{name: medclip-vit, checkpoint: {job_checkpoint}}}\n"
        f"data: {{shards: '{job_shards}', num_workers: 0}}\n"
        "method: {name: occlusion, sliding_window_shapes: 56}\n"
        f"output: {folder / 'store'}\n"
        "trainer: {accelerator: cpu, devices: 1}\n"
    )
    assert main(["extract", str(config), *SLOW]) == 0
    return record_bytes(folder / "store")


def hit(process: subprocess.Popen[str], store: Path, rank: int, happen: Callable[[int], None], delay_s: float) -> float:
    """Let something happen to a rank that has committed a sample; answer how long the job took to end [s]."""
    wait_for_records(store, 1, process, rank)
    time.sleep(delay_s)
    acknowledged = journalled(store)
    with suppress(ProcessLookupError):
        happen(rank_pids(store)[rank])
    since = time.monotonic()
    process.wait(TIMEOUT_S)
    seconds_until_gone(process.pid)
    assert acknowledged <= journalled(store)
    return time.monotonic() - since


@pytest.mark.fault("W5")
@pytest.mark.fault("W6")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_of_a_rank_goes_unnoticed_or_loses_a_record(
    name: str,
    rank: int,
    job_config: Path,
    tmp_path: Path,
    uninterrupted: dict[str, bytes],
    campaign: Campaign,
    figure: Figure,
    pytestconfig: pytest.Config,
) -> None:
    """After each the same command, with two ranks or with one, completes the store; in the long form, at any moment."""
    is_long = bool(pytestconfig.getoption("--long"))
    rng = random.Random(f"{name} of rank {rank}")
    happen, expected = FAULTS[name]
    two = [*EXTRACT, job_config, *SLOW, "trainer.devices=2"]
    codes, longest_s = [], 0.0
    for number in range(campaign(1, 4)):
        store = tmp_path / f"store-{number}"
        n_workers = (list(FAULTS).index(name) + number) % 2
        with processes([*two, f"output={store}", f"data.num_workers={n_workers}"]) as (process,):
            seconds = hit(process, store, rank, happen, rng.uniform(0, 2) if is_long else 0)
            end = ended(process)
        longest_s = max(longest_s, seconds)
        is_over = record_bytes(store) == uninterrupted  # it came too late to keep a rank from its work
        assert is_over or end.code == expected[rank], (name, end)
        if end.code == TERMINATED:
            assert end.line["status"] == "terminated"
            assert not list(store.glob("*.partial"))
        codes.append(str(end.code))
        if is_long:
            (again,) = run([*two, f"output={store}"])
            assert again.code == 0, again.err
        else:
            assert main(["extract", str(job_config), *SLOW, f"output={store}"]) == 0
        assert record_bytes(store) == uninterrupted
    assert longest_s < TIMEOUT_S / 2
    ended_with = f"exit code {' or '.join(dict.fromkeys(codes))} within {longest_s:.1f} s"
    figure(f"{name} at rank {rank} of 2, {len(codes)} times: {ended_with}, 0 records lost, 0 processes left")


def has_started_a_rank(pid: int) -> bool:
    """Whether Lightning's launcher has started rank 1; what else a process starts has no LOCAL_RANK."""
    with suppress(OSError):  # it has ended in between
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any(b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes() for child in children)
    return False


@pytest.mark.fault("W5")
def test_a_rank_whose_starter_is_killed_before_the_loop_does_not_stay_behind(
    job_config: Path, tmp_path: Path, figure: Figure
) -> None:
    """It would try for half an hour to reach rank 0."""
    with processes([*EXTRACT, job_config, "trainer.devices=2"]) as (process,):
        deadline = time.monotonic() + TIMEOUT_S
        while not has_started_a_rank(process.pid):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        since = time.monotonic()
        ended(process)
        seconds_until_gone(process.pid)
        seconds = time.monotonic() - since
    assert not (tmp_path / "store").exists()
    figure(f"rank 0 killed while rank 1 starts: 0 processes left after {seconds:.1f} s")


STARTER = """
import subprocess, sys, time
from train_like.local_ranks import LocalRanks
ranks = LocalRanks()
ranks.begin()
if len(sys.argv) == 1:
    started = subprocess.Popen([sys.executable, __file__, "rank 1"])
    print(started.pid, flush=True)
time.sleep(600)
"""


def test_a_rank_is_sent_sigterm_when_its_starter_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as starter:
        assert starter.stdout is not None
        started = int(starter.stdout.readline())
        time.sleep(0.3)
        os.kill(started, 0)
        starter.kill()
        assert starter.stdout.read() == ""  # the other has the pipe open until it ends
    assert "MAPSTACK_STARTED_BY" not in os.environ


def test_a_started_rank_that_ends_is_noticed_and_one_that_stays_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train_like.local_ranks._PATIENCE_S", 0.2)

    class Launcher:
        def __init__(self, *codes: str) -> None:
            self.procs = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]

    ranks = LocalRanks()
    launcher = Launcher("import time; time.sleep(600)")
    (patient,) = launcher.procs
    ranks.take_over(launcher)
    assert launcher.procs == []  # Lightning's observer has nothing to watch any more
    assert not ranks.is_one_gone
    launcher = Launcher("")
    launcher.procs[0].wait()
    ranks.take_over(launcher)
    assert ranks.is_one_gone
    ranks.end()
    assert patient.returncode == -signal.SIGKILL


@pytest.mark.fault("W5")
def test_a_job_stops_at_the_next_commit_when_a_rank_is_lost(
    job_config: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    monkeypatch.setattr(LocalRanks, "is_one_gone", property(lambda self: len(journalled(tmp_path / "store")) >= 2))
    end = command("extract", job_config, "data.batch_size=1")
    assert (end.code, end.line["status"]) == (4, "stopped")
    assert "another rank ended before its share was done" in end.err
    n_records = len(Store(tmp_path / "store"))
    assert 2 <= n_records < 7
    figure(f"a rank lost after 2 commits of 7: rank 0 stops with {n_records} records, exit code 4")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.fault("W5")
def test_sigterm_before_the_first_batch_begins_none(
    job_config: Path,
    command: Command,
    tmp_path: Path,
    clean_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Figure,
) -> None:
    """It comes while the store is opened, which may take long where much is to be recovered."""
    open_store = writer.open_store_for_writing

    def open_late(*arguments: object, **settings: object) -> object:
        terminate()
        return open_store(*arguments, **settings)  # type: ignore[arg-type]

    def compute(*_: object) -> None:
        pytest.fail("a batch was begun")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "open_store_for_writing", open_late)
        patch.setattr(StackModule, "predict_step", compute)
        end = command("extract", job_config)
    assert (end.code, end.line["status"]) == (143, "terminated")
    assert command("verify", tmp_path / "store").line["missing"] == 7
    assert command("extract", job_config).line["done"] == 7
    assert record_bytes(tmp_path / "store") == record_bytes(clean_store)
    figure("SIGTERM while the store is opened: 0 batches begun, exit code 143, then 7 of 7 done")


@pytest.mark.fault("W5")
def test_sigterm_while_the_account_is_closed_spoils_nothing(
    job_config: Path,
    command: Command,
    tmp_path: Path,
    clean_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Figure,
) -> None:
    """All work is done by then: the job ends as it would have."""
    count = writer.finish

    def count_late(*arguments: object) -> object:
        terminate()
        return count(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "finish", count_late)
    end = command("extract", job_config)
    assert (end.code, end.line["status"], end.line["done"]) == (0, "done", 7)
    assert Store(tmp_path / "store").manifest["complete"] is True
    assert not list((tmp_path / "store").glob("*.partial"))
    assert record_bytes(tmp_path / "store") == record_bytes(clean_store)
    assert len(list_parts(tmp_path / "store")) == 1
    figure("SIGTERM while the account is closed: 7 of 7 done, complete, exit code 0")
