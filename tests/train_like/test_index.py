import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from mapstack.errors import ShardError
from tests.train_like.tars import PAIRS, failed_keys, index_bytes, keys, tar_bytes, write_tar
from train_like.errors import StoppedError
from train_like.index import expand_shards, index_shards, outline_shards, split_name
from train_like.watchdog import watch


def test_samples_carry_the_places_of_their_bytes(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", PAIRS)
    index = index_shards([shard])
    data = Path(shard).read_bytes()
    read = {(entry.key, m.suffix): data[m.offset : m.offset + m.size] for entry in index.entries for m in entry.members}
    assert read == {split_name(name): content for name, content in PAIRS}
    assert index.problems == ()
    assert index.n_expected == 3


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
        ("1.2.840.2.json", b"{}"),
    ]
    index = index_shards([write_tar(tmp_path / "s.tar", members)])
    assert keys(index) == ["1.2.840.1", "1.2.840.2"]
    assert [member.suffix for member in index.entries[0].members] == ["png", "json", "masks.npz"]


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, bytes(10240), tar_bytes([("README.txt", b"x")])])
def test_shard_without_samples_is_a_problem(tmp_path: Path, data: bytes) -> None:
    index = index_bytes(tmp_path / "s.tar", data)
    assert failed_keys(index) == [None]
    assert index.n_expected == 1


def test_json_may_be_absent(tmp_path: Path) -> None:
    assert index_shards([write_tar(tmp_path / "s.tar", [("a.png", b"x")])]).problems == ()


def test_other_suffixes_are_counted_and_never_opened(tmp_path: Path) -> None:
    payload = pickle.dumps(print)
    names = ["a.pyd", "a.pickle", "a.pkl", "a.pth", "a.pkl.gz", "a.png.pkl", "a"]
    members = [("a.png", b"x"), *((name, payload) for name in names), ("a.json", b"{}")]
    index = index_shards([write_tar(tmp_path / "s.tar", members)])
    assert [member.suffix for entry in index.entries for member in entry.members] == ["png", "json"]
    assert index.n_ignored == len(names)


def test_all_duplicates_are_counted_and_the_first_named(tmp_path: Path) -> None:
    members = [(f"{i}.png", b"x") for i in range(5)]
    with pytest.raises(ShardError, match=r"hold 5 duplicate keys \('0' .*'2' in '[^']*' and '[^']*', \.\.\.\)"):
        index_shards([write_tar(tmp_path / "s.tar", members * 2)])


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


def test_outline_is_of_names_and_sizes_in_their_order(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
    shard, moved = (write_tar(tmp_path / folder / "s.tar", PAIRS) for folder in "ab")
    named = write_tar(tmp_path / "b" / "t.tar", PAIRS)
    outline = outline_shards([shard])
    assert outline_shards([moved]) == outline
    several = [[named], [shard, named], [named, shard], [shard, shard], []]
    assert len({outline, *map(outline_shards, several)}) == 6
    with open(moved, "ab") as file:
        file.write(bytes(512))
    assert outline_shards([moved]) != outline
    assert outline_shards([str(tmp_path / "absent" / "s.tar")]) != outline
    remote = ["s3://a/0.tar", "s3://b/0.tar", "s3://b/1.tar"]
    assert len({outline_shards([url]) for url in remote}) == 2  # the name alone, which is all that is known


@pytest.mark.fault("R14")
def test_a_shard_that_hangs_while_samples_are_counted_is_noticed(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """A pipe that nobody writes to, among sound shards; it hangs where it is opened."""
    sound, hanging = write_tar(tmp_path / "s.tar", PAIRS), tmp_path / "hanging.tar"
    os.mkfifo(hanging)
    start = time.perf_counter()
    with pytest.raises(StoppedError, match=r"hanging.tar' has given nothing for 0.4 s while samples were counted"):
        index_shards([sound, str(hanging), sound], timeout_s=0.4)
    seconds = time.perf_counter() - start
    assert seconds < 10 * (2 * 0.4)  # ten times the limit: machines differ
    with open(hanging, "wb"):  # the thread that hangs there is let go
        pass
    deadline = time.monotonic() + 20
    while any(thread.name == "watched" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    figure(f"a shard that hangs while samples are counted is noticed after {seconds:.1f} s at a time limit of 0.4 s")


def test_a_slow_shard_is_waited_for(tmp_path: Path) -> None:
    """In all it takes longer than the time limit, which is for each piece."""
    plain = index_shards([f"pipe:cat {write_tar(tmp_path / 's.tar', PAIRS)}"])
    begin = "; sleep 0.5; ".join(f"dd if={tmp_path}/s.tar bs=1024 skip={i} count=1 status=none" for i in range(4))
    slow = index_shards([f"pipe:{begin}; dd if={tmp_path}/s.tar bs=1024 skip=4 status=none"], timeout_s=0.9)
    assert [(e.key, e.members) for e in slow.entries] == [(e.key, e.members) for e in plain.entries]


def test_a_watched_walk_is_the_same_walk(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [*PAIRS, ("k.json", b"{}")])
    assert index_shards([shard], timeout_s=60) == index_shards([shard])
    with pytest.raises(ShardError, match="duplicate keys"):
        index_shards([shard, shard], timeout_s=60)


def test_what_goes_on_may_take_any_time_and_its_error_comes_out() -> None:
    steps = count()
    assert watch(lambda: time.sleep(0.3), lambda: next(steps), timeout_s=0.1) is None
    with pytest.raises(ZeroDivisionError):
        watch(lambda: 1 // 0, lambda: 0, timeout_s=60)


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
