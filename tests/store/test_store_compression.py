"""Compressed members: what others unpack, what is refused, and that nothing else needs the library."""

import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard

from mapstack.errors import InputError, StoreError
from mapstack.store import Store, StoreWriter, open_store_for_writing, verify
from mapstack.store.compression import MAX_UNPACKED_BYTES, compress, decompress

CONTENT = np.random.default_rng(0).integers(0, 20, 10_000, np.uint8).tobytes()


def as_array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def write_one(folder: Path, manifest: dict, arrays: dict[str, np.ndarray], compress: str = "none") -> Path:
    with (
        open_store_for_writing(folder, manifest) as session,
        StoreWriter(folder, session.run, 0, compress=compress) as writer,
    ):
        writer.write("k", arrays, {"index": 1})
    return folder


def test_what_is_compressed_in_pieces_is_one_frame_that_states_its_size():
    packed = compress([CONTENT[:7], memoryview(CONTENT)[7:]])
    assert len(packed) < 0.7 * len(CONTENT)
    assert zstandard.decompress(packed) == CONTENT
    assert zstandard.get_frame_parameters(packed).content_size == len(CONTENT)
    assert zstandard.get_frame_parameters(packed).has_checksum
    assert decompress(as_array(packed)).tobytes() == CONTENT
    assert compress([CONTENT[:7], CONTENT[7:]]) == packed


def test_a_frame_that_is_cut_or_changed_or_followed_is_refused():
    packed = compress([CONTENT])
    for cut in range(len(packed)):
        with pytest.raises(ValueError, match="a compressed array"):
            decompress(as_array(packed[:cut]))
    n_refused = 0
    for position in range(0, len(packed), 7):
        flipped = bytearray(packed)
        flipped[position] ^= 16
        try:
            assert decompress(as_array(bytes(flipped))).tobytes() == CONTENT  # some bits of the header mean nothing
        except ValueError as error:
            n_refused += "a compressed array" in str(error)
    assert n_refused > 0.95 * len(packed) / 7
    for more in (b"\0", b"\0" * 512, packed):
        with pytest.raises(ValueError, match="a compressed array cannot be unpacked .*unused data"):
            decompress(as_array(packed + more))


def test_no_more_is_unpacked_than_an_array_may_have(monkeypatch):
    zeros = bytes(50_000_000)
    honest, silent = compress([zeros]), zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    monkeypatch.setattr("mapstack.store.compression.MAX_UNPACKED_BYTES", len(zeros) - 1)
    tracemalloc.start()
    for bomb in (honest, silent):
        with pytest.raises(ValueError, match="a compressed array states .* bytes; it has 1 to 49999999"):
            decompress(as_array(bomb))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    with pytest.raises(
        InputError, match="an array of 50000000 bytes is refused; a compressed one has at most 49999999"
    ):
        compress([zeros])


def test_a_frame_that_holds_more_than_it_states_is_refused():
    honest = bytearray(compress([bytes(100_000)]))
    position = honest.index((100_000).to_bytes(4, "little"))
    honest[position : position + 4] = (50_000).to_bytes(4, "little")
    with pytest.raises(ValueError, match="a compressed array cannot be unpacked"):
        decompress(as_array(bytes(honest)))
    assert MAX_UNPACKED_BYTES >= 512 * 224 * 224 * 4


def test_every_array_is_compressed_and_comes_back(tmp_path: Path, manifest, sample):
    arrays = {**sample(0), "empty": np.zeros((0, 3), np.float32), "number": np.array(7.0)}
    folder = write_one(tmp_path / "store", manifest, arrays, compress="zstd")
    with tarfile.open(next(folder.glob("*.tar"))) as tar:
        assert tar.getnames() == [*(f"k.{name}.npy.zst" for name in sorted(arrays)), "k.json"]
    record = Store(folder).read("k", check=True)
    assert record.info == {"index": 1}
    assert record.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (record.arrays[name] == array).all()
        assert record.arrays[name].shape == array.shape
        assert record.arrays[name].flags.writeable  # torch warns of others
    assert verify(folder).damaged == ()


def test_compressed_records_are_the_same_bytes_every_time(tmp_path: Path, manifest, sample):
    contents = set()
    for name in ("first", "second"):
        folder = write_one(tmp_path / name, manifest, sample(0), compress="zstd")
        contents.add(next(folder.glob("*.tar")).read_bytes())
    assert len(contents) == 1


def test_nan_is_refused_before_it_is_hidden_by_compression(tmp_path: Path, manifest):
    with pytest.raises(InputError, match="array 'stack' of shape .* holds NaN or infinity"):
        write_one(tmp_path / "store", manifest, {"stack": np.array([np.nan])}, compress="zstd")


def test_a_flip_in_a_compressed_array_is_an_error_never_a_crash(tmp_path: Path, manifest, sample, flip):
    folder = write_one(tmp_path / "store", manifest, sample(0), compress="zstd")
    (tar,), store = folder.glob("*.tar"), Store(folder)
    offset, size = 512, 100  # of the first frame
    for position in range(offset, offset + size):
        flip(tar, position, 1)
        with pytest.raises(StoreError, match="is damaged in part-0001-0000-0000: record 'k': "):
            store.read("k")
        flip(tar, position, 1)


def test_only_compressed_records_need_the_library(tmp_path: Path, manifest, sample, monkeypatch):
    plain = write_one(tmp_path / "plain", manifest, sample(0))
    packed = write_one(tmp_path / "packed", manifest, sample(0), compress="zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert (Store(plain).read("k").arrays["stack"] == sample(0)["stack"]).all()
    missing = "the package 'zstandard' is missing; compressed stores need it; install it, or use stack.compress=none"
    with pytest.raises(StoreError, match=missing):
        Store(packed).read("k")
    with pytest.raises(StoreError, match=missing):
        write_one(tmp_path / "other", manifest, sample(0), compress="zstd")
    assert verify(packed).damaged == ()
