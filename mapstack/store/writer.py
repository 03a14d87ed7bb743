"""Writing records: bytes first, journal after, each made durable before the next depends on it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from mapstack.errors import InputError, StoreError, unknown_name
from mapstack.store.compression import COMPRESSIONS
from mapstack.store.disk import FILE_MODE, disk_errors, forget_written, sync_folder, write_all
from mapstack.store.journal import Entry, padded_end
from mapstack.store.layout import Part, list_parts
from mapstack.store.lock import FolderLock
from mapstack.store.records import Packed, pack

MAX_PART_BYTES = 4 * 1024**3


class _OpenPart:
    """A part that is being written: its tar, its journal, and the samples that are not durable yet."""

    def __init__(self, folder: Path, part: Part) -> None:
        self._folder = folder
        self._part = part
        self.n_bytes = 0
        self._pending: list[bytes] = []
        self._fds: list[int] = []
        try:
            for path in (part.partial(folder), part.journal(folder)):
                self._fds.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, FILE_MODE))
            sync_folder(folder)
        except BaseException:
            self.close()
            raise

    def append(self, packed: Packed) -> None:
        """Hand the bytes of a sample to the system."""
        write_all(self._fds[0], packed.chunks)
        entry = Entry(packed.key, packed.name, self.n_bytes, packed.size, packed.sha256, packed.members)
        self._pending.append(entry.encode())
        self.n_bytes = entry.end

    def commit(self) -> None:
        """Make the appended samples durable, and only then say so in the journal."""
        if self._pending:
            tar, journal = self._fds
            os.fsync(tar)
            forget_written(tar)
            write_all(journal, [b"".join(self._pending)])
            os.fsync(journal)
            self._pending.clear()

    def seal(self) -> None:
        """End the tar and give it its final name."""
        self.commit()
        seal_tar(self._folder, self._part, self._fds[0], self.n_bytes)
        self.close()

    def close(self) -> None:
        """Let go of the files as they are."""
        while self._fds:
            os.close(self._fds.pop())


def seal_tar(folder: Path, part: Part, fd: int, end: int) -> None:
    """Write the end of the archive after the last sample, and rename the durable tar to its final name.

    Args:
        folder: The store.
        part: The part, whose tar is still partial.
        fd: The tar, open so that writing appends.
        end: Its size [bytes], all of it whole samples.
    """
    write_all(fd, [bytes(padded_end(end) - end)])
    os.fsync(fd)
    os.rename(part.partial(folder), part.sealed(folder))
    sync_folder(folder)


class StoreWriter:
    """What one rank writes into a store that is open for writing; for one thread at a time, but for `pack`.

    A sample is safe once `commit` has returned. Leaving the `with` block commits and seals, also on an exception; after
    a write that failed half-way nothing more is accepted, and the next job that opens the store cuts the torn end off.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        run: int,
        rank: int,
        max_part_bytes: int = MAX_PART_BYTES,
        compress: str = "none",
    ) -> None:
        """Join the job that has the store open.

        Args:
            folder: The store.
            run: `StoreSession.run` of the process that opened it.
            rank: The rank of this process.
            max_part_bytes: A part that has reached this size [bytes] is sealed and the next begun.
            compress: `none`, or `zstd` for every array.

        Raises:
            InputError: `compress` is unknown.
            StoreError: The store is not open, or open for another run.
        """
        if compress not in COMPRESSIONS:
            raise InputError(unknown_name("compress", compress, COMPRESSIONS))
        self._folder = Path(folder)
        self._run = run
        self._rank = rank
        self._max_part_bytes = max_part_bytes
        self._is_compressed = compress != "none"
        self._part: _OpenPart | None = None
        self._keys: set[str] = set()
        self._is_usable = True
        with disk_errors(self._folder):
            self._lock = FolderLock.join(self._folder, run, rank)

    def write(self, key: str, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any]) -> int:
        """Append one sample; it is durable after the next `commit`.

        Args:
            key: The key of the sample, any text.
            arrays: Booleans, integers or finite floats, by names such as `stack` or `embedding`.
            info: What JSON can carry; `key` is added to it.

        Returns:
            How many bytes the store grew by.

        Raises:
            InputError: The sample cannot be stored, or this writer has its key already; nothing was written.
            StoreError: The writer is closed or failed before, or a package is missing that compression needs.
            StoreDiskError: The disk refuses.
        """
        return self.append(self.pack(key, arrays, info))

    def pack(self, key: str, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any]) -> Packed:
        """Do what of `write` needs no file: look the numbers through, compress, and hash. In any thread.

        Raises:
            InputError: The sample cannot be stored.
            StoreError: A package is missing that compression needs.
        """
        return pack(key, arrays, info, is_compressed=self._is_compressed)

    def append(self, packed: Packed) -> int:
        """Do the rest of `write`.

        Returns:
            How many bytes the store grew by.

        Raises:
            InputError: This writer has the key already; nothing was written.
            StoreError: The writer is closed, or failed before.
            StoreDiskError: The disk refuses.
        """
        key = packed.key
        if key in self._keys:
            raise InputError(f"key {ascii(key)} comes a second time; a sample is stored once; drop the duplicate.")
        with self._step():
            if self._part is None:
                self._part = _OpenPart(self._folder, self._next_part())
            self._part.append(packed)
            self._keys.add(key)
            if self._part.n_bytes >= self._max_part_bytes:
                self._seal()
        return packed.size

    def commit(self) -> None:
        """Make every written sample durable.

        Raises:
            StoreError: The writer is closed, or failed before.
            StoreDiskError: The disk refuses.
        """
        with self._step():
            if self._part is not None:
                self._part.commit()

    def close(self) -> None:
        """Commit, seal the part, and leave the job; after a failure only leave. Again does nothing.

        Raises:
            StoreDiskError: The disk refuses.
        """
        try:
            if self._is_usable:
                with self._step():
                    self._seal()
        finally:
            self._is_usable = False
            if self._part is not None:
                self._part.close()
            self._lock.release()

    def __enter__(self) -> "StoreWriter":
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the writer."""
        self.close()

    @contextmanager
    def _step(self) -> Iterator[None]:
        # Whatever ends a step early, a signal included, may leave a torn record: nothing may follow it.
        if not self._is_usable:
            raise StoreError(
                f"the writer of rank {self._rank} in stack store '{self._folder}' is closed or has failed; nothing "
                "follows a record that may be torn; open the store again to resume."
            )
        self._is_usable = False
        with disk_errors(self._folder):
            yield
        self._is_usable = True

    def _seal(self) -> None:
        if self._part is not None:
            self._part.seal()
            self._part = None

    def _next_part(self) -> Part:
        mine = (p.sequence for p in list_parts(self._folder) if (p.run, p.rank) == (self._run, self._rank))
        return Part(self._run, self._rank, max(mine, default=-1) + 1)
