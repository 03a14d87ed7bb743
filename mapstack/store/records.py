"""One sample as the bytes of its tar members, and back."""

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapstack.errors import InputError
from mapstack.store.compression import COMPRESSED_SUFFIX, compress, decompress
from mapstack.store.journal import TAR_BLOCK, Entry
from mapstack.store.keys import member_name

_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ARRAY_SUFFIX = ".npy"
_INFO_SUFFIX = "json"
_KEY_FIELD = "key"
_MAX_ITEM_BYTES = 8
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_ALIGNMENT = 64
_MAX_NPY_HEADER = 2 * TAR_BLOCK
# Stricter than numpy's own reader, which parses a header as Python and fails in many ways on a damaged one.
_NPY_HEADER = re.compile(
    re.escape(_NPY_MAGIC) + rb"(..)\{'descr': '([<|][biuf][1248])', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,15},? ?)*)\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One sample of a store.

    Attributes:
        key: The key of the sample.
        arrays: Its arrays by name, as they were written.
        info: What its json says.
    """

    key: str
    arrays: dict[str, NDArray[Any]]
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Packed:
    """A sample, ready to be appended to a tar.

    Attributes:
        key: The key of the sample.
        name: What its members are called, before the first dot.
        chunks: The bytes, in order; those of large arrays are not copied.
        members: As in the journal.
        size: The number of bytes.
        sha256: Of the bytes.
    """

    key: str
    name: str
    chunks: list[bytes | memoryview]
    members: dict[str, tuple[int, int]]
    size: int
    sha256: str


def pack(
    key: str, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], *, is_compressed: bool = False
) -> Packed:
    """Turn a sample into tar members `NAME.<array name>.npy` and `NAME.json`; the same sample gives the same bytes.

    Compressed, its arrays become `NAME.<array name>.npy.zst`, of the same bytes with the same version of zstd.

    Raises:
        InputError: The key, an array or the info cannot be stored.
        StoreError: A package is missing that compression needs.
    """
    name = member_name(key)
    bodies = {array_name + _ARRAY_SUFFIX: _npy(array_name, arrays[array_name]) for array_name in sorted(arrays)}
    if is_compressed:
        bodies = {suffix + COMPRESSED_SUFFIX: [compress(body)] for suffix, body in bodies.items()}
    bodies[_INFO_SUFFIX] = [_json(key, info)]
    digest = hashlib.sha256()
    chunks: list[bytes | memoryview] = []
    members: dict[str, tuple[int, int]] = {}
    position = 0
    for suffix, body in bodies.items():
        size = sum(len(chunk) for chunk in body)
        header = _tar_header(f"{name}.{suffix}", size)
        padding = bytes(-size % TAR_BLOCK)
        members[suffix] = (position + len(header), size)
        for chunk in (header, *body, padding):
            chunks.append(chunk)
            digest.update(chunk)
        position += len(header) + size + len(padding)
    return Packed(key, name, chunks, members, position, digest.hexdigest())


def unpack(entry: Entry, content: NDArray[np.uint8]) -> Record:
    """Read a sample from the bytes that its journal entry names.

    Args:
        entry: The line of the journal.
        content: The `entry.size` bytes; arrays that are not compressed are views of it.

    Raises:
        ValueError: The bytes are damaged.
        StoreError: A package is missing that compression needs.
    """
    arrays: dict[str, NDArray[Any]] = {}
    info: dict[str, Any] = {}
    for suffix, (offset, size) in entry.members.items():
        body = content[offset : offset + size]
        if suffix == _INFO_SUFFIX:
            info = json.loads(body.tobytes())
            continue
        plain = suffix.removesuffix(COMPRESSED_SUFFIX)
        if plain != suffix:
            body = decompress(body)
        arrays[plain.removesuffix(_ARRAY_SUFFIX)] = _from_npy(body)
    if not isinstance(info, dict) or info.pop(_KEY_FIELD, None) != entry.key:
        raise ValueError("its json does not name its key")
    return Record(entry.key, arrays, info)


def _tar_header(name: str, size: int) -> bytes:
    # No time, no owner: the same sample must give the same bytes on another day and another machine.
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o640
    return header.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _npy(name: str, array: NDArray[Any]) -> list[bytes | memoryview]:
    if not _ARRAY_NAME.fullmatch(name):
        raise InputError(
            f"array name {ascii(name)} is refused; it becomes a suffix in the tar, of lower-case letters, digits and "
            "underscores after a first letter; rename the array."
        )
    array = np.asarray(array)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > _MAX_ITEM_BYTES:
        raise InputError(
            f"array '{name}' has dtype {array.dtype}; a store holds booleans, integers and floats of at most 64 bits; "
            "convert it."
        )
    if array.dtype.kind == "f" and not _is_finite(array):
        raise InputError(
            f"array '{name}' of shape {array.shape} holds NaN or infinity; none is ever stored; "
            "record the sample as failed."
        )
    array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return [_npy_header(array), array.reshape(-1).view(np.uint8).data]


def _is_finite(array: NDArray[Any]) -> bool:
    if array.dtype == np.float16 and array.size:
        # numpy is slow with halves; as integers they are in order, infinity and NaN behind all others.
        return bool(array.view(np.int16).max() < 0x7C00 and array.view(np.uint16).max() < 0xFC00)
    # The extremes are NaN where one value is, and no copy is made.
    return not array.size or bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def _npy_header(array: NDArray[Any]) -> bytes:
    # Written here and not by numpy, whose padding changed between versions: the same sample must give the same bytes.
    fields = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    n_spaces = -(len(_NPY_MAGIC) + 2 + len(fields) + 1) % _NPY_ALIGNMENT
    text = (fields + " " * n_spaces + "\n").encode("ascii")
    return _NPY_MAGIC + len(text).to_bytes(2, "little") + text


def _from_npy(body: NDArray[np.uint8]) -> NDArray[Any]:
    start = body[:_MAX_NPY_HEADER].tobytes()
    match = _NPY_HEADER.match(start)
    if match is None or match.end() - len(_NPY_MAGIC) - 2 != int.from_bytes(match[1], "little"):
        raise ValueError("the header of an array is not one that a store writes")
    shape = tuple(int(length) for length in match[3].split(b",") if length.strip())
    return body[match.end() :].view(match[2].decode()).reshape(shape)


def _json(key: str, info: Mapping[str, Any]) -> bytes:
    if _KEY_FIELD in info:
        raise InputError(f"the info has a field '{_KEY_FIELD}'; the store writes the key there itself; rename it.")
    try:
        text = json.dumps({_KEY_FIELD: key, **info}, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the info of a sample cannot be written as JSON ({error}); it holds text, finite numbers, booleans, lists "
            "and mappings; convert the rest."
        ) from None
    return text.encode("ascii")
