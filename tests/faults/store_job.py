"""A small job that writes a stack store, and what must hold of the store wherever that job was cut off.

    python -m tests.faults.store_job FOLDER     one line on standard output for each thing acknowledged

Imports the store and numpy only, so that a trial costs little.
"""

import sys
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapstack.store import Store, StoreWriter, finish, open_store_for_writing, record_failure, verify
from mapstack.store.journal import read_journal
from mapstack.store.layout import list_parts

MANIFEST = {"identity": {"model": {"fingerprint": "3f2a"}, "seed": 0}}
BASIS = np.eye(3, 5, dtype=np.float32)
GOOD = ("k0", "1.2.840", "k2", "k3")
BAD = "bad"
SAMPLES = (*GOOD[:3], BAD, GOOD[3])
BATCH = 2
# A record has 3 kB, so that the third sample fills the first part.
MAX_PART_BYTES = 8000
COMPLETE = "(complete)"

Acknowledge = Callable[[str], Any]


def arrays_of(key: str) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(SAMPLES.index(key))
    return {
        "stack": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "embedding": rng.standard_normal(5).astype(np.float32),
    }


def run_job(folder: Path, acknowledge: Acknowledge = lambda key: None) -> list[str]:
    """Write, or go on writing, the store; say which samples were taken up."""
    taken: list[str] = []
    with open_store_for_writing(folder, MANIFEST, basis=BASIS, expected=len(SAMPLES)) as session:
        todo = [key for key in SAMPLES if key not in session.done | session.failed]
        with StoreWriter(folder, session.run, 0, max_part_bytes=MAX_PART_BYTES) as writer:
            for start in range(0, len(todo), BATCH):
                _run_batch(folder, writer, todo[start : start + BATCH], acknowledge)
                taken += todo[start : start + BATCH]
        finish(session, len(SAMPLES))
    acknowledge(COMPLETE)
    return taken


def _run_batch(folder: Path, writer: StoreWriter, keys: list[str], acknowledge: Acknowledge) -> None:
    for key in keys:
        if key == BAD:
            record_failure(folder, key, "s-0.tar", "the picture is truncated")
            acknowledge(key)
        else:
            writer.write(key, arrays_of(key), {"index": SAMPLES.index(key)})
    writer.commit()
    for key in keys:
        acknowledge(key)


def record_digests(folder: Path) -> dict[str, str]:
    """The sha256 of every record as it lies in its tar, read without the checks of the store."""
    digests: dict[str, str] = {}
    for part in list_parts(folder):
        tar = part.sealed(folder).read_bytes()
        for entry in read_journal(part.journal(folder)).entries:
            digests[entry.key] = sha256(tar[entry.offset : entry.end]).hexdigest()
    return digests


def faults_after(folder: Path, acknowledged: Iterable[str], clean: dict[str, str]) -> list[str]:
    """Say what is wrong with a store that was cut off, before and after the job is run again.

    Args:
        folder: The store as the cut left it; it is resumed.
        acknowledged: What the job was told to be safe.
        clean: `record_digests` of a job that nobody cut off.
    """
    kept = set(acknowledged)
    try:
        faults = _faults_as_found(folder, kept)
        again = kept & set(run_job(folder))
    except Exception as error:  # whatever it is, the store did not survive
        return [f"{type(error).__name__}: {error}"]
    store, result = Store(folder), verify(folder)
    checks = {
        f"{sorted(again)} computed again": not again,
        "records differ from those of a clean run": record_digests(folder) == clean,
        f"verify says {result}": result.is_sound,
        "the failure is lost": [failure.key for failure in store.failures()] == [BAD],
        "not complete": store.manifest["complete"] is True,
    }
    return faults + [fault for fault, holds in checks.items() if not holds]


def _faults_as_found(folder: Path, acknowledged: set[str]) -> list[str]:
    if not (folder / "manifest.json").exists():
        return ["everything acknowledged is gone"] if acknowledged else []
    store = Store(folder)
    keys = store.keys()
    faults = [f"record {key} is not whole" for key in keys if not _is_whole(store, key)]
    present = {*keys, *(failure.key for failure in store.failures())}
    if store.manifest["complete"]:
        present.add(COMPLETE)
        faults += [f"complete without {key}" for key in SAMPLES if key not in present]
    if not np.array_equal(store.basis, BASIS):
        faults.append("the basis is another")
    return faults + [f"{key} is lost" for key in sorted(acknowledged - present)]


def _is_whole(store: Store, key: str) -> bool:
    record = store.read(key, check=True)
    expected = arrays_of(key)
    return record.arrays.keys() == expected.keys() and all(
        np.array_equal(record.arrays[name], array) for name, array in expected.items()
    )


if __name__ == "__main__":
    run_job(Path(sys.argv[1]), acknowledge=lambda key: print(key, flush=True))
