"""Stores of every version of the format ever written are read, and gone on with.

`data/version_1` was written by mapstack 0.1.0 (commit 1ec0251), before there were compressed members and factors:
stacks of two random pictures by `tests.toys.CurvedModel`, and in `expected.npz` the maps of three directions as that
version projected them from its stacks in memory.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mapstack.codecs import Encoding
from mapstack.errors import StoreError
from mapstack.store import Store, StoreWriter, finish, open_store_for_writing, verify
from mapstack.store.manifest import FORMAT_VERSION
from mapstack.stored_stack import read_basis, read_stack

VERSION_1 = Path(__file__).parent / "data" / "version_1"
STORES = {  # with the rounding of their codec, in shares of the largest value of the maps
    "gradient-axes-float32": 1e-6,
    "gradient-axes-int8": 2e-2,
    "integrated_gradients-prompts-float16": 1e-3,
    "occlusion": 1e-6,
}


@pytest.fixture(params=STORES)
def old_store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(VERSION_1 / request.param, tmp_path / request.param))


def projected(folder: Path) -> np.ndarray:
    expected = np.load(VERSION_1 / "expected.npz")
    store = Store(folder)
    basis = read_basis(store.manifest, store.basis)
    directions = torch.from_numpy(expected["directions"])
    stacks = [read_stack(record, store.manifest, basis, normalize=True, map_size=8) for record in store]
    return np.concatenate([stack.project(directions).numpy() for stack in stacks])


def test_version_1_gives_the_maps_that_it_was_written_for(old_store: Path):
    expected = np.load(VERSION_1 / "expected.npz")[old_store.name]
    assert Store(old_store).keys() == ["plain-1", "1.2.840"]
    found = projected(old_store)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= STORES[old_store.name] * np.abs(expected).max()


def test_version_1_is_verified(old_store: Path):
    assert verify(old_store).is_sound


def test_version_1_is_gone_on_with_by_the_configuration_that_wrote_it(old_store: Path):
    manifest = Store(old_store).manifest
    encoding = Encoding(manifest["identity"]["codec"])
    given = {**manifest, "identity": {**manifest["identity"], **encoding.describe()}}
    basis = Store(old_store).basis
    with open_store_for_writing(old_store, given, basis=basis) as session:
        assert session.done == {"plain-1", "1.2.840"}
        with StoreWriter(old_store, session.run, 0) as writer:
            writer.write("new", {"embedding": np.ones(6, np.float32)}, {})
        finish(session, 3)
    store = Store(old_store)
    assert store.manifest["format_version"] == FORMAT_VERSION
    assert store.keys() == ["plain-1", "1.2.840", "new"]
    assert [record.arrays["embedding"].shape for record in store] == [(6,)] * 3
    assert verify(old_store).is_sound


def test_version_1_is_not_gone_on_with_by_another(old_store: Path):
    manifest = Store(old_store).manifest
    given = {**manifest, "identity": {**manifest["identity"], "compress": "zstd"}}
    with pytest.raises(StoreError, match='was written with compress = "none", this run has "zstd"'):
        open_store_for_writing(old_store, given, basis=Store(old_store).basis)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, None, "2"])
def test_another_version_is_refused(tmp_path: Path, write_store, manifest, monkeypatch, version):
    with monkeypatch.context() as patch:
        patch.setattr("mapstack.store.manifest.FORMAT_VERSION", version)
        folder = tmp_path / "store"
        open_store_for_writing(folder, manifest).close()
    message = f"has format version {version}; this mapstack reads versions 1 and 2; use the mapstack that wrote it"
    for read in (Store, verify):
        with pytest.raises(StoreError, match=message):
            read(folder)
    with pytest.raises(StoreError, match=message):
        open_store_for_writing(folder, manifest)
