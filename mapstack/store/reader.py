"""Reading a store, also while a job is writing it."""

import io
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapstack.errors import InputError, StoreError
from mapstack.store.disk import disk_errors
from mapstack.store.failures import Failure, read_failures
from mapstack.store.journal import Entry, damaged_part, open_tar, read_committed
from mapstack.store.layout import BASIS, Part, list_parts
from mapstack.store.manifest import read_manifest
from mapstack.store.records import Record, unpack

_BLOCK_BYTES = 2**20  # hashed while it is still in the cache


class Store:
    """The committed records of a stack store, as they were when it was opened; open it again to see more.

    Holds for each sample its key and a place in a journal, no file and no array, so that it can be handed to other
    processes and threads. Where a key was written twice the first record counts.

    Attributes:
        folder: The store.
        manifest: What its manifest.json says.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Read the manifest and the journals.

        Raises:
            StoreError: The folder is no store, or it is damaged.
        """
        self.folder = Path(folder)
        self._places: dict[str, tuple[Part, int]] = {}
        with disk_errors(self.folder):
            self.manifest: dict[str, Any] = read_manifest(self.folder)
            for part in list_parts(self.folder):
                journal = read_committed(self.folder, part)
                line_starts = (0, *journal.line_ends)
                for entry, start in zip(journal.entries, line_starts, strict=False):
                    self._places.setdefault(entry.key, (part, start))

    @property
    def basis(self) -> NDArray[np.float32] | None:
        """The basis [rows, D] of the stacks; None for the axes.

        Raises:
            StoreError: It is damaged or missing.
        """
        expected = self.manifest["basis_sha256"]
        with disk_errors(self.folder):
            return None if expected is None else read_basis(self.folder, expected)

    def keys(self) -> list[str]:
        """The keys of the samples, in the order of the parts and of the journal within a part."""
        return list(self._places)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        """Whether a sample of this key is committed."""
        return key in self._places

    def __iter__(self) -> Iterator[Record]:
        """Read the records one after the other, in the order of `keys`."""
        return (self.read(key) for key in self._places)

    def failures(self) -> list[Failure]:
        """The samples that errors.jsonl names and that are not done, each with its latest reason."""
        with disk_errors(self.folder):
            failures, _ = read_failures(self.folder)
        return list({failure.key: failure for failure in failures if failure.key not in self}.values())

    def read(self, key: str, check: bool = False) -> Record:
        """Read one sample, and nothing else of its tar.

        Args:
            key: The key of the sample.
            check: Compare its bytes with their checksum first.

        Raises:
            InputError: There is no such sample.
            StoreError: The record is damaged.
        """
        if key not in self._places:
            raise InputError(
                f"key {ascii(key)} is not in stack store '{self.folder}' ({len(self)} samples); only committed samples "
                "can be read; see keys() and errors.jsonl."
            )
        part, line_start = self._places[key]
        with disk_errors(self.folder):
            entry = self._entry(key, part, line_start)
            content, digest = self._content(part, entry, check)
        try:
            if check and digest != entry.sha256:
                raise ValueError("its bytes do not match their checksum")
            return unpack(entry, content)
        except ValueError as error:
            raise damaged_part(self.folder, part, f"record {ascii(key)}: {error}") from error

    def _entry(self, key: str, part: Part, line_start: int) -> Entry:
        with part.journal(self.folder).open("rb") as journal:
            journal.seek(line_start)
            entry = Entry.decode(journal.readline())
        if entry is None or entry.key != key:
            raise damaged_part(self.folder, part, f"the journal line of {ascii(key)} was changed")
        return entry

    def _content(self, part: Part, entry: Entry, check: bool) -> tuple[NDArray[np.uint8], str]:
        content = np.empty(entry.size, np.uint8)
        digest = sha256()
        with open(open_tar(self.folder, part), "rb", buffering=0) as tar:
            tar.seek(entry.offset)
            n_read = 0
            while n_read < entry.size:
                n_more = tar.readinto(content.data[n_read : n_read + _BLOCK_BYTES])
                if not n_more:
                    raise damaged_part(self.folder, part, f"its tar ends inside record {ascii(entry.key)}")
                if check:
                    digest.update(content.data[n_read : n_read + n_more])
                n_read += n_more
        return content, digest.hexdigest()


def read_basis(folder: Path, expected: str) -> NDArray[np.float32]:
    """Read basis.npy.

    Args:
        folder: The store.
        expected: The sha256 of the file, as the manifest says it.

    Raises:
        StoreError: It is damaged or missing.
    """
    path = folder / BASIS
    content = path.read_bytes() if path.exists() else b""
    if sha256(content).hexdigest() != expected:
        raise StoreError(
            f"'{path}' is {'damaged' if content else 'missing'}; the stacks mean nothing without their basis, whose "
            "sha256 the manifest holds; restore it, or write the store anew with overwrite: true."
        )
    basis: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
    return basis
