"""Arrays compressed by zstd: `NAME.npy.zst`, which the zstd program or any zstd library unpacks to a plain `.npy`.

The package `zstandard` is asked for only where a record is compressed.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mapstack.errors import InputError, StoreError

COMPRESSIONS = ("none", "zstd")
COMPRESSED_SUFFIX = ".zst"
MAX_UNPACKED_BYTES = 2 * 1024**3
"""No array is larger: 20 times a stack of 512 maps of 224 px in float32."""

_LEVEL = 3
_WINDOW_LOG_MAX = 27  # what the zstd program itself accepts without being asked for more: 128 MB


def compress(chunks: Sequence[bytes | memoryview]) -> bytes:
    """Compress a file that is given in pieces: one frame that states its content's size and carries a checksum.

    The same content gives the same bytes with the same version of zstd.

    Raises:
        InputError: The file is larger than any that would be unpacked again.
        StoreError: The package zstandard is missing.
    """
    n_bytes = sum(len(chunk) for chunk in chunks)
    if n_bytes > MAX_UNPACKED_BYTES:
        raise InputError(
            f"an array of {n_bytes} bytes is refused; a compressed one has at most {MAX_UNPACKED_BYTES}; use "
            "stack.compress=none, a smaller map_size or another codec."
        )
    compressor = _zstandard().ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj(size=n_bytes)
    return b"".join([*(compressor.compress(chunk) for chunk in chunks), compressor.flush()])


def decompress(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack what `compress` gave; no more memory is used than the frame states, nor more than an array may have.

    Raises:
        ValueError: It is no whole frame of its own size, or a larger one than the store writes.
        StoreError: The package zstandard is missing.
    """
    zstandard = _zstandard()
    try:
        n_bytes = zstandard.frame_content_size(content.data)
        if not 0 < n_bytes <= MAX_UNPACKED_BYTES:
            raise ValueError(f"a compressed array states {n_bytes} bytes; it has 1 to {MAX_UNPACKED_BYTES}")
        unpacker = zstandard.ZstdDecompressor(max_window_size=2**_WINDOW_LOG_MAX)
        unpacked = unpacker.decompress(content.data, read_across_frames=False, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a compressed array cannot be unpacked ({error})") from None
    return np.frombuffer(unpacked, np.uint8).copy()  # torch takes no array that cannot be written


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise StoreError(
            "a record compressed by zstd was asked for and the package 'zstandard' is missing; compressed stores need "
            "it; install it, or use stack.compress=none."
        ) from None
    return zstandard
