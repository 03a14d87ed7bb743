"""What an interrupted job left behind: cut back to whole records, or thrown away on request.

Both are only for the process that holds the folder exclusively, and both can be interrupted anywhere and done again.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mapstack.errors import StoreError
from mapstack.store.disk import cut_file, hash_range, sync_folder
from mapstack.store.journal import Entry, damaged_part, padded_end, read_committed, read_journal
from mapstack.store.layout import LOCK, MANIFEST, Part, list_parts, store_files
from mapstack.store.manifest import read_manifest, write_manifest
from mapstack.store.writer import seal_tar


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a resumed job found unsealed.

    Attributes:
        n_parts: Parts that were not sealed.
        n_records: Their records that are whole, and kept.
        n_records_dropped: Journalled records whose bytes did not check out, or that came after such a one.
        n_bytes_dropped: What was cut off their tars [bytes].
    """

    n_parts: int = 0
    n_records: int = 0
    n_records_dropped: int = 0
    n_bytes_dropped: int = 0

    def __add__(self, other: "Recovered") -> "Recovered":
        """Add the counts of two parts."""
        return Recovered(
            self.n_parts + other.n_parts,
            self.n_records + other.n_records,
            self.n_records_dropped + other.n_records_dropped,
            self.n_bytes_dropped + other.n_bytes_dropped,
        )


@dataclass(frozen=True, slots=True)
class Discarded:
    """What `overwrite` threw away.

    Attributes:
        n_records: Journalled records.
        n_files: Files of the store.
        n_bytes: Their size.
    """

    n_records: int
    n_files: int
    n_bytes: int


def recover(folder: Path) -> Recovered:
    """Seal every part that an interrupted job left open, after cutting it back to its last whole record.

    Raises:
        StoreError: A sealed part is damaged; it is never cut.
    """
    recovered = Recovered()
    for part in list_parts(folder):
        if part.sealed(folder).exists():
            _check_sealed(folder, part)
        else:
            recovered += _recover_part(folder, part)
    return recovered


def discard(folder: Path) -> Discarded:
    """Remove the files of a store, and nothing else that may lie in the folder."""
    n_records = sum(len(read_journal(part.journal(folder)).entries) for part in list_parts(folder))
    # The lock is held by this process. The manifest goes last: until then the folder still says what it is.
    files = [path for path in store_files(folder) if path.name != LOCK]
    files.sort(key=lambda path: path.name == MANIFEST)
    n_bytes = sum(path.stat().st_size for path in files)
    # Should this be interrupted, what is left must not call itself complete. A damaged manifest does not, and a disk
    # too full for another one must not keep anybody from making room.
    with suppress(StoreError, OSError):
        write_manifest(folder, {**read_manifest(folder), "complete": False})
    for path in files:
        if path.name == MANIFEST:
            sync_folder(folder)
        path.unlink()
    sync_folder(folder)
    return Discarded(n_records, len(files), n_bytes)


def _check_sealed(folder: Path, part: Part) -> None:
    entries = read_committed(folder, part).entries
    size = part.sealed(folder).stat().st_size
    if size != padded_end(entries[-1].end):
        reason = f"its tar has {size} bytes where the journal says {padded_end(entries[-1].end)}"
        raise damaged_part(folder, part, reason)
    if part.partial(folder).exists():
        raise damaged_part(folder, part, "it is there twice, sealed and partial")


def _recover_part(folder: Path, part: Part) -> Recovered:
    journal = read_journal(part.journal(folder))
    if not part.partial(folder).exists():
        if journal.entries:
            raise damaged_part(folder, part, "its tar is missing")
        _remove(folder, part)
        return Recovered(n_parts=1)
    fd = os.open(part.partial(folder), os.O_RDWR | os.O_APPEND)
    try:
        n_whole = _count_whole(fd, journal.entries[: journal.n_leading])
        end = journal.entries[n_whole - 1].end if n_whole else 0
        n_bytes_dropped = max(0, os.fstat(fd).st_size - end)
        if n_whole:
            # The journal first: a line must never outlive its bytes.
            cut_file(part.journal(folder), journal.line_ends[n_whole - 1])
            os.ftruncate(fd, end)
            seal_tar(folder, part, fd, end)
        else:
            _remove(folder, part)
    finally:
        os.close(fd)
    return Recovered(1, n_whole, len(journal.entries) - n_whole, n_bytes_dropped)


def _count_whole(fd: int, entries: list[Entry]) -> int:
    expected_offset = 0
    for number, entry in enumerate(entries):
        if entry.offset != expected_offset or hash_range(fd, entry.offset, entry.size) != entry.sha256:
            return number
        expected_offset = entry.end
    return len(entries)


def _remove(folder: Path, part: Part) -> None:
    # The journal first, and durably: lines without a tar would pass for damage.
    part.journal(folder).unlink(missing_ok=True)
    sync_folder(folder)
    part.partial(folder).unlink(missing_ok=True)
    sync_folder(folder)
