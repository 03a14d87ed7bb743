"""Writing what the loop makes: opens the store, commits every batch, closes the account."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import BasePredictionWriter

from mapstack.store import (
    Failure,
    Record,
    StoreSession,
    Totals,
    check_space,
    finish,
    open_store_for_writing,
    record_failure,
)
from mapstack.store.disk import disk_errors
from mapstack.store.layout import store_files
from train_like.background import BackgroundWriter, Stored
from train_like.data import ShardData
from train_like.errors import StoppedError, TerminatedError
from train_like.index import Entry, Problem, ShardIndex
from train_like.local_ranks import LocalRanks
from train_like.ranks import LOST_RANK, Ranks
from train_like.signals import TerminationFlag
from train_like.size import RecordSize
from train_like.source import divide, share

_MIN_SAMPLES_BEFORE_ABORT = 100
_N_WEIGHED = 16


class StoreCallback(BasePredictionWriter):
    """The store's side of the loop.

    Rank 0 opens the store and counts at the end; every rank writes its own parts. What rank 0 decides is told to the
    others, so that all go on or all stop.

    Args:
        folder: The store.
        manifest: See `open_store_for_writing`.
        basis: Rows of the basis; None for the axes.
        index: All samples of the job.
        record_size: What a record will take.
        overwrite: Discard what the folder holds.
        max_bad_share: Stop when more than this share of this rank's samples is bad: those that fail in the loop, and
            with them its part of those that the index names.

    Attributes:
        local_ranks: The ranks that hang on this process.
        record_size: What a record will take.
        n_bytes_estimated: The most that the job will write, as rank 0 has estimated before the loop.
        totals: The account, after the loop.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        basis: Any,
        index: ShardIndex,
        record_size: RecordSize,
        *,
        overwrite: bool,
        max_bad_share: float,
    ) -> None:
        super().__init__(write_interval="batch")
        self._folder = folder
        self._manifest = manifest
        self._basis = basis
        self._index = index
        self._overwrite = overwrite
        self._max_bad_share = max_bad_share
        self._session: StoreSession | None = None
        self._writer: BackgroundWriter | None = None
        self._ranks: Ranks | None = None
        self.local_ranks = LocalRanks()
        self._termination = TerminationFlag(self.local_ranks.send)
        self._n_expected = index.n_expected
        self._n_done_before = 0
        self._n_share = 0
        self._n_named = 0
        self._is_weighed = False
        self.record_size = record_size
        self.n_bytes_estimated = 0
        self.totals: Totals | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Open the store on rank 0, join it on the others, and hand the loader what is still to do."""
        self._listen(trainer)
        self._ranks = Ranks(is_first=trainer.is_global_zero)
        run, done = self._ranks.from_first(self._open)
        self._n_done_before = len(done) // trainer.world_size
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ShardData):
            raise TypeError(f"trainer has {type(data).__name__} as data; a store is filled from ShardData.")
        data.entries = self._still_to_do(done)
        self._n_share = len(share(data.entries, trainer.global_rank, trainer.world_size))
        self._n_named = len(divide(len(self._index.problems), trainer.global_rank, trainer.world_size))
        compress = self._manifest["identity"]["compress"]
        self._writer = BackgroundWriter(self._folder, run, trainer.global_rank, compress)

    def _still_to_do(self, done: frozenset[str]) -> list[Entry]:
        return [entry for entry in self._index.entries if entry.key not in done]

    def _open(self) -> tuple[int, frozenset[str]]:
        n_bytes_held = _size_of_store(self._folder)
        is_begun = n_bytes_held > 0 and not self._overwrite
        if not is_begun:
            # Before anything is made or discarded. What will be discarded makes room.
            self._require_room(len(self._index.entries), n_bytes_held)
        self._session = open_store_for_writing(
            self._folder,
            self._manifest,
            self._overwrite,
            basis=self._basis,
            expected=self._index.n_expected,
        )
        n_left = len(self._still_to_do(self._session.done))
        self.n_bytes_estimated = n_left * self.record_size.n_bytes
        if is_begun:
            self._require_room(n_left)
        self._tell(self._session)
        problems = name_problems(self._index)
        for key, problem in problems.items():
            if key not in self._session.failed:
                record_failure(self._folder, key, problem.shard, problem.reason)
        self._check_share(len(problems), self._index.n_expected)
        # An earlier run may have gone further than data.limit lets this one.
        earlier = self._session.done | self._session.failed
        self._n_expected += len(earlier.difference(problems, (entry.key for entry in self._index.entries)))
        return self._session.run, self._session.done

    def _require_room(self, n_records: int, n_bytes_freed: int = 0) -> None:
        """Refuse what the disk will not hold; where the size depends on the pictures, the first of them will tell."""
        if self.record_size.is_exact:
            check_space(self._folder, n_records * self.record_size.n_bytes - n_bytes_freed)

    @staticmethod
    def _tell(session: StoreSession) -> None:
        if session.discarded is not None:
            print(f"overwrite: {session.discarded.n_records} records are discarded.", file=sys.stderr)
        elif session.done:
            print(f"{len(session.done)} records are done already.", file=sys.stderr)

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take SIGTERM back from Lightning, which has put its own handler in front."""
        self._listen(trainer)

    def _listen(self, trainer: lightning.Trainer) -> None:
        self.local_ranks.take_over(trainer.strategy.launcher)
        self._termination.listen()

    def on_predict_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin no batch after SIGTERM, which may have come while the job started or the reader was waited for.

        Raises:
            TerminatedError: It has come.
        """
        self._stop_if_terminated()

    def write_on_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        prediction: Sequence[Record | Failure],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand a batch over to be written, once the one before it is durable; it is packed meanwhile.

        Raises:
            StoppedError: Too many samples are bad, or a rank that this process has started is gone.
            StoreDiskError: The disk refuses, or will not hold the rest.
            TerminatedError: SIGTERM has come; the batch is safe.
        """

        def check() -> None:
            self._require_few_bad()
            self._weigh(trainer.world_size)

        self._require_writer().submit(prediction, check)
        self._stop_if_terminated()
        if self.local_ranks.is_one_gone:
            raise StoppedError(LOST_RANK)

    def _stop_if_terminated(self) -> None:
        if self._termination.is_set:
            self._close_account(is_early=True)

    def _weigh(self, n_ranks: int) -> None:
        """Once, where the size of records depends on the pictures: take the first for the rest."""
        if self.record_size.is_exact or self._is_weighed or self.n_computed < _N_WEIGHED:
            return
        self._is_weighed = True
        check_space(self._folder, (self._n_share - self.n_seen) * n_ranks * self.n_bytes // self.n_computed)

    @property
    def _stored(self) -> Stored:
        return Stored() if self._writer is None else self._writer.stored

    @property
    def n_computed(self) -> int:
        """Stacks that this rank has made, and that are durable."""
        return self._stored.n_records

    @property
    def n_bytes(self) -> int:
        """Bytes that this rank has made durable."""
        return self._stored.n_bytes

    @property
    def n_seen(self) -> int:
        """Samples that this rank is through with."""
        return self.n_computed + self._stored.n_failures

    @property
    def is_terminated(self) -> bool:
        """Whether SIGTERM has come."""
        return self._termination.is_set

    def _require_few_bad(self) -> None:
        """Add up what the loop and the index found; of the latter as large a part as that of the work that is done."""
        n_seen = self._n_done_before + self.n_seen
        n_named = self._n_named * n_seen // max(1, self._n_done_before + self._n_share)
        self._check_share(self._stored.n_failures + n_named, n_seen + n_named)

    def _check_share(self, n_bad: int, n_seen: int) -> None:
        if n_seen >= _MIN_SAMPLES_BEFORE_ABORT and n_bad > self._max_bad_share * n_seen:
            raise StoppedError(
                f"{n_bad} of {n_seen} samples are bad; at most {self._max_bad_share:.1%} may be; see errors.jsonl, or "
                "raise data.max_bad_share."
            )

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the account of a rank that has come to the end of its share.

        Raises:
            StoppedError: Too many samples are bad.
        """
        self._require_writer().flush()
        self._require_few_bad()
        self._close_account(is_early=False)

    def _close_account(self, *, is_early: bool) -> None:
        """Seal the parts of every rank, then count. All ranks meet here, and all leave in the same way.

        Raises:
            TerminatedError: SIGTERM has kept a rank from the end of its share.
        """
        if self._ranks is None:
            raise RuntimeError("the store was never opened.")
        self._require_writer().close()
        was_early = self._ranks.is_any(is_early)
        self.totals = self._ranks.from_first(self._count)
        if was_early:
            raise TerminatedError("SIGTERM came; the batch in work is committed; run the same command to go on.")

    def _count(self) -> Totals:
        if self._session is None:
            raise RuntimeError("the store was never opened.")
        return finish(self._session, self._n_expected)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the store back, however the loop ended."""
        self.close()

    def close(self) -> None:
        """Close the writer and the session; again does nothing."""
        if self._writer is not None:
            self._writer.close()
        if self._session is not None:
            self._session.close()
        if self._ranks is not None:
            self._ranks.leave()
        self._termination.ignore()

    def _require_writer(self) -> BackgroundWriter:
        if self._writer is None:
            raise RuntimeError("the store was never opened.")
        return self._writer


def _size_of_store(folder: Path) -> int:
    with disk_errors(folder):
        return sum(path.stat().st_size for path in store_files(folder)) if folder.is_dir() else 0


def name_problems(index: ShardIndex) -> dict[str, Problem]:
    """Name each problem for the list of failures, so that it is counted once and hides no sample.

    A damaged shard has no key, and a key that comes again belongs to a sample that may well be done. Such a name holds
    no folder: a run that goes on under another mount would count its problem again.
    """
    keys = {entry.key for entry in index.entries}
    named: dict[str, Problem] = {}
    for number, problem in enumerate(index.problems):
        name = problem.key
        if name is None or name in keys or name in named:
            name = f"{name or 'shard'} [{number} in {os.path.basename(problem.shard)}]"
        named[name] = problem
    return named
