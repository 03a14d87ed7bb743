"""Stores of every version of the format ever written are read, and gone on with.

`data/version_1` was written by mapstack 0.1.0 (commit 1ec0251), before there were compressed members and factors:
stacks of two random pictures by `tests.toys.CurvedModel`, and in `expected.npz` the maps of three directions as that
version projected them from its stacks in memory.

`data/version_2` was written by mapstack 0.1.0 in the same way, with `tests.store.few_features.FewFeatures`; its
`expected.npz` also holds the maps as that version projected them from what it had written.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mapstack.codecs import Encoding
from mapstack.errors import StoreError
from mapstack.store import Store, StoreWriter, finish, open_store_for_writing, verify
from mapstack.store.manifest import FORMAT_VERSION
from mapstack.stored_stack import read_basis, read_stack

DATA = Path(__file__).parent / "data"
STORES = {  # with the error of their codec, in shares of the largest value of the maps
    "version_1/gradient-axes-float32": 1e-6,
    "version_1/gradient-axes-int8": 2e-2,
    "version_1/integrated_gradients-prompts-float16": 1e-3,
    "version_1/occlusion": 1e-6,
    "version_2/gradient-axes-lowrank": 2e-2,
    "version_2/integrated_gradients-pictures-lowrank-zstd": 2e-2,
    "version_2/integrated_gradients-prompts-float16-zstd": 1e-3,
    "version_2/occlusion-zstd": 1e-6,
}


@dataclass(frozen=True)
class OldStore:
    """A copy of a store, and the maps that are expected of it."""

    folder: Path
    name: str

    @property
    def version(self) -> int:
        return int(self.name.partition("/")[0].removeprefix("version_"))

    def expected(self, kind: str = "") -> np.ndarray:
        """Of two samples along the directions: from memory, or with `-as-written` from what was written."""
        version, _, name = self.name.partition("/")
        return np.load(DATA / version / "expected.npz")[name + kind]

    def projected(self) -> np.ndarray:
        directions = torch.from_numpy(np.load(DATA / f"version_{self.version}" / "expected.npz")["directions"])
        store = Store(self.folder)
        basis = read_basis(store.manifest, store.basis)
        stacks = [read_stack(record, store.manifest, basis, normalize=True, map_size=8) for record in store]
        return np.concatenate([stack.project(directions).numpy() for stack in stacks])


@pytest.fixture(params=STORES)
def old_store(request: pytest.FixtureRequest, tmp_path: Path) -> OldStore:
    folder = Path(shutil.copytree(DATA / request.param, tmp_path / Path(request.param).name))
    return OldStore(folder, request.param)


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_a_store_gives_the_maps_that_it_was_written_for(old_store: OldStore):
    assert Store(old_store.folder).keys() == ["plain-1", "1.2.840"]
    assert largest_error(old_store.projected(), old_store.expected()) <= STORES[old_store.name]


@pytest.mark.parametrize("old_store", [name for name in STORES if "version_1" not in name], indirect=True)
def test_a_store_is_read_as_it_was_when_it_was_written(old_store: OldStore):
    """Whatever its codec has lost."""
    assert largest_error(old_store.projected(), old_store.expected("-as-written")) <= 1e-6


def test_version_2_has_what_version_1_had_not():
    stores = [Store(DATA / name) for name in STORES if name.startswith("version_2")]
    identities = [store.manifest["identity"] for store in stores]
    assert {identity["compress"] for identity in identities} == {"none", "zstd"}
    assert {identity["basis"] for identity in identities} == {"axes", "prompts", "pictures"}
    low_rank = [set(next(iter(store)).arrays) for store in stores if store.manifest["identity"]["codec"] == "lowrank"]
    assert low_rank == [{"embedding", "u", "v", "scale"}, {"embedding", "baseline_embedding", "stack", "scale"}]


def test_it_is_verified(old_store: OldStore):
    assert Store(old_store.folder).manifest["format_version"] == old_store.version
    assert verify(old_store.folder).is_sound


def test_it_is_gone_on_with_by_the_configuration_that_wrote_it(old_store: OldStore):
    folder = old_store.folder
    manifest = Store(folder).manifest
    identity = manifest["identity"]
    encoding = Encoding(identity["codec"], compress=identity["compress"])
    given = {**manifest, "identity": {**identity, **encoding.describe()}}
    with open_store_for_writing(folder, given, basis=Store(folder).basis) as session:
        assert session.done == {"plain-1", "1.2.840"}
        with StoreWriter(folder, session.run, 0, compress=identity["compress"]) as writer:
            writer.write("new", {"embedding": np.ones(6, np.float32)}, {})
        finish(session, 3)
    store = Store(folder)
    assert store.manifest["format_version"] == FORMAT_VERSION
    assert store.keys() == ["plain-1", "1.2.840", "new"]
    assert [record.arrays["embedding"].ndim for record in store] == [1] * 3
    assert verify(folder).is_sound


@pytest.mark.parametrize("old_store", [name for name in STORES if "version_1" in name], indirect=True)
def test_version_1_is_not_gone_on_with_by_another(old_store: OldStore):
    manifest = Store(old_store.folder).manifest
    given = {**manifest, "identity": {**manifest["identity"], "compress": "zstd"}}
    with pytest.raises(StoreError, match='was written with compress = "none", this run has "zstd"'):
        open_store_for_writing(old_store.folder, given, basis=Store(old_store.folder).basis)


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
