import gzip
import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapstack.errors import ShardError
from train_like.index import Member, ShardIndex, expand_shards, index_shards, split_name
from train_like.tarwalk import MAX_MEMBER_BYTES, MAX_TAIL_BYTES

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
PAIRS = [("a.png", b"A" * 700), ("a.json", b"{}"), ("b.png", b"B" * 20), ("b.json", b"{}"), ("c.png", b"C" * 512)]


def tar_bytes(members: Sequence[tuple[str, bytes]], kind: str = "ustar") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind], errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], kind: str = "ustar") -> str:
    path.write_bytes(tar_bytes(members, kind))
    return str(path)


def index_bytes(path: Path, data: bytes) -> ShardIndex:
    path.write_bytes(data)
    return index_shards([str(path)])


def keys(index: ShardIndex) -> list[str]:
    return [entry.key for entry in index.entries]


def failed_keys(index: ShardIndex) -> list[str | None]:
    return [problem.key for problem in index.problems]


def header(name: str, size_field: bytes, kind: bytes = b"0") -> bytes:
    """A header block written by hand, after POSIX."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124:136] = size_field
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_samples_carry_the_places_of_their_bytes(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", PAIRS)
    index = index_shards([shard])
    data = Path(shard).read_bytes()
    read = {(entry.key, m.suffix): data[m.offset : m.offset + m.size] for entry in index.entries for m in entry.members}
    assert read == {split_name(name): content for name, content in PAIRS}
    assert index.problems == ()
    assert index.n_expected == 3


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


@pytest.mark.parametrize(
    "key", ["../../etc/x", "/etc/passwd", "a\nb", "x" * 300, "1.2.840.113619.2", "Ünïcode", "\udcff"]
)
def test_hostile_keys_pass_as_data(tmp_path: Path, key: str) -> None:
    assert keys(index_shards([write_tar(tmp_path / "s.tar", [(f"{key}.png", b"x")], "gnu")])) == [key]


def test_suffix_is_the_end_of_the_name_in_any_case(tmp_path: Path) -> None:
    members = [
        ("1.2.840.1.PNG", b"x"),
        ("1.2.840.1.json", b"{}"),
        ("1.2.840.1.masks.npz", b"m"),
        ("1.2.840.2.dcm", b"y"),
    ]
    index = index_shards([write_tar(tmp_path / "s.tar", members)])
    assert keys(index) == ["1.2.840.1", "1.2.840.2"]
    assert [member.suffix for member in index.entries[0].members] == ["png", "json", "masks.npz"]


def test_every_cut_is_found(tmp_path: Path) -> None:
    """R1: at each block boundary and between them; the samples before the cut stay."""
    whole = tar_bytes(PAIRS)
    end = len(whole.rstrip(b"\0"))  # the last member fills its block
    starts = {"a": 0, "b": 512 + 1024 + 1024, "c": 512 + 1024 + 1024 + 2 * 1024}
    for cut in sorted({*range(0, end + 1024, 512), *range(1, end + 1024, 97)}):
        index = index_bytes(tmp_path / "s.tar", whole[:cut])
        assert index.problems[-1].key is None, cut
        assert "cut" in index.problems[-1].reason
        begun = [key for key, start in starts.items() if start + 512 <= cut]
        assert keys(index) == begun[:-1], cut
        assert failed_keys(index) == [*begun[-1:], None], cut
        assert index.n_expected == len(begun) + 1
    assert index_bytes(tmp_path / "s.tar", whole[: end + 1024]).problems == ()


def test_every_flipped_bit_of_a_header_is_found(tmp_path: Path) -> None:
    """R1: but for some that only write the checksum itself in another way (its padding)."""
    whole = tar_bytes(PAIRS)
    sound = index_bytes(tmp_path / "s.tar", whole)
    for bit in range(512 * 8):
        damaged = bytearray(whole)
        damaged[2560 + bit // 8] ^= 1 << bit % 8
        index = index_bytes(tmp_path / "s.tar", bytes(damaged))
        is_harmless = 148 <= bit // 8 < 156 and index.entries == sound.entries
        assert is_harmless or failed_keys(index) == ["a", None], bit


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


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, bytes(10240), tar_bytes([("README.txt", b"x")])])
def test_shard_without_samples_is_a_problem(tmp_path: Path, data: bytes) -> None:
    index = index_bytes(tmp_path / "s.tar", data)
    assert failed_keys(index) == [None]
    assert index.n_expected == 1


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("k.json", b"{}")], "this one has none"),
        ([("k.png", b""), ("k.json", b"{}")], "its png is empty"),
        ([("k.png", b"x"), ("k.json", b"")], "its json is empty"),
        ([("k.png", b"x"), ("k.jpg", b"y")], "this one has png and jpg"),
        ([(".png", b"x")], "without a key"),
    ],
)
def test_incomplete_sample_is_named_and_the_walk_goes_on(
    tmp_path: Path, members: list[tuple[str, bytes]], words: str
) -> None:
    """R6."""
    index = index_shards([write_tar(tmp_path / "s.tar", [("a.png", b"x"), *members, ("z.png", b"x")])])
    assert keys(index) == ["a", "z"]
    (problem,) = index.problems
    assert problem.key in ("k", "")
    assert words in problem.reason
    assert index.n_expected == 3


def test_json_may_be_absent(tmp_path: Path) -> None:
    assert index_shards([write_tar(tmp_path / "s.tar", [("a.png", b"x")])]).problems == ()


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


def test_other_suffixes_are_counted_and_never_opened(tmp_path: Path) -> None:
    """R2."""
    payload = pickle.dumps(print)
    names = ["a.pyd", "a.pickle", "a.pkl", "a.pth", "a.pkl.gz", "a.png.pkl", "a"]
    members = [("a.png", b"x"), *((name, payload) for name in names), ("a.json", b"{}")]
    index = index_shards([write_tar(tmp_path / "s.tar", members)])
    assert [member.suffix for entry in index.entries for member in entry.members] == ["png", "json"]
    assert index.n_ignored == len(names)


ADJACENT = [[("k.png", b"1"), ("k.png", b"2"), ("z.png", b"3")]]
FAR = [[("k.png", b"1"), ("z.png", b"3"), ("k.png", b"2")]]
RETURNING = [[("k.png", b"1"), ("z.png", b"3"), ("k.json", b"{}")]]
TWO_SHARDS = [[("k.png", b"1"), ("z.png", b"3")], [("k.png", b"2")]]


@pytest.mark.parametrize("shards", [ADJACENT, FAR, RETURNING, TWO_SHARDS])
def test_duplicates_are_named(tmp_path: Path, shards: list[list[tuple[str, bytes]]]) -> None:
    """R5."""
    paths = [write_tar(tmp_path / f"{i}.tar", members) for i, members in enumerate(shards)]
    with pytest.raises(ShardError, match=r"hold 1 duplicate keys \('k' in '.*0.tar' and '.*\.tar'\)"):
        index_shards(paths)
    index = index_shards(paths, duplicates="first")
    assert keys(index) == ["k", "z"]
    assert index.entries[0].members == (Member("png", 512, 1),)
    assert index.entries[0].shard == paths[0]
    assert failed_keys(index) == ["k"]
    assert index.n_expected == 3


def test_all_duplicates_are_counted_and_the_first_named(tmp_path: Path) -> None:
    members = [(f"{i}.png", b"x") for i in range(5)]
    with pytest.raises(ShardError, match=r"hold 5 duplicate keys \('0' .*'2' in '[^']*' and '[^']*', \.\.\.\)"):
        index_shards([write_tar(tmp_path / "s.tar", members * 2)])


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


def test_packed_bombs_are_refused_at_once(tmp_path: Path) -> None:
    """R12: a member beyond the ceiling, zeros without end; 1 GB unpacked each."""
    zeros = gzip.compress(bytes(2**24)) * 64
    for name in ("k.png", "k.txt"):
        bomb = gzip.compress(tar_bytes([("a.png", b"x")])[:1024] + header(name, b"%011o\0" % 2**30)) + zeros
        start = time.perf_counter()
        index = index_bytes(tmp_path / "s.tar.gz", bomb)
        assert time.perf_counter() - start < 10  # ten times the limit: machines differ
        assert failed_keys(index) == ["a", None]
    start = time.perf_counter()
    assert failed_keys(index_bytes(tmp_path / "s.tar.gz", gzip.compress(tar_bytes(PAIRS)) + zeros)) == ["c", None]
    assert time.perf_counter() - start < 10  # ten times the limit: machines differ


def test_digest_is_the_identity_of_the_shards(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
    first = write_tar(tmp_path / "a" / "s.tar", PAIRS)
    digest = index_shards([first]).digest
    assert index_shards([write_tar(tmp_path / "b" / "s.tar", PAIRS)]).digest == digest
    others = [
        index_shards([write_tar(tmp_path / "t.tar", PAIRS)]),
        index_shards([write_tar(tmp_path / "b" / "s.tar", [("q.png", PAIRS[0][1]), *PAIRS[1:]])]),
        index_shards([write_tar(tmp_path / "b" / "s.tar", [("a.png", b"A" * 701), *PAIRS[1:]])]),
        index_shards([first, write_tar(tmp_path / "t.tar", [("z.png", b"x")])]),
    ]
    assert digest not in [other.digest for other in others]
    assert len({other.digest for other in others}) == 4


def test_limit_keeps_problems_and_digest(tmp_path: Path) -> None:
    index = index_shards([write_tar(tmp_path / "s.tar", [*PAIRS, ("k.json", b"{}")])])
    assert index.n_expected == 4
    assert keys(index.limited(2)) == ["a", "b"]
    assert index.limited(2).n_expected == 3
    assert index.limited(2).digest == index.digest
    assert index.limited(None) == index


def test_shard_that_vanished_is_a_problem(tmp_path: Path) -> None:
    index = index_shards([str(tmp_path / "gone.tar"), write_tar(tmp_path / "s.tar", PAIRS)])
    assert keys(index) == ["a", "b", "c"]
    assert "cannot be opened (No such file or directory)" in index.problems[0].reason


def test_patterns_expand_in_order(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"p-{i:02d}.tar", PAIRS) for i in range(12)]
    assert expand_shards(f"{tmp_path}/p-{{00..11}}.tar") == paths
    assert expand_shards(f"{tmp_path}/p-*.tar") == paths
    assert expand_shards([f"file:{paths[1]}", f"file://{paths[0]}"]) == [paths[1], paths[0]]
    assert expand_shards(f"{paths[3]}::{tmp_path}/p-0[12].tar") == [paths[3], paths[1], paths[2]]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{folder}/none-{{0..1}}.tar", "shard '.*none-0.tar' does not exist"),
        ("{folder}/*.none", "matches no file"),
        ("{folder}", "is no regular file"),
        ("{folder}/{{a", "brace without its partner"),
        ("", "names no shard"),
        ([], "names no shard"),
    ],
)
def test_bad_patterns_are_one_sentence(tmp_path: Path, pattern: str | list[str], words: str) -> None:
    shards = pattern.format(folder=tmp_path) if isinstance(pattern, str) else pattern
    with pytest.raises(ShardError, match=words):
        expand_shards(shards)


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch {0}/x",
        "PIPE:touch {0}/x",
        "{0}/s.tar::pipe:touch {0}/x",
        "{{pi,pi}}pe:touch {0}/x",
        "{{pipe:touch {0}/x,}}",
    ]
    + [f"{scheme}://host/s.tar" for scheme in ("http", "https", "s3", "gs", "hf", "ftp")],
)
def test_schemes_are_refused_without_a_subprocess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """R3."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a subprocess was started")

    write_tar(tmp_path / "s.tar", PAIRS)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    with pytest.raises(ShardError, match="has the scheme"):
        expand_shards(pattern.format(tmp_path))


def test_local_files_too_need_their_scheme() -> None:
    with pytest.raises(ShardError, match=r"the scheme 'file', which data.allowed_schemes \(https\) does not hold"):
        expand_shards("a.tar", allowed_schemes=["https"])


def test_allowed_pipe_gives_the_same_samples(tmp_path: Path) -> None:
    plain = index_shards([write_tar(tmp_path / "s.tar", PAIRS)])
    shards = expand_shards(f"pipe:cat {tmp_path}/s.tar", allowed_schemes=["file", "pipe"])
    piped = index_shards(shards)
    assert [(e.key, e.members) for e in piped.entries] == [(e.key, e.members) for e in plain.entries]
    assert piped.problems == ()


def test_failing_pipe_is_a_problem(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", PAIRS)
    assert failed_keys(index_shards([f"pipe:head -c 2600 {tmp_path}/s.tar"])) == ["a", None]
    assert failed_keys(index_shards(["pipe:exit 3", "nosuch://host/a.tar"])) == [None, None]


def test_index_needs_neither_torch_nor_webdataset() -> None:
    code = "import sys, train_like.index; sys.exit('torch' in sys.modules or 'webdataset' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
