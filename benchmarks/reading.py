"""What reading a store costs: one record by its key, and the projection of all records on many texts.

    python -m benchmarks.reading FOLDER [n=24] [rounds=3] [only=access,project]

FOLDER is on the disk to be measured; about 2 GB are written there and removed again. Linux only. "Cold" means that the
pages of these files were given back before each run (posix_fadvise); what a disk keeps in its own memory stays there.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from benchmarks.ready_stacks import Figures, answer, run_job, scratch, time_step, write_shard
from benchmarks.setting import CHECKPOINT, ROOT
from mapstack.store import Store

BLOCK_BYTES = 4 * 2**20


def access(folder: Path, n: int, rounds: int) -> Figures:
    """Read one record by its key, and the part that holds it."""
    with scratch(folder) as path:
        run_job(path / "store", write_shard(path / "in.tar", n), "float16")
        store = Store(path / "store")
        keys = store.keys()
        figures: Figures = {"n_records": len(keys)}
        print(f"\none record of {len(keys)} by its key, medians of {max(5, rounds)}:")
        for name in ("cold", "cached"):
            ones, wholes, n_read = [], [], 0
            for number in range(max(5, rounds)):
                for part in (path / "store").glob("part-*.tar"):
                    if name == "cold":
                        drop(part)
                    before = bytes_read()
                    key = keys[(7 * number + 3) % len(keys)]
                    wall, _ = time_step(lambda key=key: store.read(key))
                    ones.append(wall)
                    n_read = bytes_read() - before
                    if name == "cold":
                        drop(part)
                    wholes.append(time_step(lambda part=part: read_whole(part))[0])
            one, whole = 1000 * median(ones), 1000 * median(wholes)
            figures[name] = {"record_ms": one, "part_ms": whole, "bytes_read": n_read}
            print(f"  {name:6} {one:6.1f} ms for {n_read / 1e6:.1f} MB; its whole part takes {whole:6.1f} ms")
    return figures


def bytes_read() -> int:
    """Count what this process has asked the system to read [bytes]; Linux only."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def drop(path: Path) -> None:
    """Take a file's pages out of the cache, as far as the system follows the advice."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_whole(path: Path) -> None:
    """Read a file block by block."""
    with path.open("rb", buffering=0) as file:
        while file.read(BLOCK_BYTES):
            pass


def project(folder: Path, n: int, rounds: int) -> Figures:
    """Project stores of two sizes on 1 and on 140 texts: memory, and time a record without the start."""
    figures: Figures = {}
    sizes = (max(2, n // 4), n)
    texts = {
        "1": ["prompts.texts=[heart]"],
        "140": ["prompts.file=configs/prompts/mimic_cxr.yaml", "prompts.ensemble=none"],
    }
    with scratch(folder) as path:
        for size in sizes:
            run_job(path / f"store-{size}", write_shard(path / f"in-{size}.tar", size), "float16")
        parts = list((path / f"store-{n}").glob("part-*.tar"))
        n_bytes = sum(part.stat().st_size for part in parts)
        for part in parts:
            drop(part)
        read_s = sum(time_step(lambda part=part: read_whole(part))[0] for part in parts)
        print(f"\nproject, pages dropped before each run; plain reading takes {n_bytes / read_s / 1e6:.0f} MB/s:")
        for name, keys in texts.items():
            runs = {size: [run_project(path, size, keys) for _ in range(rounds)] for size in sizes}
            seconds, peaks = ({size: median(values) for size, values in columns(runs, i)} for i in (0, 1))
            per_record = (seconds[n] - seconds[sizes[0]]) / (n - sizes[0])
            speed = n_bytes / n / per_record / 1e6
            figures[name] = {"ms_per_record": 1000 * per_record, "mb_per_s": speed, "peak_mb": peaks}
            grown = " and ".join(f"{peak:.0f} MB at {size} records" for size, peak in peaks.items())
            print(f"  {name:>3} texts: {1000 * per_record:5.0f} ms a record, {speed:5.0f} MB/s of stacks; peak {grown}")
        figures["plain_read_mb_per_s"] = n_bytes / read_s / 1e6
    return figures


def columns(runs: Mapping[int, list[tuple[float, float]]], index: int) -> Iterator[tuple[int, list[float]]]:
    """Take one number of each run."""
    return ((size, [run[index] for run in values]) for size, values in runs.items())


def run_project(path: Path, size: int, texts: list[str]) -> tuple[float, float]:
    """Run the command by itself; return its seconds and its peak memory [MB]."""
    for part in (path / f"store-{size}").glob("part-*.tar"):
        drop(part)
    config = path / "project.yaml"
    config.write_text(f"{{model: {{checkpoint: {CHECKPOINT}}}, project: {{pictures: false, output: {path}/maps}}}}\n")
    line = [sys.executable, "-m", "train_like", "project", str(config), f"output={path}/store-{size}", *texts]
    started = time.perf_counter()
    child = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"project ended with {child.returncode}; run it by hand: {' '.join(line)}")
    shutil.rmtree(path / "maps")
    return time.perf_counter() - started, usage.ru_maxrss / 1e3


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:], __doc__, {"access": access, "project": project}))
