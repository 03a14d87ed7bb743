"""Does writing keep up: against dd, stage by stage, beside computing, and in a whole extraction?

    python -m benchmarks.pipeline FOLDER [n=24] [rounds=3] [only=throughput,stages,overlap,outside]

FOLDER is on the disk to be measured; about 5 GB are written there and removed again. It prints a table for each
question and ends with one JSON line. A store's other direction is measured by benchmarks/reading.py.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from benchmarks.ready_stacks import (
    BATCH_SIZE,
    Figures,
    Loop,
    answer,
    rank_for,
    ready_values,
    run_job,
    run_loop,
    scratch,
    time_step,
    write_shard,
)
from benchmarks.setting import CHECKPOINT, full_size_model
from mapstack.codecs import Encoding
from mapstack.explainer import Explainer
from mapstack.methods import Gradient, Occlusion
from mapstack.models import load_model
from mapstack.stack import OcclusionStack, Stack
from mapstack.store.disk import forget_written, write_all
from mapstack.store.records import pack

FACTORS = (0.5, 1.0, 2.0)
CODECS = ("float32", "float16", "int8", "lowrank")


def run_dd(path: Path, n_bytes: int, block_bytes: int) -> Loop:
    """Write so many zeros and sync once, by dd, or by the same calls where there is none."""
    n = n_bytes // block_bytes
    started = time.perf_counter()
    if shutil.which("dd"):
        line = ["dd", "if=/dev/zero", f"of={path}", f"bs={block_bytes}", f"count={n}", "conv=fsync", "status=none"]
        subprocess.run(line, check=True)
    else:
        with path.open("wb", buffering=0) as file:
            for _ in range(n):
                write_all(file.fileno(), [bytes(block_bytes)])
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    size = path.stat().st_size
    path.unlink()
    return Loop(seconds, size)


def throughput(folder: Path, n: int, rounds: int) -> Figures:
    """Alternate dd and the job: without any rounding, with that of float16 and of int8, and with the default codec."""
    stack_bytes = {codec: encoded_bytes(codec) for codec in CODECS}
    jobs: dict[str, list[Loop]] = {codec: [] for codec in CODECS}
    dds: dict[str, list[Loop]] = {"a stack": [], "4 MiB": []}
    dense = [codec for codec in CODECS if codec != "lowrank"]
    with scratch(folder) as path:
        shard = write_shard(path / "in.tar", n)
        for _ in range(rounds):
            for codec in CODECS:
                n_bytes = n * stack_bytes[codec]
                if codec in dense:  # a few small blocks tell little of the disk
                    dds["a stack"].append(run_dd(path / "dd", n_bytes, stack_bytes[codec]))
                    dds["4 MiB"].append(run_dd(path / "dd", n_bytes, 4 * 2**20))
                jobs[codec].append(run_job(path / "store", shard, codec))
                shutil.rmtree(path / "store")
    speeds = {blocks: median(run.mb_per_s for run in runs) for blocks, runs in dds.items()}
    figures: Figures = {"dd_mb_per_s": speeds}
    print(f"\nthroughput, {n} stacks, medians of {rounds} [MB/s]; dd with one fsync at the end:")
    for blocks, speed in speeds.items():
        print(f"  dd, blocks of {blocks:8} {speed:6.0f}")
    for codec, runs in jobs.items():
        speed, ms = median(run.mb_per_s for run in runs), 1000 * median(run.seconds for run in runs) / n
        ratios = {blocks: speed / dd for blocks, dd in speeds.items()}
        figures[codec] = {"mb_per_s": speed, "ms_per_stack": ms, "ratio": ratios}
        told = ", ".join(f"{ratio:.2f} of dd's by {blocks}" for blocks, ratio in ratios.items())
        print(
            f"  the job, {codec:8}     {speed:6.0f}: {told}; {ms:.0f} ms a stack of {stack_bytes[codec] / 1e6:.1f} MB"
        )
    return figures


def encoded_bytes(codec: str) -> int:
    """Return what a stack takes in a codec [bytes]."""
    arrays = Encoding(codec).encode(ready_values(rank_for(codec))[0])
    return sum(each.nbytes for each in arrays.values())


def stages(folder: Path, n: int, rounds: int) -> Figures:
    """Time what is done with one stack in float16, each step by itself in one thread."""
    stack = ready_values()[0]
    arrays = Encoding("float16").encode(stack)
    packed = pack("k", arrays, {})
    with scratch(folder) as path:
        fd = os.open(path / "part", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        steps: Mapping[str, Callable[[], Any]] = {
            "no NaN, rounding (loop)": lambda: Encoding("float16").encode(stack),
            "no NaN, sha256 (packing)": lambda: pack("k", arrays, {}),
            "  sha256 alone": lambda: digest(packed.chunks),
            "write": lambda: write_all(fd, packed.chunks),
            "fsync": lambda: os.fsync(fd),
            "forget": lambda: forget_written(fd),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for _ in range(max(5, rounds)):
            for name, step in steps.items():
                times[name].append(time_step(step))
        os.close(fd)
    print(f"\nwhat one stack of {packed.size / 1e6:.1f} MB costs, one thread, medians [ms]:")
    figures: Figures = {}
    for name, pairs in times.items():
        wall, cpu = (1000 * median(values) for values in zip(*pairs, strict=True))
        figures[name] = {"wall_ms": wall, "cpu_ms": cpu}
        print(f"  {name:26} {wall:6.1f}   of which CPU {cpu:6.1f}")
    durable = figures["  sha256 alone"]["wall_ms"] + figures["fsync"]["wall_ms"]
    print(f"  checksum and fsync: {durable:.1f} ms (at most 80 is wanted)")
    return {**figures, "checksum_and_fsync_ms": durable}


def digest(chunks: list[bytes | memoryview]) -> str:
    """Hash as the writer does."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return sha256.hexdigest()


def overlap(folder: Path, n: int, rounds: int) -> Figures:
    """Let the model take time in which the CPU is free, as with a GPU: does the loop take max(t, w) or t + w?"""
    figures: Figures = {}
    n_batches = -(-n // BATCH_SIZE)
    with scratch(folder) as path:
        shard = write_shard(path / "in.tar", n)

        def per_batch(seconds: float) -> float:
            runs = []
            for _ in range(rounds):
                runs.append(run_job(path / "store", shard, "float16", seconds).seconds / n_batches)
                shutil.rmtree(path / "store")
            return median(runs)

        alone = per_batch(0.0)
        print(
            f"\noverlap, {BATCH_SIZE} stacks a batch; without a model w = {alone:.2f} s a batch, medians of {rounds}:"
        )
        for factor in FACTORS:
            model = factor * alone
            loop = per_batch(model)
            hidden = (model + alone - loop) / min(model, alone)
            figures[str(factor)] = {"model_s": model, "plumbing_s": alone, "loop_s": loop, "hidden": hidden}
            bounds = f"max {max(model, alone):.2f}, sum {model + alone:.2f}"
            print(f"  model {model:.2f} s: loop {loop:.2f} s ({bounds}): {hidden:4.0%} of the shorter is hidden")
    return figures


class TimedExplainer(Explainer):
    """Knows how long its engine has run."""

    seconds: ClassVar[float] = 0.0

    def stack(self, *arguments: Any, **options: Any) -> Stack | OcclusionStack:
        """Make a stack, by the clock."""
        started = time.perf_counter()
        stack = super().stack(*arguments, **options)
        TimedExplainer.seconds += time.perf_counter() - started
        return stack


def outside(folder: Path, n: int, rounds: int) -> Figures:
    """Say which share of an extraction passes outside the engine: reading and decoding JPEG, encoding, writing."""
    explainers = {
        "demo model, gradient, lowrank": TimedExplainer(load_model("medclip-vit", CHECKPOINT), Gradient()),
        "demo model, occlusion": TimedExplainer(load_model("medclip-vit", CHECKPOINT), Occlusion()),
        "official architecture, occlusion": TimedExplainer(full_size_model(), Occlusion()),
    }
    figures: Figures = {}
    print("\na whole extraction, from JPEG files of 2500 x 2500 px:")
    with scratch(folder) as path:
        for name, explainer in explainers.items():
            n_pictures = BATCH_SIZE if name.startswith("official") else n
            shard = write_shard(path / f"{n_pictures}.tar", n_pictures, side=2500, suffix="jpg")
            TimedExplainer.seconds = 0.0
            loop = run_loop(path / "store", shard, explainer, Encoding()).seconds
            shutil.rmtree(path / "store")
            share = 1 - TimedExplainer.seconds / loop
            figures[name] = {"n": n_pictures, "loop_s": loop, "engine_s": TimedExplainer.seconds, "outside": share}
            print(
                f"  {name:34} {loop / n_pictures:6.2f} s a picture, {share:5.1%} of it outside the engine", flush=True
            )
    return figures


if __name__ == "__main__":
    questions = {"throughput": throughput, "stages": stages, "overlap": overlap, "outside": outside}
    sys.exit(answer(sys.argv[1:], __doc__, questions))
