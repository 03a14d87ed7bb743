"""Writing while computing: a batch is packed and made durable in threads of its own, beside the next one."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mapstack.errors import InputError, StoreError
from mapstack.store import Failure, Packed, Record, StoreWriter, record_failure

# Hashing and compressing let go of the interpreter; more threads than this only wait for the one that writes.
_MAX_PACKERS = 4


@dataclass(frozen=True, slots=True)
class Stored:
    """What is durable.

    Attributes:
        n_records: Samples in the parts.
        n_failures: Samples named in errors.jsonl.
        n_bytes: By how much the parts grew [bytes].
    """

    n_records: int = 0
    n_failures: int = 0
    n_bytes: int = 0

    def __add__(self, other: "Stored") -> "Stored":
        """Add what two batches stored."""
        return Stored(
            self.n_records + other.n_records, self.n_failures + other.n_failures, self.n_bytes + other.n_bytes
        )


class BackgroundWriter:
    """What one rank writes into a store that is open for writing, while the caller computes the next batch.

    One thread writes, in the order of the batches; nobody else has the `StoreWriter`. Others pack for it. At most one
    batch is being written, so that the memory is that of two: that one, and the one that is being computed or packed.

    An error of a thread is raised once, by the next call of `submit`, `flush` or `close`, and closes the writer.
    Nothing interrupts a thread: whatever ends the caller, the batch in flight is finished or the process is gone, and
    both leave whole records.

    Args:
        folder: The store.
        run: `StoreSession.run` of the process that opened it.
        rank: The rank of this process.
        compress: As in `StoreWriter`.

    Attributes:
        stored: What is known to be durable: all batches but the one in flight.

    Raises:
        StoreError: The store is not open, or open for another run.
    """

    def __init__(self, folder: Path, run: int, rank: int, compress: str = "none") -> None:
        self.stored = Stored()
        self._folder = folder
        self._writer = StoreWriter(folder, run, rank, compress=compress)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._packers = ThreadPoolExecutor(min(_MAX_PACKERS, os.cpu_count() or 1), thread_name_prefix="pack")
        self._in_flight: Future[Stored] | None = None
        self._is_closed = False

    def submit(self, batch: Sequence[Record | Failure], check: Callable[[], None] = lambda: None) -> None:
        """Hand a batch over, as soon as the one before it is durable.

        Args:
            batch: The record of each sample, or the failure to name in its place. Other threads read them: they must
                not change any more.
            check: Called once the batch before is durable; when it raises, this batch is not written.

        Raises:
            StoreError: The batch before could not be written, or the writer is closed.
            MapstackError: What else the batch before raised.
        """
        # Packed while the batch before is on its way to the disk.
        packing = [] if self._is_closed else [self._packers.submit(self._pack, result) for result in batch]
        self.flush()
        if self._is_closed:
            raise StoreError(
                f"the writer of stack store '{self._folder}' is closed; nothing follows what it has sealed; open the "
                "store again to resume."
            )
        check()
        self._in_flight = self._thread.submit(self._write, packing)

    def flush(self) -> None:
        """Wait until the batch in flight is durable.

        Raises:
            StoreError: It could not be written.
            MapstackError: What else it raised.
        """
        if self._in_flight is None:
            return
        wait([self._in_flight])  # a signal may end this wait: the batch is in flight still
        batch, self._in_flight = self._in_flight, None
        error = batch.exception()
        if error is not None:
            with suppress(StoreError):  # the first error says more
                self.close()
            raise error
        self.stored += batch.result()

    def close(self) -> None:
        """Wait for the batch in flight, seal the part and leave the job; again does nothing.

        Raises:
            StoreError: The batch or the seal could not be written.
            MapstackError: What else the batch raised.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.flush()
        finally:
            seal = self._thread.submit(self._writer.close)
            self._thread.shutdown()
            self._packers.shutdown()
            seal.result()

    def _write(self, packing: list[Future[Packed | Failure]]) -> Stored:
        stored = Stored()
        while packing:  # what is written is let go of
            stored += self._write_one(packing.pop(0).result())
        self._writer.commit()
        return stored

    def _pack(self, result: Record | Failure) -> Packed | Failure:
        if isinstance(result, Failure):
            return result
        try:
            return self._writer.pack(result.key, result.arrays, result.info)
        except InputError as error:  # of this sample alone: the others are written, in this run and the next
            return Failure(result.key, str(result.info.get("shard", "")), str(error))

    def _write_one(self, result: Packed | Failure) -> Stored:
        if isinstance(result, Failure):
            record_failure(self._folder, result.key, result.shard, result.reason)
            return Stored(n_failures=1)
        return Stored(n_records=1, n_bytes=self._writer.append(result))
