"""Tars as the tests of the reading side need them: sound, and written by hand."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from train_like.index import ShardIndex, index_shards

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LAST = b"{}".rjust(512)  # fills its block
PAIRS = [
    ("a.png", b"A" * 700),
    ("a.json", b"{}"),
    ("b.png", b"B" * 20),
    ("b.json", b"{}"),
    ("c.png", b"C" * 512),
    ("c.json", LAST),
]


def tar_bytes(members: Sequence[tuple[str, bytes]], kind: str = "ustar") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind], errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], kind: str = "ustar") -> str:
    path.write_bytes(tar_bytes(members, kind))
    return str(path)


def put(path: Path, data: bytes) -> None:
    """Write a file in place: a campaign writes one thousands of times, and to empty it first can cost milliseconds."""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(data)
        file.truncate()


def index_bytes(path: Path, data: bytes) -> ShardIndex:
    put(path, data)
    return index_shards([str(path)])


def keys(index: ShardIndex) -> list[str]:
    return [entry.key for entry in index.entries]


def failed_keys(index: ShardIndex) -> list[str | None]:
    return [problem.key for problem in index.problems]


def header(name: str, size_field: bytes, kind: bytes = b"0") -> bytes:
    """A header block written by hand, after POSIX."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124:136] = size_field
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
