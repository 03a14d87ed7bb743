"""What the tests of the job share: pictures and shards to feed it, and ways to read what it wrote."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapstack.store import Store
from mapstack.store.journal import read_journal
from mapstack.store.layout import list_parts

Sample = tuple[str, dict[str, bytes]]  # key, and the bytes of each suffix
SIZES = ((60, 90), (120, 40), (224, 224), (300, 180), (33, 77), (150, 150))  # height, width


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, the JSON line, and what stood on standard output and standard error."""

    code: int
    line: dict[str, Any]
    out: str
    err: str


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def png(seed: int, height: int, width: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def flat_png(brightness: int) -> bytes:
    return encode_png(np.full((224, 224), brightness, dtype=np.uint8))


def samples(n: int, first: int = 0) -> list[Sample]:
    """Samples 1.2.0, 1.2.1, ...: their keys hold dots, as DICOM's do."""
    return [
        (f"1.2.{i}", {"png": png(i, *SIZES[i % len(SIZES)]), "json": json.dumps({"labels": ["Edema"]}).encode()})
        for i in range(first, first + n)
    ]


def write_shard(path: Path, content: Sequence[Sample]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, members in content:
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def record_bytes(store: Path) -> dict[str, bytes]:
    """Every committed record as it lies in the tars, headers included."""
    found: dict[str, bytes] = {}
    for part in list_parts(store):
        tar = part.sealed(store) if part.sealed(store).exists() else part.partial(store)
        content = tar.read_bytes()
        for entry in read_journal(part.journal(store)).entries:
            assert entry.key not in found
            found[entry.key] = content[entry.offset : entry.end]
    return found


def record_arrays(store: Path) -> dict[str, dict[str, NDArray[Any]]]:
    return {record.key: {name: record.arrays[name] for name in record.arrays} for record in Store(store)}


def largest_difference(left: Path, right: Path) -> float:
    """By how much two stores of the same keys differ, in shares of each array's maximum."""
    ours, theirs = record_arrays(left), record_arrays(right)
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for key, arrays in ours.items():
        assert arrays.keys() == theirs[key].keys()
        for name, array in arrays.items():
            scale = np.abs(array).max()
            worst = max(worst, float(np.abs(array - theirs[key][name]).max() / scale))
    return worst


def failures(store: Path) -> dict[str, tuple[str, str]]:
    """Shard and reason of each failed key."""
    return {failure.key: (failure.shard, failure.reason) for failure in Store(store).failures()}
