import gzip
import hashlib
import io
import json
import operator
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch.utils.data
from hypothesis import given
from hypothesis import strategies as st

from mapstack.errors import ImageError, ShardError
from tests.train_like.tars import tar_bytes
from train_like import source
from train_like.index import Entry, Member, index_shards
from train_like.source import (
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
    Failure,
    IndexedSource,
    Sample,
    check_sample,
    divide,
    parse_json,
    read_entry,
    sample_pipeline,
    share,
)


def write_shards(folder: Path, sizes: Sequence[int]) -> tuple[Entry, ...]:
    """One shard for each size, with samples 0-0, 0-1, ..., whose image is their key."""
    for i, n in enumerate(sizes):
        samples = [(f"{i}-{j}.{suffix}", data) for j in range(n) for suffix, data in pair(f"{i}-{j}")]
        (folder / f"{i}.tar").write_bytes(tar_bytes(samples))
    return index_shards([str(folder / f"{i}.tar") for i in range(len(sizes))]).entries


def pair(key: str) -> list[tuple[str, bytes]]:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return [("png", key.encode()), ("json", json.dumps({"sha256": digest, "labels": ["Edema"]}).encode())]


def read(entries: Sequence[Entry]) -> list[Sample]:
    return list(IndexedSource(entries, rank=0, world_size=1))


def load(entries: Sequence[Entry], prepare: Any = operator.itemgetter("__key__"), **settings: Any) -> Any:
    defaults = {"collate": list, "batch_size": 4, "num_workers": 0, "timeout_s": 60, "rank": 0, "world_size": 1}
    return sample_pipeline(entries, prepare=prepare, **(defaults | settings))


def entry(shard: str, key: str) -> Entry:
    return Entry(key, shard, (Member("png", 512, 1),))


@given(n=st.integers(0, 10_000), n_parts=st.integers(1, 64))
def test_division_is_contiguous_whole_and_balanced(n: int, n_parts: int) -> None:
    ranges = [divide(n, part, n_parts) for part in range(n_parts)]
    assert [i for r in ranges for i in r] == list(range(n))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(sizes=st.lists(st.integers(1, 9), max_size=5), world_size=st.integers(1, 9), n_workers=st.integers(1, 4))
def test_every_sample_has_one_reader(sizes: list[int], world_size: int, n_workers: int) -> None:
    """Shards 0, 2, ... can be seeked, 1, 3, ... are packed."""
    suffix = ["tar", "tar.gz"]
    entries = [entry(f"{i}.{suffix[i % 2]}", f"{i}-{j}") for i, n in enumerate(sizes) for j in range(n)]
    shares = [share(share(entries, r, world_size), w, n_workers) for r in range(world_size) for w in range(n_workers)]
    assert sorted(e.key for part in shares for e in part) == sorted(e.key for e in entries)
    for shard in {e.shard for e in entries if e.shard.endswith("gz")}:
        assert sum(any(e.shard == shard for e in part) for part in shares) == 1


def test_one_shard_is_balanced_over_eight_ranks() -> None:
    entries = [entry("0.tar", str(i)) for i in range(42)]
    assert [len(share(entries, rank, 8)) for rank in range(8)] == [5, 5, 5, 6, 5, 5, 5, 6]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize(("world_size", "n_workers"), [(1, 1), (1, 3), (2, 2), (5, 1), (16, 2)])
def test_every_sample_comes_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, n_workers: int, batch_size: int
) -> None:
    entries = write_shards(tmp_path, [5, 1, 7])
    seen: list[str] = []
    for rank in range(world_size):
        for worker in range(n_workers):
            info = SimpleNamespace(id=worker, num_workers=n_workers)
            monkeypatch.setattr(source, "get_worker_info", lambda info=info: info)
            for batch in load(entries, rank=rank, world_size=world_size, batch_size=batch_size):
                assert 1 <= len(batch) <= batch_size
                seen += batch
    assert Counter(seen) == Counter(e.key for e in entries)


def test_the_environment_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = write_shards(tmp_path, [6])
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "WORKER": "1", "NUM_WORKERS": "2"}.items():
        monkeypatch.setenv(name, value)
    assert len(read(entries)) == 6


def test_sample_is_what_webdataset_yields(tmp_path: Path) -> None:
    entries = write_shards(tmp_path, [2])
    first = read(entries)[0]
    assert first == {"__key__": "0-0", "__url__": entries[0].shard} | dict(pair("0-0"))


@pytest.mark.parametrize("packed", [False, True])
def test_each_shard_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    write_shards(tmp_path, [4, 4])
    shards = [tmp_path / f"{i}.tar" for i in range(2)]
    if packed:
        for i, shard in enumerate(shards):
            shards[i] = shard.with_suffix(".tar.gz")
            shards[i].write_bytes(gzip.compress(shard.read_bytes()))
    entries = index_shards([str(shard) for shard in shards]).entries
    opened: list[str] = []

    class Counting(source.ShardReader):
        def __init__(self, shard: str) -> None:
            opened.append(shard)
            super().__init__(shard)

    monkeypatch.setattr(source, "ShardReader", Counting)
    samples = read(entries[1:-1])
    assert [sample["png"].decode() for sample in samples] == ["0-1", "0-2", "0-3", "1-0", "1-1", "1-2"]
    assert opened == [str(shard) for shard in shards]


def test_reading_errors_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    entries = write_shards(tmp_path, [2, 3, 2])
    (tmp_path / "0.tar").unlink()
    os.truncate(tmp_path / "1.tar", entries[3].members[0].offset + 2)
    samples = read(entries)
    errors = {sample["__key__"]: sample["__error__"] for sample in samples if "__error__" in sample}
    assert list(errors) == ["0-0", "0-1", "1-1", "1-2"]
    assert errors["0-0"] == "the shard cannot be opened (No such file or directory); check its path and rights."
    assert "shorter than it was when it was indexed" in errors["1-1"]
    assert [sample["__url__"] for sample in samples] == [e.shard for e in entries]


def test_broken_stream_yields_no_other_samples_bytes(tmp_path: Path) -> None:
    write_shards(tmp_path, [6])
    shard = tmp_path / "s.tar.gz"
    shard.write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    entries = index_shards([str(shard)]).entries
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    shard.write_bytes(bytes(damaged))
    samples = [check_sample(sample) for sample in read(entries)]
    assert [sample["__key__"] for sample in samples] == [e.key for e in entries]
    assert any("__error__" in sample for sample in samples)
    assert all(sample["png"].decode() == sample["__key__"] for sample in samples if "__error__" not in sample)


def test_stream_is_not_read_on_after_an_error(tmp_path: Path) -> None:
    """Its place is unknown then: what comes next could be the bytes of another sample."""

    class Faltering(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            if self.tell() == 512:
                raise OSError(5, "Input/output error")
            return data

    shard = tmp_path / "s.tar.gz"
    shard.write_bytes(b"")
    with source.ShardReader(str(shard)) as reader:
        reader._file = Faltering(bytes(2048))
        with pytest.raises(ShardError, match=r"cannot be read from byte 0 \(Input/output error\)"):
            reader.read(0, 512)
        with pytest.raises(ShardError, match="behind an earlier error"):
            reader.read(512, 512)


def test_one_sample_is_read_alone(tmp_path: Path) -> None:
    entries = write_shards(tmp_path, [3])
    assert [read_entry(e) for e in reversed(entries)] == read(entries)[::-1]
    (tmp_path / "0.tar").unlink()
    assert "cannot be opened" in read_entry(entries[1])["__error__"]


def test_json_becomes_a_dict_and_vouches_for_the_image() -> None:
    """The checksum in the json finds what the tar's own cannot."""
    sample = {"__key__": "k", "__url__": "s.tar"} | dict(pair("k"))
    assert check_sample(sample)["json"]["labels"] == ["Edema"]
    damaged = check_sample(sample | {"png": b"j"})
    assert set(damaged) == {"__key__", "__url__", "__error__"}
    assert damaged["__error__"].startswith("its image has the sha256 189f40034be7...")


def test_sample_without_json_passes() -> None:
    sample = {"__key__": "k", "__url__": "s.tar", "png": b"x"}
    assert check_sample(sample) == sample


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[]", "is a list, but must be an object"),
        (b"{", "does not parse"),
        (b'{"a": NaN}', "does not parse"),
        (b'{"a": -Infinity}', "does not parse"),
        (b"\xff\xfe\xfd", "does not parse"),
        (b'{"report": "Jane Doe" "x"}', "does not parse"),
        (b'{"a": ' + b"9" * 5000 + b"}", "does not parse"),
        (b'{"a":' * 100_000, "does not parse"),
        (b'{"a":' + b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH + b"}", "deeper than 32 levels"),
        (b'{"a":"' + b"x" * MAX_JSON_BYTES + b'"}', "is the most that is read"),
        (b'{"sha256": null}', "contradicts"),
    ],
)
def test_bad_json_is_named_and_never_quoted(data: bytes, words: str) -> None:
    checked = check_sample({"__key__": "k", "__url__": "s.tar", "png": b"x", "json": data})
    assert words in checked["__error__"]
    assert "Jane" not in checked["__error__"]


def test_json_of_the_deepest_kind_is_read() -> None:
    depth = MAX_JSON_DEPTH - 1
    assert parse_json(b'{"a":' + b"[" * depth + b"]" * depth + b"}")
    with pytest.raises(ShardError):
        parse_json(b'{"a":' + b"[" * (depth + 1) + b"]" * (depth + 1) + b"}")


def moody(sample: Sample) -> str | None:
    """Prepares even samples and fails in three ways on the others."""
    kind = int(sample["__key__"].partition("-")[2])
    if kind == 1:
        raise ImageError("picture has no rows; store another.")
    if kind == 3:
        raise ValueError("could not read 'Jane Doe'")
    return None if kind == 5 else f"done {kind}"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_become_failures_among_the_others(tmp_path: Path, num_workers: int) -> None:
    entries = write_shards(tmp_path, [7])
    items = [item for batch in load(entries, moody, num_workers=num_workers) for item in batch]
    shard = entries[0].shard
    assert items == [
        "done 0",
        Failure("0-1", shard, "picture has no rows; store another."),
        "done 2",
        Failure("0-3", shard, "its preparation failed with ValueError; check the sample."),
        "done 4",
        Failure("0-5", shard, "its preparation answered None; check the sample."),
        "done 6",
    ]


def test_failures_of_reading_and_checking_reach_the_collate(tmp_path: Path) -> None:
    entries = write_shards(tmp_path, [2, 1])
    (tmp_path / "1.tar").unlink()
    with open(tmp_path / "0.tar", "r+b") as tar:
        tar.seek(entries[0].members[0].offset)
        tar.write(b"9")
    (batch,) = load(entries)
    assert [item.key if isinstance(item, Failure) else None for item in batch] == ["0-0", None, "1-0"]


@pytest.mark.fault("R7")
def test_bad_samples_cost_little(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """At most 5 ms each; the stock handler sleeps for half a second."""
    entries = write_shards(tmp_path, [200])
    start = time.perf_counter()
    items = [item for batch in load(entries, prepare=operator.itemgetter("absent")) for item in batch]
    each_ms = (time.perf_counter() - start) / 200 * 1000
    assert each_ms < 10 * 5  # ten times the limit: machines differ
    assert all("KeyError" in item.reason for item in items)
    assert len(items) == 200
    figure(f"{each_ms:.2f} ms for each sample whose preparation fails, reading included")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_arrive_as_collate_made_them(tmp_path: Path, num_workers: int) -> None:
    (batch,) = load(write_shards(tmp_path, [2]), prepare=len, collate=numpy.array, num_workers=num_workers)
    assert isinstance(batch, numpy.ndarray)  # DataLoader by itself would have made a tensor of it
    assert batch.tolist() == [4, 4]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_every_sample_comes_once_over_two_ranks(tmp_path: Path, num_workers: int, batch_size: int) -> None:
    entries = write_shards(tmp_path, [3, 8, 10])
    seen: list[str] = []
    for rank in range(2):
        for batch in load(entries, rank=rank, world_size=2, batch_size=batch_size, num_workers=num_workers):
            assert len(batch) <= batch_size
            seen += batch
    assert Counter(seen) == Counter(e.key for e in entries)


def test_rank_without_work_yields_nothing(tmp_path: Path) -> None:
    loader = load(write_shards(tmp_path, [1]), rank=0, world_size=2, num_workers=2)
    # Lightning leaves out the loop of a rank whose loader states a length of zero, and its barrier with it.
    with pytest.raises(TypeError, match="no len"):
        len(loader)
    assert list(loader) == []


@pytest.mark.fault("R14")
def test_hanging_reader_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    """The shard has become a pipe that nobody writes to."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how long torch waits for its end
    entries = write_shards(tmp_path, [2])
    list(load(entries, num_workers=1))  # the clean process that workers are forked from has started
    (tmp_path / "0.tar").unlink()
    os.mkfifo(tmp_path / "0.tar")
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match="timed out after 1 seconds"):
        list(load(entries, num_workers=1, timeout_s=1))
    seconds = time.perf_counter() - start
    assert seconds < 10 * (2 * 1)  # ten times the limit: machines differ
    figure(f"a loader that hangs is noticed after {seconds:.1f} s at a time limit of 1 s")
