"""Re-reading every byte of a store against its checksums."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mapstack.errors import StoreError
from mapstack.store.disk import disk_errors, hash_range
from mapstack.store.failures import read_failures
from mapstack.store.journal import Entry, Journal, open_tar, padded_end, read_journal
from mapstack.store.keys import member_name
from mapstack.store.layout import ERRORS, Part, list_parts
from mapstack.store.manifest import read_manifest
from mapstack.store.reader import read_basis

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
        n_done: Samples whose record is whole.
        n_failed: Other samples that errors.jsonl names.
        n_missing: Samples that are neither done, nor failed, nor damaged; None if the store does not say how many were
            expected.
        damaged: Key (or file, where no single sample is to blame) and reason.
        unsealed: Names of the parts that are still partial: a job is writing them, or was interrupted.
    """

    n_done: int
    n_failed: int
    n_missing: int | None
    damaged: tuple[tuple[str, str], ...]
    unsealed: tuple[str, ...]

    @property
    def n_damaged(self) -> int:
        """How many damages were found."""
        return len(self.damaged)

    @property
    def is_sound(self) -> bool:
        """Whether every expected sample is accounted for, and nothing is damaged or left open."""
        return not self.damaged and not self.unsealed and self.n_missing == 0


def verify(folder: str | os.PathLike[str], progress: Progress | None = None) -> Verification:
    """Re-read every record, journal line, basis and error line of a store against its checksum.

    A store that a job is writing can be verified too: what is committed is read, what comes after is left alone.

    Args:
        folder: The store.
        progress: Called after each record with the bytes read so far and the bytes that the tars have.

    Raises:
        StoreError: The folder is no store, or its manifest is damaged.
        StoreDiskError: The disk cannot be read.
    """
    folder = Path(folder)
    with disk_errors(folder):
        manifest = read_manifest(folder)
        check = _Check(folder, progress)
        check.basis(manifest["basis_sha256"])
        for part in list_parts(folder):
            check.part(part)
        failed = check.failures(is_in_work=not manifest["complete"])
    expected = manifest["totals"]["expected"]
    n_accounted = len(check.done | failed | check.damaged_keys)
    return Verification(
        n_done=len(check.done),
        n_failed=len(failed - check.done - check.damaged_keys),
        n_missing=None if expected is None else max(0, expected - n_accounted),
        damaged=tuple(check.damaged),
        unsealed=tuple(check.unsealed),
    )


class _Check:
    """One pass over a store."""

    def __init__(self, folder: Path, progress: Progress | None) -> None:
        self._folder = folder
        self._progress = progress
        self._n_bytes = sum(_tar_size(folder, part) for part in list_parts(folder))
        self._n_bytes_read = 0
        self.done: set[str] = set()
        self.damaged_keys: set[str] = set()
        self.damaged: list[tuple[str, str]] = []
        self.unsealed: list[str] = []

    def basis(self, expected: str | None) -> None:
        if expected is not None:
            try:
                read_basis(self._folder, expected)
            except StoreError as error:
                self.damaged.append(("basis.npy", str(error)))

    def failures(self, *, is_in_work: bool) -> set[str]:
        failures, bad_lines = read_failures(self._folder, is_in_work=is_in_work)
        self.damaged += [(ERRORS, f"line {number} is torn or damaged") for number in bad_lines]
        return {failure.key for failure in failures}

    def part(self, part: Part) -> None:
        is_sealed = part.sealed(self._folder).exists()  # asked first: once sealed, the journal is final
        journal = read_journal(part.journal(self._folder))
        if not is_sealed:
            self.unsealed.append(part.stem)
        self._journal(part, journal, is_sealed)
        if not journal.entries and not is_sealed:
            return
        try:
            fd = open_tar(self._folder, part)
        except StoreError as error:
            self.damaged.append((part.stem, str(error)))
            self.damaged_keys.update(entry.key for entry in journal.entries)
            return
        try:
            self._records(fd, journal)
            if is_sealed:
                self._end(fd, part, journal)
        finally:
            os.close(fd)

    def _journal(self, part: Part, journal: Journal, is_sealed: bool) -> None:
        name = part.journal(self._folder).name
        n_lines = len(journal.entries) + len(journal.bad_lines)
        for number in journal.bad_lines:
            if is_sealed or number < n_lines:  # the last line of a part in work may be half written
                self.damaged.append((name, f"line {number} is damaged"))
        position = 0
        for entry in journal.entries:
            if entry.offset != position and not journal.bad_lines:
                self.damaged.append((name, f"record {ascii(entry.key)} does not begin where the one before ends"))
            position = entry.end

    def _records(self, fd: int, journal: Journal) -> None:
        for entry in journal.entries:
            reason = self._reason(fd, entry)
            if reason is None:
                self.done.add(entry.key)
            else:
                self.damaged.append((entry.key, reason))
                self.damaged_keys.add(entry.key)
            self._n_bytes_read += entry.size
            if self._progress is not None:
                self._progress(self._n_bytes_read, self._n_bytes)

    def _reason(self, fd: int, entry: Entry) -> str | None:
        digest = hash_range(fd, entry.offset, entry.size)
        if digest is None:
            return "the tar ends inside the record"
        if digest != entry.sha256:
            return "its bytes do not match their checksum"
        if entry.name != member_name(entry.key):
            return "its members are named for another key"
        if entry.key in self.done:
            return "a record of this key came before"
        return None

    def _end(self, fd: int, part: Part, journal: Journal) -> None:
        end = journal.entries[-1].end if journal.entries else 0
        size = os.fstat(fd).st_size
        if size != padded_end(end) or any(os.pread(fd, size - end, end)):
            self.damaged.append((part.sealed(self._folder).name, "it does not end as a tar does after its last record"))


def _tar_size(folder: Path, part: Part) -> int:
    try:
        fd = open_tar(folder, part)
    except StoreError:
        return 0
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)
