from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mapstack.store import StoreWriter, finish, open_store_for_writing

IDENTITY = {"model": {"fingerprint": "3f2a"}, "method": {"name": "occlusion", "n_steps": 20}, "seed": 0}
Arrays = dict[str, NDArray[Any]]


def arrays_of(index: int) -> Arrays:
    rng = np.random.default_rng(index)
    return {
        "stack": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "embedding": rng.standard_normal(5).astype(np.float32),
    }


@pytest.fixture
def manifest() -> dict[str, Any]:
    return {"identity": IDENTITY, "packages": {"numpy": "2"}}


@pytest.fixture
def sample() -> Callable[[int], Arrays]:
    return arrays_of


@pytest.fixture
def write_store(manifest: dict[str, Any]) -> Callable[..., Path]:
    """Write samples 0, 1, 2... under the given keys, and finish the store."""

    def write(folder: Path, keys: Iterable[str], expected: int | None = None, **writer_options: Any) -> Path:
        with open_store_for_writing(folder, manifest) as session:
            n_written = len(session.done)
            with StoreWriter(folder, session.run, 0, **writer_options) as writer:
                for index, key in enumerate(keys):
                    writer.write(key, arrays_of(index), {"index": index})
                    n_written += 1
            finish(session, n_written if expected is None else expected)
        return folder

    return write


@pytest.fixture
def flip() -> Callable[[Path, int, int], None]:
    """Flip bits of one byte of a file, in place; again flips them back."""

    def flip_bits(path: Path, position: int, bits: int) -> None:
        with path.open("r+b", buffering=0) as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ bits]))

    return flip_bits
