import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mapstack.codecs import CODECS, Encoding
from mapstack.errors import InputError, StoreError
from mapstack.store import Store, StoreWriter, open_store_for_writing
from tests.codecs.decoding import restore

STEM = "part-0001-0000-0000"


def test_a_record_comes_back_as_it_was_written(tmp_path: Path, manifest):
    folder = tmp_path / "store"
    arrays = {
        "stack": np.arange(24, dtype=np.float16).reshape(2, 3, 4),
        "scores": np.array([[1.5, -2.5]], np.float64),
        "mask": np.array([True, False]),
        "rows": np.array([[-1], [2]], np.int8),
        "empty": np.zeros((0, 3), np.float32),
        "number": np.array(7, np.float32),
    }
    info = {"size": [224, 200], "logit": 0.1, "shard": "s-é.tar", "nested": {"a": None, "b": [True]}}
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        writer.write("k", arrays, info)
    record = Store(folder).read("k", check=True)
    assert (record.key, record.info) == ("k", info)
    assert record.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert record.arrays[name].dtype == array.dtype
        assert record.arrays[name].shape == array.shape
        assert (record.arrays[name] == array).all()
        assert record.arrays[name].flags.aligned


def test_an_encoded_stack_goes_through_the_store(tmp_path: Path, manifest):
    folder = tmp_path / "store"
    stack = torch.from_numpy((np.random.default_rng(0).standard_normal((3, 8, 8)) * 1e-9).astype(np.float32))
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        for codec in CODECS:
            writer.write(codec, Encoding(codec).encode(stack), {})
    for record in Store(folder):
        assert (restore(record.arrays) == restore(Encoding(record.key).encode(stack))).all()


def test_keys_and_records_keep_the_order_of_the_file(tmp_path: Path, write_store):
    keys = ["z", "a", "M", "1.2", "b"]
    store = Store(write_store(tmp_path / "store", keys, max_part_bytes=6000))
    assert store.keys() == keys
    assert [record.key for record in store] == keys
    assert [record.info["index"] for record in store] == [0, 1, 2, 3, 4]
    assert len(store) == 5
    assert "M" in store
    assert "m" not in store
    assert store.basis is None


def test_one_record_is_read_without_the_rest_of_the_tar(tmp_path: Path, write_store, sample):
    folder = write_store(tmp_path / "store", ["a", "b", "c"])
    store = Store(folder)
    with (folder / f"{STEM}.tar").open("r+b") as tar:
        tar.write(bytes(3072))
        tar.seek(6144)
        tar.write(bytes(3072))
    assert (store.read("b", check=True).arrays["stack"] == sample(1)["stack"]).all()
    with pytest.raises(StoreError, match=f"is damaged in {STEM}: record 'a': its bytes do not match their checksum"):
        store.read("a", check=True)


@pytest.mark.fault("W11")
def test_w11_a_reader_during_the_run_sees_committed_records_only(tmp_path: Path, manifest, sample, figure):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest) as session:
        assert Store(folder).keys() == []
        with StoreWriter(folder, session.run, 0) as writer:
            writer.write("a", sample(0), {})
            assert Store(folder).keys() == []
            writer.commit()
            during = Store(folder)
            writer.write("b", sample(1), {})
            assert during.keys() == Store(folder).keys() == ["a"]
            with (folder / f"{STEM}.jsonl").open("ab") as journal:
                journal.write(b'{"key":"b","name":"b","off')  # a line that is being written
            assert Store(folder).keys() == ["a"]
            os.truncate(folder / f"{STEM}.jsonl", (folder / f"{STEM}.jsonl").stat().st_size - 26)
        assert (during.read("a").arrays["stack"] == sample(0)["stack"]).all()  # the tar has its final name by now
    assert Store(folder).keys() == ["a", "b"]
    figure("7 looks while two records are written: committed ones only")


def test_a_tar_renamed_between_two_looks_is_found(tmp_path: Path, manifest, sample, monkeypatch):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        writer.write("a", sample(0), {})
        writer.commit()
        store = Store(folder)
        original = os.open

        def rename_after_first_look(path, flags, *mode):
            if str(path).endswith(".tar") and not Path(path).exists():
                os.rename(f"{path}.partial", path)
                raise FileNotFoundError(path)
            return original(path, flags, *mode)

        monkeypatch.setattr(os, "open", rename_after_first_look)
        assert store.read("a").key == "a"
        os.rename(folder / f"{STEM}.tar", folder / f"{STEM}.tar.partial")


def test_a_store_can_be_handed_to_another_process(tmp_path: Path, write_store, sample):
    store = pickle.loads(pickle.dumps(Store(write_store(tmp_path / "store", ["a"]))))
    assert (store.read("a").arrays["stack"] == sample(0)["stack"]).all()


def test_an_unknown_key_is_refused(tmp_path: Path, write_store):
    store = Store(write_store(tmp_path / "store", ["a"]))
    with pytest.raises(InputError, match=r"key 'b' is not in stack store '.*' \(1 samples\)"):
        store.read("b")


def test_a_folder_without_manifest_is_no_store(tmp_path: Path):
    with pytest.raises(StoreError, match="is no stack store; a store has a manifest.json"):
        Store(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="is not the manifest of a stack store"):
        Store(tmp_path)


def test_an_edited_manifest_is_refused(tmp_path: Path, write_store):
    path = write_store(tmp_path / "store", ["a"]) / "manifest.json"
    path.write_text(path.read_text().replace('"n_steps": 20', '"n_steps": 21'))
    with pytest.raises(StoreError, match="was changed after it was written"):
        Store(path.parent)


def test_a_flip_that_is_not_checked_for_is_an_error_or_another_number_never_a_crash(tmp_path: Path, write_store, flip):
    folder = write_store(tmp_path / "store", ["a"])
    tar = folder / f"{STEM}.tar"
    store = Store(folder)
    n_refused = 0
    for position in range(3072):
        flip(tar, position, 1 << position % 8)
        try:
            store.read("a")
        except StoreError:
            n_refused += 1
        with pytest.raises(StoreError, match="do not match their checksum"):
            store.read("a", check=True)
        flip(tar, position, 1 << position % 8)
    assert n_refused > 100


def test_a_basis_that_is_damaged_or_gone_is_refused(tmp_path: Path, manifest):
    open_store_for_writing(tmp_path, manifest, basis=np.eye(3)).close()
    path = tmp_path / "basis.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="is damaged; the stacks mean nothing without their basis"):
        Store(tmp_path).basis  # noqa: B018
    path.unlink()
    with pytest.raises(StoreError, match="is missing; the stacks mean nothing"):
        Store(tmp_path).basis  # noqa: B018
