import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.store_job import COMPLETE, SAMPLES, faults_after, record_digests, run_job

ROOT = Path(__file__).parents[2]
CHANGES = {"fsync", "fsync_folder", "ftruncate", "mkdir", "open", "rename", "write"}
# "?": a call that some processors do not have.
SYSTEM_CALLS = (
    "?open,openat,write,pwrite64,writev,fsync,fdatasync,ftruncate,"
    "?rename,renameat,renameat2,?link,linkat,?unlink,unlinkat,?mkdir,mkdirat"
)


@pytest.mark.fault("W1")
def test_a_kill_at_any_call_loses_and_tears_nothing(tmp_path: Path, campaign, figure):
    command = [sys.executable, "-m", "tests.faults.store_trials", tmp_path, str(campaign(60, 3000))]
    trials = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(trials.stdout.splitlines()[-1])
    figure(
        f"{result['n_points']} kill points ({result['n_torn']} within a write), {result['n_twice']} jobs killed "
        f"twice, {len(result['bad'])} bad, {result['s_per_trial']:.3f} s a trial"
    )
    assert result["bad"] == []
    assert result["n_points"] >= 150
    assert result["n_torn"] >= 50
    assert result["n_twice"] >= 20
    assert set(result["calls"]) == CHANGES
    assert result["heavy"] == []


def strace(arguments: list[str], folder: Path, log: Path) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-y", "-o", log, "-e", f"trace={SYSTEM_CALLS}", *arguments]
    # No byte code is written, so that every run makes the same calls.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command += [sys.executable, "-m", "tests.faults.store_job", folder]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def kill_points(log: Path, folder: Path) -> list[tuple[str, int]]:
    """Every system call on the store: its name, and how many of that name the process had made with it."""
    counts: dict[str, int] = {}
    points = []
    for line in log.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match is not None:
            counts[match[1]] = counts.get(match[1], 0) + 1
            if str(folder) in line:
                points.append((match[1], counts[match[1]]))
    return points


@pytest.mark.fault("W1")
def test_a_kill_by_strace_at_a_system_call_loses_and_tears_nothing(tmp_path: Path, campaign, figure, monkeypatch):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; the kills by a patched os stand for it")
    folder, log = tmp_path / "store", tmp_path / "log"
    first = strace([], folder, log)
    if "ptrace" in first.stderr:
        pytest.skip("strace may not trace here; the kills by a patched os stand for it")
    assert (first.returncode, first.stdout.split()[-1]) == (0, COMPLETE), first.stderr
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    run_job(tmp_path / "clean")
    clean = record_digests(tmp_path / "clean")
    points = kill_points(log, folder)
    assert len(points) >= 100
    assert {name for name, _ in points} >= {"openat", "write", "fsync", "ftruncate"}
    chosen = points[:: -(-len(points) // campaign(16, len(points)))]
    bad = []
    for name, count in chosen:
        shutil.rmtree(folder)
        killed = strace(["-e", f"inject={name}:signal=KILL:when={count}"], folder, log)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        acknowledged = set(killed.stdout.split())
        assert acknowledged <= {*SAMPLES, COMPLETE}
        faults = faults_after(folder, acknowledged, clean)
        bad += [(name, count, faults)] if faults else []
    figure(f"{len(chosen)} of {len(points)} system calls killed by strace, {len(bad)} bad")
    assert bad == []
