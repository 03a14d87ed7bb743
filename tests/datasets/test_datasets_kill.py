"""A conversion that is killed, twice started, or short of disk: nothing is lost, torn or done twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mapstack.errors import ShardError
from tests.datasets.trees import all_bytes, convert, picture, put
from train_like.datasets import writing
from train_like.datasets.loading import Rules
from train_like.datasets.rows import Row
from train_like.datasets.writing import dataset_folder, plan
from train_like.errors import StoppedError

ROOT = Path(__file__).parents[2]
N = 48


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(N):
        put(folder / f"1.2.{number:03d}.png", picture(number, 300, 300, "png"))
    return folder


@pytest.fixture(scope="module")
def clean(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run without interruption leaves."""
    output = tmp_path_factory.mktemp("clean") / "out"
    convert(output, "folder", {"root": str(pictures)}, n_per_shard=3)
    return all_bytes(output)


COMMAND = (sys.executable, "-m", "train_like", "shards")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def kill_when(n_shards: int, output: Path, config: Path) -> None:
    """Start a conversion and kill it once it has written so many shards; its processes end as well."""
    environment = {**ENVIRONMENT, "MADE_FOR": str(output)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*COMMAND, str(config)], cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)
    wait_until(lambda: len(list(output.glob("made-*.tar"))) >= n_shards or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not processes(str(output)))


def test_after_a_kill_the_next_run_gives_the_same_bytes(
    pictures: Path,
    clean: dict[str, bytes],
    tmp_path: Path,
    campaign: Callable[[int, int], int],
    figure: Callable[[str], None],
) -> None:
    n, n_torn, n_kept = campaign(2, 60), 0, 0
    for trial in range(n):
        output = tmp_path / f"out{trial}"
        config = tmp_path / "shards.yaml"
        settings = {"source": "folder", "dataset": {"root": str(pictures)}, "output": str(output), "name": "made"}
        config.write_text(yaml.safe_dump({**settings, "n_per_shard": 3, "n_workers": 2}))
        n_shards = random.Random(trial).randrange(1, 16)
        kill_when(n_shards, output, config)
        for path in output.glob("made-*.tar"):
            n_torn += path.read_bytes() != clean[path.name]
            n_kept += 1
        again = subprocess.run([*COMMAND, str(config)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=250)
        assert again.returncode == 0
        assert json.loads(again.stdout.splitlines()[-1])["samples"] == N
        left = all_bytes(output)
        assert left.keys() == clean.keys()
        assert [name for name in clean if left[name] != clean[name]] == []
    assert n_torn == 0
    figure(f"{n} conversions killed on two processes, {n_kept} shards kept, 0 torn, the same bytes after the next run")


def test_two_jobs_do_not_write_one_folder(pictures: Path, tmp_path: Path) -> None:
    rows = [Row(path.stem, str(path)) for path in sorted(pictures.iterdir())]
    tasks = plan(rows, Rules(), tmp_path / "out", "made", 3)
    with (
        dataset_folder(tmp_path / "out", "made", tasks, overwrite=False),
        pytest.raises(ShardError, match="is being written by another job"),
    ):
        convert(tmp_path / "out", "folder", {"root": str(pictures)}, n_per_shard=3)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_reading_process_that_dies_stops_the_job_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "out"
    fifo = tmp_path / "in" / "1.png"
    fifo.parent.mkdir()
    os.mkfifo(fifo)  # whoever reads it waits
    put(tmp_path / "in" / "2.png", picture(2, suffix="png"))
    config = tmp_path / "shards.yaml"
    settings = {"source": "folder", "dataset": {"root": str(fifo.parent)}, "output": str(output), "name": "made"}
    config.write_text(yaml.safe_dump({**settings, "n_per_shard": 1, "n_workers": 2}))
    environment = {**ENVIRONMENT, "MADE_FOR": str(tmp_path)}
    command = [*COMMAND, str(config)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        try:
            wait_until(lambda: len(list(output.glob("*.tar"))) == 1)
            for pid in workers(str(tmp_path)):
                os.kill(pid, signal.SIGKILL)
            out, _ = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 4
    line = json.loads(out.splitlines()[-1])
    assert line["status"] == "stopped"
    assert "a process that reads pictures died" in line["error"]
    wait_until(lambda: not processes(str(tmp_path)))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def processes(token: str) -> dict[int, int]:
    """The processes whose environment holds a token, and the parent of each."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended, or is not ours
    return found


def workers(token: str) -> list[int]:
    """Those that are forked from a process that is itself a child of the command."""
    parents = processes(token)
    return [pid for pid, parent in parents.items() if parents.get(parent) in parents]


def test_a_full_disk_stops_the_job_and_whole_shards_stay(
    pictures: Path, clean: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = writing.write_shard

    def fill(samples: object, path: Path, seen: set[str]) -> None:
        if path.name == "made-000002.tar":
            raise OSError(28, "No space left on device")
        write(samples, path, seen)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_shard", fill)
        with pytest.raises(StoppedError, match=r"could not be written \(No space left on device\)"):
            convert(tmp_path / "out", "folder", {"root": str(pictures)}, n_per_shard=3)
    assert {path.name for path in (tmp_path / "out").glob("made*")} == {"made-000000.tar", "made-000001.tar"}
    convert(tmp_path / "out", "folder", {"root": str(pictures)}, n_per_shard=3)
    assert all_bytes(tmp_path / "out") == clean


def test_a_shard_that_was_cut_afterwards_is_written_again(
    pictures: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    convert(tmp_path / "out", "folder", {"root": str(pictures)}, n_per_shard=3)
    shard = tmp_path / "out" / "made-000004.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    (tmp_path / "out" / ".parts" / "000001.json").write_text("{")
    convert(tmp_path / "out", "folder", {"root": str(pictures)}, n_per_shard=3)
    assert all_bytes(tmp_path / "out") == clean


def test_a_shard_of_which_nothing_can_be_read_is_not_there(tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path / "in" / f"{number}.png", picture(number, suffix="png") if number < 3 else b"")
    result = convert(tmp_path / "out", "folder", {"root": str(tmp_path / "in")}, n_per_shard=3)
    assert (result.code, result.summary["samples"], result.summary["failed"], result.summary["n_shards"]) == (
        1,
        3,
        3,
        1,
    )
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["made-000000.tar"]
