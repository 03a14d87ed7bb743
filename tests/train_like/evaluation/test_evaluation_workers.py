"""What becomes of the workers of an evaluation that is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from train_like.evaluation.scorer import end_with_parent


def work() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    time.sleep(600)


def hold_a_worker() -> None:
    worker = multiprocessing.get_context("forkserver").Process(target=work)
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(600)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_a_job_that_is_killed() -> None:
    line = "from tests.train_like.evaluation.test_evaluation_workers import hold_a_worker; hold_a_worker()"
    job = subprocess.Popen([sys.executable, "-c", line], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert job.stdout is not None
        pid = int(job.stdout.readline())
        assert is_there(pid)
        job.kill()
        deadline = time.monotonic() + 60
        while is_there(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_there(pid)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        assert job.stdout is not None
        job.stdout.close()
