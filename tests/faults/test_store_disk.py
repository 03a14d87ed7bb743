import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mapstack.errors import StoreDiskError
from tests.faults.recording import CallList, FailingCall, FullDisk, Observer, Watch
from tests.faults.store_job import faults_after, record_digests, run_job

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch) -> None:
    # Whether an fsync fails is tried here, not what it makes durable.
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def calls(tmp_path: Path) -> CallList:
    calls = CallList()
    with Watch(tmp_path / "clean", calls):
        run_job(tmp_path / "clean" / "store")
    return calls


@pytest.fixture
def clean(tmp_path: Path, calls: CallList) -> dict[str, str]:
    return record_digests(tmp_path / "clean" / "store")


def faults_of(folder: Path, observer: Observer, clean: dict[str, str]) -> list[str]:
    """Run the job on a disk that fails it, then on a sound one; say what is wrong."""
    acknowledged: list[str] = []
    try:
        with Watch(folder, observer):
            run_job(folder / "store", acknowledged.append)
        faults = ["the failure was passed over"]
    except StoreDiskError as error:
        says = ("could not be read or written", "every committed record is kept", "to resume")
        faults = [] if all(part in str(error) for part in says) else [str(error)]
    except Exception as error:
        faults = [f"{type(error).__name__}: {error}"]
    faults += faults_after(folder / "store", acknowledged, clean)
    shutil.rmtree(folder, ignore_errors=True)
    return faults


@pytest.mark.fault("W3")
def test_a_disk_that_is_full_after_any_number_of_bytes_keeps_whole_records(
    tmp_path: Path, calls, clean, campaign, figure
):
    n_bytes = sum(len(call.data) for call in calls.calls)
    sizes = range(0, n_bytes, n_bytes // campaign(80, 3000))
    bad = [(size, faults) for size in sizes if (faults := faults_of(tmp_path / "disk", FullDisk(size), clean))]
    figure(f"disk full at {len(sizes)} sizes up to {n_bytes} bytes: {len(bad)} bad")
    assert bad == []
    assert len(sizes) >= 80


@pytest.mark.fault("W3")
def test_a_disk_that_fails_any_call_keeps_whole_records(tmp_path: Path, calls, clean, figure):
    bad = []
    for at, call in enumerate(calls.calls):
        faults = faults_of(tmp_path / "disk", FailingCall(at), clean)
        bad += [(at, call.name, call.path, faults)] if faults else []
    n_fsyncs = sum(call.name.startswith("fsync") for call in calls.calls)
    figure(f"I/O error at each of {n_fsyncs} fsyncs, no space at {len(calls.calls) - n_fsyncs} calls: {len(bad)} bad")
    assert bad == []
    assert n_fsyncs >= 20


@pytest.mark.fault("W3")
@pytest.mark.parametrize("n_bytes", [300, 2000, 9000])
def test_a_process_that_the_system_stops_from_writing_does_not_end_with_0(tmp_path: Path, clean, n_bytes, figure):
    folder = tmp_path / "store"
    job = subprocess.run(
        [sys.executable, "-m", "tests.faults.store_job", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes)),
    )
    figure(f"no file larger than {n_bytes} bytes: exit code {job.returncode}, {len(job.stdout.split())} acknowledged")
    assert job.returncode == 1
    assert "StoreDiskError: stack store" in job.stderr
    assert "File too large" in job.stderr
    assert faults_after(folder, job.stdout.split(), clean) == []
