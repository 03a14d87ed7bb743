"""What it costs to turn a dataset into shards, against reading and hashing its pictures alone.

    python -m benchmarks.converting FOLDER [n=10000] [side=1280] [workers=3] [rounds=3]

FOLDER is on the disk to be measured. n synthetic X-rays of side x side pixels are written there as JPEG files, laid out
as MIMIC-CXR-JPG with its tables (3.8 GB for 10,000 of 1280 px, 0.37 MB each; MIMIC-CXR's have 1.5 MB on average). They
stay for the next call, and are removed by hand; the shards are removed.

All sides use the same number of processes. "Copying" reads and hashes as well, and writes the bytes one after another
into files of 500, each durable: what any program costs that leaves a second copy on this disk. "Cold" means that the
pages of the files were given back before each run (posix_fadvise, Linux only), as of a dataset that is larger than the
memory; "cached" that they were just read, so that one side waits for no disk at all, while converting writes as much
as it reads and waits until that is durable.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from mapstack.config_files import merge
from mapstack.phantom import phantom
from train_like.datasets.tables import MIMIC_CLASSES

_N_DRAWN = 64
_N_PER_SHARD = 500


def write_dataset(root: Path, n: int, side: int) -> None:
    """Write n pictures and the tables. Some are drawn; a comment in each file makes every file another."""
    if (root / "mimic-cxr-2.0.0-split.csv.gz").exists():
        return
    drawn = [draw(seed, side) for seed in range(_N_DRAWN)]
    rows = []
    for number in range(n):
        patient, study = 10_000_000 + number % 4096, 50_000_000 + number
        dicom_id = hashlib.sha256(str(number).encode()).hexdigest()[:40]
        path = root / f"files/p{str(patient)[:2]}/p{patient}/s{study}/{dicom_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole, comment = drawn[number % _N_DRAWN], f"{number:016}".encode()
        segment = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment
        path.write_bytes(whole[:2] + segment + whole[2:])
        rows.append((dicom_id, patient, study))
    commas = "," * (len(MIMIC_CLASSES) - 1)
    tables = {
        "metadata": ["dicom_id,subject_id,study_id,ViewPosition", *(f"{d},{s},{t},PA" for d, s, t in rows)],
        "chexpert": [f"subject_id,study_id,{','.join(MIMIC_CLASSES)}", *(f"{s},{t},1.0{commas}" for _, s, t in rows)],
        "split": ["dicom_id,study_id,subject_id,split", *(f"{d},{t},{s},test" for d, s, t in rows)],
    }
    for name, lines in tables.items():
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def draw(seed: int, side: int) -> bytes:
    """Draw an X-ray, enlarge it, and give it the noise of a real one."""
    film = Image.fromarray(phantom(seed, size=512).pixels).resize((side, side), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).integers(-3, 4, (side, side))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(film) + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def read_and_hash(paths: list[str]) -> int:
    """Read files and take their sha256; answer their bytes."""
    n_bytes = 0
    for path in paths:
        with open(path, "rb") as file:
            data = file.read()
        hashlib.sha256(data).digest()
        n_bytes += len(data)
    return n_bytes


def copy_and_hash(paths: list[str], output: Path) -> int:
    """Read files, take their sha256, and write them one after another into a file; answer their bytes."""
    n_bytes = 0
    with output.open("wb") as copy:
        for path in paths:
            with open(path, "rb") as file:
                data = file.read()
            hashlib.sha256(data).digest()
            n_bytes += copy.write(data)
        copy.flush()
        os.fsync(copy.fileno())
    return n_bytes


def time_reading(paths: list[str], workers: int) -> tuple[float, int]:
    """Time reading and hashing alone [s], and count the bytes."""
    shares = [paths[number::workers] for number in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(read_and_hash, [[]] * workers))  # the processes are there
        started = time.perf_counter()
        n_bytes = sum(pool.map(read_and_hash, shares))
        return time.perf_counter() - started, n_bytes


def time_copying(paths: list[str], folder: Path, workers: int) -> float:
    """Time reading, hashing and writing [s]."""
    folder.mkdir()
    shares = [paths[first : first + _N_PER_SHARD] for first in range(0, len(paths), _N_PER_SHARD)]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(read_and_hash, [[]] * workers))
        started = time.perf_counter()
        list(pool.map(copy_and_hash, shares, [folder / str(number) for number in range(len(shares))]))
        seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return seconds


def time_converting(root: Path, output: Path, n: int, workers: int) -> float:
    """Time the whole command, its tables and its contact sheet included [s]."""
    # Here, since the processes that convert import this module, and these two import torch.
    from mapstack.job_configs import ShardsConfig
    from train_like.make_shards import make_shards

    shutil.rmtree(output, ignore_errors=True)
    layer = {
        "source": "mimic_cxr",
        "dataset": {"root": str(root)},
        "output": str(output),
        "name": "made",
        "n_per_shard": _N_PER_SHARD,
        "n_workers": workers,
    }
    config = merge(ShardsConfig, [layer])
    started = time.perf_counter()
    result = make_shards(config)
    seconds = time.perf_counter() - started
    if result.summary["samples"] != n:
        raise SystemExit(f"{result.summary['samples']} of {n} samples were written")
    shutil.rmtree(output)
    return seconds


def main(arguments: list[str]) -> None:
    """Measure and print, the last line as JSON."""
    folder, options = Path(arguments[0]), dict(each.split("=") for each in arguments[1:])
    n, side, workers, rounds = (int(options.get(name, default)) for name, default in _DEFAULTS.items())
    root = folder / f"dataset-{n}-{side}"
    write_dataset(root, n, side)
    paths = [str(path) for path in sorted(root.rglob("*.jpg"))]
    figures: dict[str, object] = {"n": n, "side_px": side, "workers": workers}
    for name in ("cold", "cached"):
        alone, copied, whole = [], [], []
        for _ in range(rounds):
            prepare(paths, name)
            seconds, n_bytes = time_reading(paths, workers)
            alone.append(seconds)
            prepare(paths, name)
            copied.append(time_copying(paths, folder / "copies", workers))
            prepare(paths, name)
            whole.append(time_converting(root, folder / "shards", n, workers))
        figures["megabytes"] = round(n_bytes / 1e6)
        figures[name] = {
            "reading_and_hashing_per_s": round(n / median(alone)),
            "copying_per_s": round(n / median(copied)),
            "converting_per_s": round(n / median(whole)),
            "ratio": round(median(alone) / median(whole), 3),
            "ratio_to_copying": round(median(copied) / median(whole), 3),
        }
    print(json.dumps(figures))


def prepare(paths: list[str], name: str) -> None:
    """Take the files out of the system's cache, or into it."""
    for path in paths:
        with open(path, "rb") as file:
            if name == "cold":
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                file.read()


_DEFAULTS = {"n": 10_000, "side": 1280, "workers": 3, "rounds": 3}

if __name__ == "__main__":
    main(sys.argv[1:])
