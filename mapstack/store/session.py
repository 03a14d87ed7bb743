"""Opening a store for writing, and closing the account at the end."""

import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapstack.errors import InputError, StoreError
from mapstack.store.disk import disk_errors, make_folder, sync_file, write_atomic
from mapstack.store.failures import prepare_failures, read_failures
from mapstack.store.journal import Tally, tally
from mapstack.store.layout import BASIS, ERRORS, MANIFEST, foreign_files, list_parts, next_run
from mapstack.store.lock import FolderLock
from mapstack.store.manifest import (
    names_another_format,
    normalise,
    read_manifest,
    require_same_identity,
    write_manifest,
)
from mapstack.store.recovery import Discarded, Recovered, discard, recover


@dataclass(frozen=True, slots=True)
class Totals:
    """The account of a store.

    Attributes:
        expected: How many samples went in; None while nobody has counted.
        done: How many have a committed record.
        failed: How many others are named in errors.jsonl.
        n_bytes: Size of the records [bytes].
    """

    expected: int | None
    done: int
    failed: int
    n_bytes: int


class StoreSession:
    """A store that is open for writing, held by the process that opened it (rank 0) until `close`.

    Attributes:
        folder: The store.
        run: Number of this run; every rank gives it to its `StoreWriter`.
        done: The keys that have a committed record already.
        failed: The other keys that an earlier run named in errors.jsonl.
        recovered: What an interrupted run had left open.
        discarded: What `overwrite` threw away; None if there was nothing, or it was not asked for.
    """

    def __init__(
        self,
        folder: Path,
        run: int,
        done: frozenset[str],
        failed: frozenset[str],
        recovered: Recovered,
        discarded: Discarded | None,
        lock: FolderLock,
    ) -> None:
        """Hold an open store; use `open_store_for_writing`."""
        self.folder = folder
        self.run = run
        self.done = done
        self.failed = failed
        self.recovered = recovered
        self.discarded = discarded
        self._lock = lock

    def close(self) -> None:
        """Give the store back; again does nothing."""
        self._lock.release()

    def __enter__(self) -> "StoreSession":
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the session."""
        self.close()


def open_store_for_writing(
    folder: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    overwrite: bool = False,
    *,
    basis: NDArray[np.floating[Any]] | None = None,
    expected: int | None = None,
) -> StoreSession:
    """Create a store, or go on with one that the same configuration wrote; for rank 0 of a job.

    Nothing here decides by a clock, a pid or the number of ranks, and any step can be interrupted and done again.

    Args:
        folder: A store, an empty folder, or one that does not exist yet.
        manifest: What to write into manifest.json. Its mapping `identity` holds every setting that changes the records
            (digests for texts: the values may be shown in an error); a store is resumed only with the same one. All
            other fields are refreshed. The store itself fills in `format`, `format_version`, `complete`, `totals`,
            `basis_sha256` and `sha256`.
        overwrite: Throw the records of a store away first, whatever wrote it; other files in the folder stay.
        basis: The orthonormal basis [rows, D] that the stacks are expressed in; None for the axes.
        expected: How many samples the job means to process, as far as it has counted.

    Raises:
        InputError: The manifest or the basis cannot be stored.
        StoreError: Another job writes there, the identity differs, the store is damaged, or the folder is no store.
        StoreDiskError: The disk refuses.
    """
    folder = Path(folder)
    plain = normalise(manifest)
    content = None if basis is None else _basis_file(basis)
    plain["basis_sha256"] = None if content is None else sha256(content).hexdigest()
    with disk_errors(folder):
        _refuse_foreign(folder)
        make_folder(folder)
        lock = FolderLock.exclusive(folder)
        try:
            discarded = discard(folder) if overwrite and _holds_store(folder) else None
            recovered = _resume(folder, plain)
            if content is not None and _digest(folder / BASIS) != plain["basis_sha256"]:
                write_atomic(folder / BASIS, content)
            session = _start(folder, plain, expected, recovered, discarded, lock)
            lock.share(session.run)
        except BaseException:
            lock.release()
            raise
    return session


def finish(session: StoreSession, expected: int) -> Totals:
    """Count what is on disk and write the totals into the manifest; after every rank has closed its writer.

    The store is marked complete only when every part is sealed and done + failed = expected.

    Args:
        session: The open store.
        expected: How many samples went in, counted before the work started.

    Raises:
        StoreError: A part is damaged.
        StoreDiskError: The disk refuses.
    """
    folder = session.folder
    with disk_errors(folder):
        if (folder / ERRORS).exists():
            sync_file(folder / ERRORS)  # of a rank that died between writing a line and syncing it
        counted = tally(folder)
        totals = Totals(expected, len(counted.done), len(_failed(folder, counted)), counted.n_bytes)
        is_complete = totals.done + totals.failed == expected and counted.n_unsealed == 0
        write_manifest(folder, {**read_manifest(folder), "complete": is_complete, "totals": asdict(totals)})
    return totals


def _refuse_foreign(folder: Path) -> None:
    if not folder.is_dir():
        return
    if names_another_format(folder):
        raise StoreError(
            f"folder '{folder}' holds a {MANIFEST} that is not a stack store's; nothing of others is ever replaced; "
            "use another output folder."
        )
    if (folder / MANIFEST).exists():
        return
    foreign = next(foreign_files(folder), None)
    if foreign is not None:
        raise StoreError(
            f"folder '{folder}' is no stack store and holds other files, such as '{foreign.name}'; a store begins in "
            "an empty folder; use another output folder or empty this one."
        )


def _holds_store(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or bool(list_parts(folder))


def _resume(folder: Path, plain: Mapping[str, Any]) -> Recovered:
    if (folder / MANIFEST).exists():
        stored = read_manifest(folder)
        require_same_identity(folder, _identity(stored), _identity(plain))
    elif list_parts(folder):
        raise StoreError(
            f"stack store '{folder}' holds parts and no {MANIFEST}; the manifest says what wrote them; restore it, or "
            "discard the parts with overwrite: true."
        )
    return recover(folder)


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {**manifest["identity"], "basis_sha256": manifest["basis_sha256"]}


def _start(
    folder: Path,
    plain: Mapping[str, Any],
    expected: int | None,
    recovered: Recovered,
    discarded: Discarded | None,
    lock: FolderLock,
) -> StoreSession:
    prepare_failures(folder)
    counted = tally(folder)
    failed = _failed(folder, counted)
    totals = Totals(expected, len(counted.done), len(failed), counted.n_bytes)
    write_manifest(folder, {**plain, "complete": _stays_complete(folder, totals), "totals": asdict(totals)})
    return StoreSession(folder, next_run(folder), counted.done, failed, recovered, discarded, lock)


def _stays_complete(folder: Path, totals: Totals) -> bool:
    """Whether a store that was complete lacks nothing: a job that finds nothing to do must not leave it incomplete."""
    if totals.expected is None or not (folder / MANIFEST).exists():
        return False
    stored = read_manifest(folder)
    before = stored["totals"]["expected"]
    return bool(stored["complete"]) and totals.expected <= before <= totals.done + totals.failed


def _failed(folder: Path, counted: Tally) -> frozenset[str]:
    failures, _ = read_failures(folder)
    return frozenset(failure.key for failure in failures) - counted.done


def _basis_file(basis: NDArray[np.floating[Any]]) -> bytes:
    basis = np.asarray(basis, dtype="<f4", order="C")
    if basis.ndim != 2 or not np.isfinite(basis).all():
        raise InputError(
            f"the basis of shape {basis.shape} is refused; it is a matrix [rows, D] of finite numbers; "
            "leave it out for the axes."
        )
    file = io.BytesIO()
    np.lib.format.write_array(file, basis, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def digest_basis(basis: NDArray[np.floating[Any]] | None) -> str | None:
    """Return what the manifest will say as `basis_sha256`: of the file in which the basis is stored; None for the axes.

    Raises:
        InputError: The basis cannot be stored.
    """
    return None if basis is None else sha256(_basis_file(basis)).hexdigest()


def _digest(path: Path) -> str | None:
    return sha256(path.read_bytes()).hexdigest() if path.exists() else None
