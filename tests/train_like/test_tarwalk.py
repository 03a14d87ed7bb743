import gzip
import os
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train_like.tars import PAIRS, failed_keys, header, index_bytes, keys, tar_bytes, write_tar
from train_like.index import index_shards
from train_like.tarwalk import MAX_MEMBER_BYTES, MAX_TAIL_BYTES

HOSTILE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)


@given(
    names=st.lists(HOSTILE, max_size=5, unique=True),
    sizes=st.lists(st.integers(1, 1100), min_size=5, max_size=5),
    kind=st.sampled_from(["gnu", "pax"]),
)
@settings(max_examples=60, deadline=None)
def test_names_and_places_equal_those_of_tarfile(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], sizes: list[int], kind: str
) -> None:
    path = tmp_path_factory.mktemp("shard") / "s.tar"
    members = [(f"{name}#.png", bytes([i]) * size) for i, (name, size) in enumerate(zip(names, sizes, strict=False))]
    shard = write_tar(path, members, kind)
    with tarfile.open(shard) as tar:
        theirs = [(info.name.removesuffix(".png"), info.offset_data, info.size) for info in tar]
    ours = [(entry.key, entry.members[0].offset, entry.members[0].size) for entry in index_shards([shard]).entries]
    assert ours == theirs


@pytest.mark.fault("R1")
def test_every_cut_is_found(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """At each block boundary and between them; the samples before the cut stay."""
    whole = tar_bytes(PAIRS)
    end = len(whole.rstrip(b"\0"))  # the last member fills its block
    starts = {"a": 0, "b": 512 + 1024 + 1024, "c": 512 + 1024 + 1024 + 2 * 1024}
    cuts = sorted({*range(0, end + 1024, 512), *range(1, end + 1024, 97)})
    for cut in cuts:
        index = index_bytes(tmp_path / "s.tar", whole[:cut])
        assert index.problems[-1].key is None, cut
        assert "cut" in index.problems[-1].reason
        begun = [key for key, start in starts.items() if start + 512 <= cut]
        assert keys(index) == begun[:-1], cut
        assert failed_keys(index) == [*begun[-1:], None], cut
        assert index.n_expected == len(begun) + 1
    assert index_bytes(tmp_path / "s.tar", whole[: end + 1024]).problems == ()
    figure(f"{len(cuts)} of {len(cuts)} cuts of a tar found by the walk alone")


@pytest.mark.fault("R1")
def test_every_flipped_bit_of_a_header_is_found(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """But for some that only write the checksum itself in another way (its padding)."""
    whole = tar_bytes(PAIRS)
    sound = index_bytes(tmp_path / "s.tar", whole)
    n_harmless = 0
    for bit in range(512 * 8):
        damaged = bytearray(whole)
        damaged[2560 + bit // 8] ^= 1 << bit % 8
        index = index_bytes(tmp_path / "s.tar", bytes(damaged))
        is_harmless = 148 <= bit // 8 < 156 and index.entries == sound.entries
        n_harmless += is_harmless
        assert is_harmless or failed_keys(index) == ["a", None], bit
    figure(f"4096 bits of a header flipped: {4096 - n_harmless} found, {n_harmless} without effect")


@pytest.mark.parametrize("n_blocks", [1, 2, 8])
def test_zeroed_blocks_are_found_where_a_header_was(tmp_path: Path, n_blocks: int) -> None:
    whole = bytearray(tar_bytes([(f"{i}.png", bytes([i + 1]) * 9000) for i in range(4)]))
    start = 2 * (512 + 9216)
    whole[start : start + 512 * n_blocks] = bytes(512 * n_blocks)
    index = index_bytes(tmp_path / "s.tar", bytes(whole))
    assert keys(index) == ["0"]
    assert failed_keys(index) == ["1", None]
    assert "damaged at byte 19456" in index.problems[-1].reason


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_zeroed_blocks_near_the_end_are_found(tmp_path: Path, n_blocks: int) -> None:
    whole = bytearray(tar_bytes([("a.png", b"x"), ("b.png", b"y"), ("c.png", b"z")]))
    whole[1024 : 1024 + 512 * n_blocks] = bytes(512 * n_blocks)
    index = index_bytes(tmp_path / "s.tar", bytes(whole))
    assert failed_keys(index) == ["a", None]
    assert "more than zeros follows" in index.problems[-1].reason


def test_zeroed_second_half_is_no_end(tmp_path: Path) -> None:
    """What a power loss leaves: the length is right, the pages are zeros."""
    whole = tar_bytes([(f"{i}.png", bytes([i + 1]) * 900) for i in range(20)])
    index = index_bytes(tmp_path / "s.tar", whole[: 3 * 1536] + bytes(len(whole) - 3 * 1536))
    assert keys(index) == ["0", "1"]
    assert failed_keys(index) == ["2", None]


def test_padding_of_one_record_is_the_end(tmp_path: Path) -> None:
    members = tar_bytes([("a.png", b"x")])[:1024]
    assert index_bytes(tmp_path / "s.tar", members + bytes(MAX_TAIL_BYTES)).problems == ()
    assert failed_keys(index_bytes(tmp_path / "s.tar", members + bytes(MAX_TAIL_BYTES + 1))) == ["a", None]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_only_regular_files_are_read(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("folder/k.png")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, kind, "/etc/passwd"
        tar.addfile(folder)
        tar.addfile(link)
    index = index_shards([str(tmp_path / "s.tar")])
    assert failed_keys(index) == ["folder/k"]
    assert "only regular files" in index.problems[0].reason


def test_too_large_member_fails_its_sample_only(tmp_path: Path) -> None:
    with open(tmp_path / "s.tar", "wb") as tar:
        tar.write(header("k.png", b"%011o\0" % (MAX_MEMBER_BYTES + 1)))
        tar.truncate(tar.tell() + MAX_MEMBER_BYTES + 512)
        tar.seek(0, os.SEEK_END)
        tar.write(tar_bytes([("z.png", b"x")]))
    index = index_shards([str(tmp_path / "s.tar")])
    assert keys(index) == ["z"]
    assert failed_keys(index) == ["k"]


def test_headers_only_are_read(tmp_path: Path) -> None:
    """5 GB of members, which lie in a sparse file, take no time."""
    with open(tmp_path / "s.tar", "wb") as tar:
        for i in range(100):
            tar.seek(i * (512 + 50 * 2**20))
            tar.write(header(f"{i}.png", b"%011o\0" % (50 * 2**20)))
        tar.truncate(100 * (512 + 50 * 2**20) + 1024)
    start = time.perf_counter()
    assert len(index_shards([str(tmp_path / "s.tar")]).entries) == 100
    assert time.perf_counter() - start < 10  # ten times the limit: machines differ


@pytest.mark.parametrize(
    "member",
    [
        header("k.png", b"\x80" + b"\xff" * 11),
        header("k.png", b"\x80" + bytes(4) + b"\xff" * 7),
        header("k.png", b"\xff" * 12),
        header("k.png", b"0x000000010\0"),
        header("k.png", b"00000000001\0", kind=b"S"),
        header("p", b"00000010000\0", kind=b"x") + b"4096 size=".ljust(4095, b"9") + b"\n" + header("k.png", b"0" * 12),
        header("p", b"00000000013\0", kind=b"x") + b"11 size=-1\n".ljust(512, b"\0") + header("k.png", b"0" * 12),
        header("p", b"00000000005\0", kind=b"x") + b"99 a=".ljust(512, b"\0") + header("k.png", b"0" * 12),
        header("p", b"00000000012\0", kind=b"x") + b"10 path=b\n".ljust(512, b"\0"),
        header("p", b"77777777777\0", kind=b"L"),
    ],
)
def test_hostile_headers_end_the_walk(tmp_path: Path, member: bytes) -> None:
    index = index_bytes(tmp_path / "s.tar", tar_bytes([("a.png", b"x")])[:1024] + member + bytes(1024))
    assert keys(index) in ([], ["a"])
    assert failed_keys(index)[-1] is None


def test_packed_shard_gives_the_same_samples(tmp_path: Path) -> None:
    plain = index_shards([write_tar(tmp_path / "s.tar", PAIRS)])
    packed = index_bytes(tmp_path / "s.tar.gz", gzip.compress(tar_bytes(PAIRS)))
    assert [(e.key, e.members) for e in packed.entries] == [(e.key, e.members) for e in plain.entries]
    assert packed.problems == ()


def test_damaged_packed_shard_is_found(tmp_path: Path) -> None:
    tar = tar_bytes([(f"{i}.png", random.Random(i).randbytes(600)) for i in range(5)])
    data = gzip.compress(tar)
    for cut in range(0, len(data), 50):
        assert index_bytes(tmp_path / "s.tgz", data[:cut]).problems[-1].key is None
    sound = index_bytes(tmp_path / "s.tgz", data).entries
    for place in range(0, len(data), 50):
        damaged = bytearray(data)
        damaged[place] ^= 16
        index = index_bytes(tmp_path / "s.tgz", bytes(damaged))
        is_harmless = index.entries == sound and gzip.decompress(bytes(damaged)) == tar
        assert is_harmless or index.problems[-1].key is None, place
