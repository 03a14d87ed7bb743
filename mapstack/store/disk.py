"""What the store asks of the disk: whole writes, files that appear at once, and room enough."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mapstack.errors import StoreDiskError
from mapstack.store.layout import TEMPORARY

# The maps are patients' data: the group may read them, nobody else. A stricter umask is respected.
FOLDER_MODE = 0o770
FILE_MODE = 0o640
_CHUNK_BYTES = 4 * 1024**2


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreDiskError that says what it means for the store."""
    try:
        yield
    except StoreDiskError:
        raise
    except OSError as error:
        where = f", file '{os.path.basename(error.filename)}'" if isinstance(error.filename, str) else ""
        reason = error.strerror or type(error).__name__
        raise StoreDiskError(
            f"stack store '{folder}' could not be read or written ({reason}{where}); every committed record is kept; "
            "mend or free the disk, then start again with the same configuration to resume."
        ) from error


def write_all(fd: int, chunks: Iterable[bytes | memoryview]) -> None:
    """Write every byte of the chunks, though the system may take a part of one at a time."""
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest.nbytes:
            rest = rest[os.write(fd, rest) :]


def forget_written(fd: int) -> None:
    """Let the system use the memory again in which it keeps what a file holds; call it after fsync, on synced bytes.

    Nobody reads a record soon after it was written, and an archive is larger than memory: kept, its pages would drive
    out those of the input shards, and every new one would have to be found anew.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # advice, which a file system may not know
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a file survives a power cut only when its name does too."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make durable what other processes wrote into a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file so that a reader or a crash meets the old one or the new one, whole."""
    temporary = path.with_name(path.name + TEMPORARY)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    try:
        write_all(fd, [content])
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    sync_folder(path.parent)


def cut_file(path: Path, size: int) -> None:
    """Cut a file to a size [bytes], durably."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create the folder of a store and its parents, durably; one that exists keeps its mode."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    deepest = missing[-1].parent if missing else folder
    # A start that was killed may have made that one and no more. Where it was not made by us, its own parent may be a
    # folder that we cannot open, or lie on a file system without fsync.
    with suppress(OSError):
        sync_folder(deepest.parent)
    for path in reversed(missing):
        path.mkdir(FOLDER_MODE if path == folder else 0o777, exist_ok=True)
        sync_folder(path.parent)


def hash_range(fd: int, offset: int, size: int) -> str | None:
    """Say the sha256 of a byte range of a file, read in chunks; None if the file ends before it."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, size)))
    end = offset + size
    while offset < end:
        n_read = os.preadv(fd, [buffer[: end - offset]], offset)
        if not n_read:
            return None
        digest.update(buffer[:n_read])
        offset += n_read
    return digest.hexdigest()


def check_space(folder: str | os.PathLike[str], n_bytes_needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        folder: The store, which need not exist yet.
        n_bytes_needed: What will be written [bytes].

    Raises:
        StoreDiskError: The disk has less room than that.
    """
    folder = Path(folder)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    n_bytes_free = shutil.disk_usage(existing).free
    if n_bytes_needed > n_bytes_free:
        raise StoreDiskError(
            f"stack store '{folder}' needs {_readable(n_bytes_needed)} and its disk has {_readable(n_bytes_free)} "
            "free; the whole store must fit; free the disk, or choose another output, codec, map_size or basis."
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _readable(n_bytes: int) -> str:
    exponent = next((each for each in (12, 9, 6, 3) if n_bytes >= 10**each), 0)
    unit = {12: "TB", 9: "GB", 6: "MB", 3: "kB", 0: "bytes"}[exponent]
    return f"{n_bytes / 10**exponent:.{1 if exponent else 0}f} {unit}"
