"""Trees of files as publishers lay them out, made small, and what a conversion left behind."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapstack.config_files import merge
from mapstack.job_configs import ShardsConfig
from tests.train_like.jobs import encode_png
from train_like.make_shards import make_shards
from train_like.result import Result


def picture(seed: int, height: int = 40, width: int = 32, suffix: str = "jpg") -> bytes:
    """A picture file like no other."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    if suffix == "png":
        return encode_png(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


def dicom_maker() -> Callable[..., bytes]:
    """Give `tests.dicom_files.dicom`, or skip the test where pydicom is not installed."""
    pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
    from tests.dicom_files import dicom

    return dicom


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(path: Path, header: str | Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Write a CSV file, gzipped where its name says so; a header may be a line to be written as it is."""
    text = io.StringIO(newline="")
    if isinstance(header, str):
        text.write(header + "\n")
    else:
        csv.writer(text, lineterminator="\n").writerow(header)
    csv.writer(text, lineterminator="\n").writerows(rows)
    content = text.getvalue().encode()
    return put(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def convert(output: Path, source: str, dataset: Mapping[str, Any], **options: Any) -> Result:
    """Run `shards` as the command does, in this process."""
    layer = {"source": source, "dataset": dict(dataset), "output": str(output), "name": "made", "n_workers": 1}
    return make_shards(merge(ShardsConfig, [{**layer, "n_per_shard": 4, **options}]))


def samples(output: Path) -> dict[str, dict[str, bytes]]:
    """Every sample of the shards: by key, the bytes of each suffix."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(output.glob("made-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[suffix] = file.read()
    return found


def infos(output: Path) -> dict[str, dict[str, Any]]:
    """What each sample's json says."""
    return {key: json.loads(members["json"]) for key, members in samples(output).items()}


def summary(output: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((output / "dataset.json").read_text())
    return result


def failures(output: Path) -> dict[str, str]:
    """Reason by identifier."""
    lines = (output / "failed.jsonl").read_text().splitlines()
    return {each["id"]: each["reason"] for each in map(json.loads, lines)}


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the empty lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
