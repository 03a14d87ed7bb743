import errno
import hashlib
import io
import json
import os
import stat
import tarfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import webdataset

from mapstack.errors import InputError, StoreDiskError, StoreError
from mapstack.store import (
    Store,
    StoreWriter,
    check_space,
    finish,
    open_store_for_writing,
    record_failure,
    verify,
)
from mapstack.store.records import pack

KEYS = ["b_2", "a-1", "1.2.840", "x/y", "long" * 30]
NAMES = ["b_2", "a-1", "1%2E2%2E840", "x%2Fy", "long" * 30]


def test_the_tar_is_read_by_tarfile_alone(tmp_path: Path, write_store, sample):
    folder = write_store(tmp_path / "store", KEYS)
    with tarfile.open(folder / "part-0001-0000-0000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            f"{name}.{suffix}" for name in NAMES for suffix in ("embedding.npy", "stack.npy", "json")
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        for index, key in enumerate(KEYS):
            stack = np.load(io.BytesIO(tar.extractfile(members[3 * index + 1]).read()), allow_pickle=False)
            assert stack.dtype == np.float16
            assert (stack == sample(index)["stack"]).all()
            info = json.load(tar.extractfile(members[3 * index + 2]))
            assert info == {"key": key, "index": index}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the tar open
def test_the_tar_is_read_by_webdataset_alone(tmp_path: Path, write_store, sample):
    folder = write_store(tmp_path / "store", KEYS)
    samples = list(webdataset.WebDataset(str(folder / "part-0001-0000-0000.tar"), shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == NAMES
    for index, s in enumerate(samples):
        assert s.keys() >= {"stack.npy", "embedding.npy", "json"}
        assert s["json"]["key"] == KEYS[index]
        assert (s["stack.npy"] == sample(index)["stack"]).all()
        assert (s["embedding.npy"] == sample(index)["embedding"]).all()


def test_each_journal_line_names_the_bytes_of_its_sample(tmp_path: Path, write_store, sample):
    folder = write_store(tmp_path / "store", KEYS)
    content = (folder / "part-0001-0000-0000.tar").read_bytes()
    position = 0
    for index, line in enumerate((folder / "part-0001-0000-0000.jsonl").read_text().splitlines()):
        entry = json.loads(line)
        assert (entry["key"], entry["name"], entry["offset"]) == (KEYS[index], NAMES[index], position)
        record = content[entry["offset"] : entry["offset"] + entry["size"]]
        assert entry["sha256"] == hashlib.sha256(record).hexdigest()
        offset, size = entry["members"]["stack.npy"]
        assert record[offset : offset + size].endswith(sample(index)["stack"].tobytes())
        assert record[offset : offset + 6] == b"\x93NUMPY"
        body, crc = line[: -len(',"crc32":"01234567"}')] + "}", line[-10:-2]
        assert int(crc, 16) == zlib.crc32(body.encode())
        position += entry["size"]
    assert len(content) % 10240 == 0
    assert not any(content[position:])
    assert len(content) - position >= 1024


def test_the_same_records_give_the_same_bytes(tmp_path: Path, write_store, monkeypatch):
    first = write_store(tmp_path / "first", KEYS)
    monkeypatch.setattr("time.time", lambda: 2e9)  # W7: the clock is decades off
    second = write_store(tmp_path / "second", KEYS)
    for name in ("part-0001-0000-0000.tar", "part-0001-0000-0000.jsonl", "manifest.json", "errors.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_order_of_names_and_the_layout_of_arrays_do_not_change_the_bytes(tmp_path: Path, manifest):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    variants = [
        {"a": array, "b": array},
        {"b": array, "a": np.asfortranarray(array)},
        {"a": array.astype(">f4"), "b": np.repeat(array, 2, axis=1)[:, ::2]},
    ]
    contents = set()
    for index, arrays in enumerate(variants):
        folder = tmp_path / str(index)
        with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
            writer.write("k", arrays, {})
        contents.add((folder / "part-0001-0000-0000.tar").read_bytes())
    assert len(contents) == 1


def test_bytes_are_durable_before_the_journal_says_so(tmp_path: Path, manifest, sample, monkeypatch):
    folder = tmp_path / "store"
    events: list[tuple[str, str]] = []
    write, fsync, rename = os.write, os.fsync, os.rename

    def name_of(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def spy_write(fd: int, data: bytes) -> int:
        events.append(("write", name_of(fd)))
        return write(fd, data)

    def spy_fsync(fd: int) -> None:
        events.append(("fsync", name_of(fd)))
        fsync(fd)

    def spy_advice(fd: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        events.append(("forget", name_of(fd)))
        raise OSError(errno.ENOSYS, "a file system that takes no advice")

    def spy_rename(source: Path, target: Path) -> None:
        events.append(("rename", target.name))
        rename(source, target)

    with open_store_for_writing(folder, manifest) as session:
        writer = StoreWriter(folder, session.run, 0)
        writer.write("first", sample(0), {})
        spies = {"write": spy_write, "fsync": spy_fsync, "rename": spy_rename, "posix_fadvise": spy_advice}
        for name, spy in spies.items():
            monkeypatch.setattr(os, name, spy, raising=False)
        writer.write("second", sample(1), {})
        writer.commit()
        writer.close()
    tar, journal = "part-0001-0000-0000.tar.partial", "part-0001-0000-0000.jsonl"
    in_order = [event for index, event in enumerate(events) if index == 0 or events[index - 1] != event]
    assert in_order == [
        ("write", tar),
        ("fsync", tar),
        ("forget", tar),
        ("write", journal),
        ("fsync", journal),
        ("write", tar),
        ("fsync", tar),
        ("rename", "part-0001-0000-0000.tar"),
        ("fsync", "store"),
    ]


def test_a_system_without_advice_writes_the_same(tmp_path: Path, write_store, monkeypatch):
    with_advice = write_store(tmp_path / "with", ["a", "b"])
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    without = write_store(tmp_path / "without", ["a", "b"])
    assert [path.read_bytes() for path in sorted(with_advice.glob("part*"))] == [
        path.read_bytes() for path in sorted(without.glob("part*"))
    ]


def test_a_part_is_sealed_at_its_size_and_the_next_begins(tmp_path: Path, write_store):
    folder = write_store(tmp_path / "store", [f"k{index}" for index in range(5)], max_part_bytes=6000)
    assert sorted(path.name for path in folder.glob("*.tar*")) == [f"part-0001-0000-000{n}.tar" for n in range(3)]
    assert Store(folder).keys() == ["k0", "k1", "k2", "k3", "k4"]
    assert verify(folder).is_sound


def test_ranks_write_side_by_side(tmp_path: Path, manifest, sample):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest, expected=4) as session:
        writers = [StoreWriter(folder, session.run, rank) for rank in (0, 1)]
        for index in range(4):
            writers[index % 2].write(f"k{index}", sample(index), {})
        for writer in writers:
            writer.close()
        totals = finish(session, 4)
    assert (totals.done, totals.failed, totals.expected) == (4, 0, 4)
    assert sorted(path.name for path in folder.glob("*.tar")) == ["part-0001-0000-0000.tar", "part-0001-0001-0000.tar"]
    assert verify(folder).is_sound


def test_a_rank_without_work_leaves_no_file(tmp_path: Path, write_store):
    folder = write_store(tmp_path / "store", [])
    assert sorted(path.name for path in folder.iterdir()) == ["errors.jsonl", "manifest.json", "store.lock"]


def test_write_says_how_many_bytes_it_took(tmp_path: Path, manifest, sample):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        n_bytes = writer.write("a", sample(0), {}) + writer.write("b", sample(1), {})
        writer.commit()
        assert (folder / "part-0001-0000-0000.tar.partial").stat().st_size == n_bytes


@pytest.mark.fault("R10")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_r10_nan_and_infinity_are_never_stored(tmp_path: Path, manifest, sample, dtype, bad, figure):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        writer.write("good", sample(0), {})
        with pytest.raises(InputError, match=r"array 'stack' of shape \(2,\) holds NaN or infinity"):
            writer.write("bad", {"stack": np.array([1, bad], dtype)}, {})
        with pytest.raises(InputError, match="cannot be written as JSON"):
            writer.write("bad", {}, {"logit": float(bad)})
        writer.write("bad", sample(1), {})  # a refused sample leaves no trace, its key included
    assert Store(folder).keys() == ["good", "bad"]
    assert verify(folder).damaged == ()
    figure(f"2 of 2 samples with {bad} in {np.dtype(dtype).name} or in the info refused")


def test_of_all_halves_those_that_are_not_finite_are_refused():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    pack("key", {"a": halves[np.isfinite(halves)], "b": np.zeros((0, 3), np.float16)}, {})
    for bad in halves[~np.isfinite(halves)][::64]:
        with pytest.raises(InputError, match="holds NaN or infinity"):
            pack("key", {"a": np.array([0, bad, -1], np.float16)}, {})


@pytest.mark.parametrize(
    ("arrays", "info", "message"),
    [
        ({"a.b": np.zeros(1)}, {}, "array name 'a.b' is refused"),
        ({"a": np.array([None])}, {}, "array 'a' has dtype object; a store holds booleans"),
        ({"a": np.zeros(1, complex)}, {}, "array 'a' has dtype complex128"),
        ({}, {"key": "other"}, "the info has a field 'key'"),
        ({}, {"x": object()}, "the info of a sample cannot be written as JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, manifest, arrays, info, message):
    folder = tmp_path / "store"
    with (
        open_store_for_writing(folder, manifest) as session,
        StoreWriter(folder, session.run, 0) as writer,
        pytest.raises(InputError, match=message),
    ):
        writer.write("k", arrays, info)


def test_a_key_is_stored_once(tmp_path: Path, manifest, sample):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        writer.write("k", sample(0), {})
        with pytest.raises(InputError, match="key 'k' comes a second time"):
            writer.write("k", sample(0), {})


def write_until_it_fails(writer: StoreWriter, sample, committed: list[str]) -> None:
    for index in range(4):
        writer.write(f"k{index}", sample(index), {})
        writer.commit()
        committed.append(f"k{index}")


@pytest.mark.fault("W3")
def test_w3_a_full_disk_leaves_whole_records_only(tmp_path: Path, manifest, sample, monkeypatch, figure):
    folder = tmp_path / "store"
    write = os.write
    room = 0

    def limited(fd: int, data: memoryview) -> int:
        nonlocal room
        if "part-" not in os.readlink(f"/proc/self/fd/{fd}"):
            return write(fd, data)
        if room == 0:
            raise OSError(28, "No space left on device")
        n_written = write(fd, data[: min(room, 100)])  # also a disk that takes less than it is given
        room -= n_written
        return n_written

    monkeypatch.setattr(os, "write", limited)
    for limit in range(0, 9000, 777):
        room = limit
        committed: list[str] = []
        with open_store_for_writing(folder, manifest, overwrite=True) as session:
            writer = StoreWriter(folder, session.run, 0)
            with pytest.raises(StoreDiskError, match="No space left on device.*every committed record is kept"):
                write_until_it_fails(writer, sample, committed)
            with pytest.raises(StoreError, match="is closed or has failed"):
                writer.write("later", sample(9), {})
            writer.close()
        store = Store(folder)
        assert store.keys() == committed
        assert all((record.arrays["stack"] == sample(n)["stack"]).all() for n, record in enumerate(store))
        room = 10**6
        with open_store_for_writing(folder, manifest) as session:
            assert session.done == set(committed)
        assert verify(folder).damaged == ()
    figure("disk that takes 100 bytes at a time, full at 12 sizes: whole records only")


def test_an_exception_in_the_block_keeps_what_was_written(tmp_path: Path, manifest, sample):
    folder = tmp_path / "store"

    def job(run: int) -> None:
        with StoreWriter(folder, run, 0) as writer:
            writer.write("k", sample(0), {})
            raise RuntimeError("elsewhere")

    with open_store_for_writing(folder, manifest) as session, pytest.raises(RuntimeError, match="elsewhere"):
        job(session.run)
    assert Store(folder).keys() == ["k"]
    assert verify(folder).unsealed == ()


def test_only_the_group_may_read_patients_data(tmp_path: Path, write_store):
    before = os.umask(0)
    try:
        folder = write_store(tmp_path / "store", ["a"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o770
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_failures_of_all_ranks_come_together(tmp_path: Path, manifest, sample):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest) as session:
        record_failure(folder, "bad", "s-0.tar", "the picture is truncated")
        with (folder / "errors.jsonl").open("ab") as file:
            file.write(b'{"key":"torn by a rank that was ki')
        record_failure(folder, "worse", "s-1.tar", "the picture is empty")
        record_failure(folder, "bad", "s-0.tar", "the picture is truncated again")
        record_failure(folder, "mended", "s-0.tar", "the picture is truncated")
        with StoreWriter(folder, session.run, 0) as writer:
            writer.write("mended", sample(0), {})
        totals = finish(session, 3)
    assert (totals.done, totals.failed) == (1, 2)
    assert Store(folder).manifest["complete"] is True
    assert [(f.key, f.shard, f.reason) for f in Store(folder).failures()] == [
        ("bad", "s-0.tar", "the picture is truncated again"),
        ("worse", "s-1.tar", "the picture is empty"),
    ]


def test_a_failure_needs_a_store(tmp_path: Path):
    with pytest.raises(StoreError, match=r"has no errors.jsonl"):
        record_failure(tmp_path, "k", "s", "r")


def test_the_account_is_complete_only_when_it_balances(tmp_path: Path, write_store):
    folder = write_store(tmp_path / "store", ["a", "b"], expected=3)
    manifest = Store(folder).manifest
    assert manifest["complete"] is False
    assert manifest["totals"] == {"expected": 3, "done": 2, "failed": 0, "n_bytes": 2 * 3 * 1024}


def test_an_unsealed_part_keeps_the_account_open(tmp_path: Path, manifest, sample):
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest) as session:
        writer = StoreWriter(folder, session.run, 0)
        writer.write("k", sample(0), {})
        writer.commit()
        assert finish(session, 1).done == 1
        assert Store(folder).manifest["complete"] is False
        writer.close()


def test_too_little_room_is_said_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_space(tmp_path / "not" / "yet", 1000)
    with pytest.raises(StoreDiskError, match=r"needs 1000000.0 TB and its disk has [\d.]+ [GT]B free") as caught:
        check_space(tmp_path / "not" / "yet", 10**18)
    assert isinstance(caught.value, OSError)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=999))
    with pytest.raises(StoreDiskError, match=r"needs 23.5 kB and its disk has 999 bytes free"):
        check_space(tmp_path, 23_456)
    assert not (tmp_path / "not").exists()
