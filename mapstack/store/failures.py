"""errors.jsonl: the samples that could not be processed. Every rank of a job appends to the one file."""

import fcntl
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mapstack.errors import StoreError
from mapstack.store.disk import FILE_MODE, disk_errors, sync_file, sync_folder, write_all, write_atomic
from mapstack.store.keys import check_key
from mapstack.store.layout import ERRORS
from mapstack.store.lines import decode_line, encode_line, iter_lines


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be processed.

    Attributes:
        key: Its key.
        shard: The input shard that holds it.
        reason: One sentence, without pixels, report text or prompts.
    """

    key: str
    shard: str
    reason: str


def record_failure(folder: str | os.PathLike[str], key: str, shard: str, reason: str) -> None:
    """Name a sample that could not be processed; the line is on disk when this returns.

    Args:
        folder: A store that is open for writing; any rank of its job may call this at any time.
        key: The key of the sample.
        shard: The input shard that holds it.
        reason: Why, in one sentence without pixels, report text or prompts.

    Raises:
        InputError: The key cannot be stored.
        StoreError: The folder is no store.
        StoreDiskError: The disk refuses.
    """
    check_key(key)
    path = Path(folder) / ERRORS
    line = encode_line({"key": key, "shard": shard, "reason": reason})
    with disk_errors(Path(folder)):
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            raise StoreError(
                f"'{folder}' has no {ERRORS}; failures are recorded in a store that rank 0 has opened; "
                "call open_store_for_writing first."
            ) from None
        try:
            _append(fd, line)
        finally:
            os.close(fd)


def _append(fd: int, line: bytes) -> None:
    # One rank at a time: behind the torn line of a rank that died a new line would be read as a part of it.
    fcntl.flock(fd, fcntl.LOCK_EX)
    size = os.fstat(fd).st_size
    ends_whole = size == 0 or os.pread(fd, 1, size - 1) == b"\n"
    write_all(fd, [line if ends_whole else b"\n" + line])
    os.fsync(fd)


def read_failures(folder: Path, *, is_in_work: bool = False) -> tuple[list[Failure], list[int]]:
    """Read errors.jsonl.

    Args:
        folder: The store.
        is_in_work: A job may be writing: a last line without its newline is not there yet.

    Returns:
        The failures in the order of the file (a key comes again when a later run failed on it again), and the numbers,
        from 1, of the lines that are torn or damaged.
    """
    try:
        content = (folder / ERRORS).read_bytes()
    except FileNotFoundError:
        content = b""
    failures: list[Failure] = []
    bad_lines: list[int] = []
    for number, (_, line) in enumerate(iter_lines(content), start=1):
        if is_in_work and not line.endswith(b"\n"):
            continue
        fields = decode_line(line)
        if fields is None:
            bad_lines.append(number)
        else:
            failures.append(Failure(**fields))
    return failures, bad_lines


def prepare_failures(folder: Path) -> None:
    """Create errors.jsonl, or drop its torn lines; only for the process that holds the store exclusively.

    A sample whose line is dropped counts as neither done nor failed, so that this run takes it up again.
    """
    path = folder / ERRORS
    failures, bad_lines = read_failures(folder)
    if bad_lines:
        write_atomic(path, b"".join(encode_line(asdict(failure)) for failure in failures))
    elif path.exists():
        # A rank may have died between writing a line and syncing it; from here on that line counts.
        sync_file(path)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, FILE_MODE))
        sync_folder(folder)
