"""Samples out to WebDataset shards, in the format that the job reads; the same samples give the same bytes."""

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from mapstack.errors import InputError, ShardError
from mapstack.phantom import phantom

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
# The number in a phantom's key has six digits, and the seeds of two data sets may not meet.
_MAX_PHANTOMS = 1_000_000


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with what is known about it.

    Args:
        key: Its name, 1 to 80 letters, digits, "-" and "_": WebDataset splits a member's name at the first dot.
        image: The image file's bytes.
        suffix: Its format, png, jpg or dcm.
        info: What KEY.json says: any of `labels`, `report`, `findings: [{label, prompt, box}]`. The sha256 is added.
        masks: For each label, True where it is seen, original-image frame; empty where nothing is known.
    """

    key: str
    image: bytes
    suffix: str
    info: Mapping[str, Any]
    masks: Mapping[str, Bool[np.ndarray, "height width"]]


def write_shards(samples: Iterable[Sample], folder: Path, name: str, n_per_shard: int) -> list[Path]:
    """Write samples to FOLDER/NAME-000000.tar and on.

    A shard gets its name when it is whole; before that it ends in `.partial`. Shards of the same name are replaced.

    Args:
        samples: In the order in which they are written; never all of them are in memory.
        folder: Made where it does not exist.
        name: The shards' name before the number.
        n_per_shard: Samples a shard; the last one may hold fewer.

    Returns:
        Where the shards are, in order.

    Raises:
        InputError: A key is malformed or comes twice, the suffix is none of png, jpg and dcm, or `n_per_shard` is
            below 1.
        ShardError: The folder holds more shards of this name than were written now.
    """
    if n_per_shard < 1:
        raise InputError(f"n_per_shard {n_per_shard} is too small; a shard holds at least 1 sample; raise it.")
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    shards: list[Path] = []
    remaining = iter(samples)
    for first in remaining:
        shards.append(_shard_path(folder, name, len(shards)))
        write_shard(chain([first], islice(remaining, n_per_shard - 1)), shards[-1], seen)
    leftover = _shard_path(folder, name, len(shards))
    if leftover.exists():
        raise ShardError(
            f"shard '{leftover}' is left from an earlier, longer series; the shards of one name are one data set; "
            "delete it and those after it, or write under another name."
        )
    return shards


def phantom_samples(n: int, *, seed: int, size: int | tuple[int, int]) -> Iterator[Sample]:
    """Draw synthetic chest X-rays with their findings, sentences, boxes and masks.

    Args:
        n: How many; up to 1,000,000, whose seeds no other `seed` shares.
        seed: Of the whole set; the first n of a longer set are the same.
        size: As `phantom` takes it [px].

    Raises:
        InputError: n or the seed is out of range, or the size is (see `phantom`).
    """
    if not 0 <= n <= _MAX_PHANTOMS or seed < 0:
        raise InputError(
            f"{n} phantoms of seed {seed} are out of range; a set has 0 to {_MAX_PHANTOMS} phantoms and a seed of at "
            "least 0; draw several sets of different seeds."
        )
    for index in range(n):
        film = phantom(seed * _MAX_PHANTOMS + index, size=size)
        file = io.BytesIO()
        Image.fromarray(film.pixels).save(file, "PNG")
        findings = [{"label": f.label, "prompt": f.prompt, "box": list(f.box)} for f in film.findings]
        info = {"labels": list(film.labels), "report": film.report, "findings": findings, "seed": film.seed}
        masks = {finding.label: finding.mask for finding in film.findings}
        yield Sample(f"phantom-{index:06d}", file.getvalue(), "png", info, masks)


def _shard_path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number:06d}.tar"


def write_shard(samples: Iterable[Sample], path: Path, seen: set[str]) -> None:
    """Write one shard; it gets its name when it is whole and durable.

    Args:
        samples: In the order in which they are written, one in memory at a time.
        path: The shard.
        seen: Keys that other shards hold; those of this one are added.

    Raises:
        InputError: A key is malformed or comes twice, or the suffix is unknown.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            for sample in samples:
                _check(sample, seen)
                for suffix, content in _members(sample).items():
                    # A bare TarInfo has time, user and group 0: the bytes depend on the samples only.
                    member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    member.size = len(content)
                    # By hand, since `TarFile.addfile` copies a picture in pieces of 16 KiB.
                    file.write(member.tobuf(tarfile.USTAR_FORMAT))
                    file.write(content)
                    file.write(bytes(-len(content) % tarfile.BLOCKSIZE))
            file.write(bytes(2 * tarfile.BLOCKSIZE))
            file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _members(sample: Sample) -> dict[str, bytes]:
    info = {**sample.info, "sha256": hashlib.sha256(sample.image).hexdigest()}
    members: dict[str, bytes] = {
        sample.suffix: sample.image,
        "json": json.dumps(info, ensure_ascii=False, sort_keys=True, allow_nan=False).encode(),
    }
    if sample.masks:
        members["masks.npz"] = _npz(sample.masks)
    return members


def _npz(arrays: Mapping[str, Bool[np.ndarray, "height width"]]) -> bytes:
    # As numpy.savez_compressed, whose keyword arguments would shadow some labels; a bare ZipInfo has a fixed time.
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for label, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, dtype=bool), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{label}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _check(sample: Sample, seen: set[str]) -> None:
    if not _KEY.fullmatch(sample.key):
        raise InputError(
            f"key '{sample.key}' is malformed; a key is 1 to 80 letters, digits, '-' and '_', since WebDataset ends it "
            "at the first dot; rename the sample."
        )
    if sample.key in seen:
        raise InputError(f"key '{sample.key}' comes twice; a key names one sample of a data set; rename one of them.")
    if sample.suffix not in ("png", "jpg", "dcm"):
        raise InputError(f"suffix '{sample.suffix}' of key '{sample.key}' is unknown; choose one of png, jpg, dcm.")
    seen.add(sample.key)
