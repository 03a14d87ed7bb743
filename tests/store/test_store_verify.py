import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from mapstack.errors import StoreError
from mapstack.store import StoreWriter, finish, open_store_for_writing, record_failure, verify

STEM = "part-0001-0000-0000"


@pytest.fixture
def folder(tmp_path: Path, manifest, sample) -> Path:
    folder = tmp_path / "store"
    with open_store_for_writing(folder, manifest, basis=np.eye(4), expected=4) as session:
        with StoreWriter(folder, session.run, 0) as writer:
            for index, key in enumerate(("a", "1.2", "long" * 50)):
                writer.write(key, sample(index), {"index": index})
        record_failure(folder, "bad", "s.tar", "truncated")
        finish(session, 4)
    return folder


def test_a_sound_store_is_counted(folder: Path):
    result = verify(folder)
    assert (result.n_done, result.n_failed, result.n_missing, result.n_damaged) == (3, 1, 0, 0)
    assert result.is_sound


@pytest.mark.fault("W9")
def test_w9_every_flipped_bit_is_found(folder: Path, flip, campaign, figure):
    files = [path for path in folder.iterdir() if path.name != "store.lock"]
    flips = [(path, position) for path in files for position in range(path.stat().st_size)]
    assert {path.name for path in files} == {
        "manifest.json",
        "basis.npy",
        "errors.jsonl",
        f"{STEM}.tar",
        f"{STEM}.jsonl",
    }
    rng = random.Random(0)
    n_flips = campaign(1000, len(flips))
    n_found = 0
    for path, position in rng.sample(flips, n_flips):
        bit = 1 << rng.randrange(8)
        flip(path, position, bit)
        try:
            n_found += not verify(folder).is_sound
        except StoreError:
            n_found += 1
        flip(path, position, bit)
    figure(f"{n_found} of {n_flips} flipped bits found")
    assert n_found == n_flips
    assert verify(folder).is_sound


def test_a_damaged_record_is_named_with_its_reason(folder: Path):
    with (folder / f"{STEM}.tar").open("r+b") as tar:
        tar.seek(3072 + 700)
        tar.write(b"x")
    result = verify(folder)
    assert result.damaged == (("1.2", "its bytes do not match their checksum"),)
    assert (result.n_done, result.n_failed, result.n_missing, result.n_damaged) == (2, 1, 0, 1)
    assert not result.is_sound


def test_a_lost_part_is_missing(folder: Path):
    (folder / f"{STEM}.tar").unlink()
    result = verify(folder)
    assert (result.n_done, result.n_missing, result.n_damaged) == (0, 0, 1)
    (folder / f"{STEM}.jsonl").unlink()
    result = verify(folder)
    assert (result.n_done, result.n_missing, result.n_damaged) == (0, 3, 0)
    assert not result.is_sound


@pytest.mark.parametrize("change", [lambda tar: tar[:-512], lambda tar: tar + bytes(512), lambda tar: tar[:-1] + b"x"])
def test_a_tar_that_does_not_end_as_one_is_found(folder: Path, change):
    path = folder / f"{STEM}.tar"
    path.write_bytes(change(path.read_bytes()))
    result = verify(folder)
    assert result.damaged == ((path.name, "it does not end as a tar does after its last record"),)
    assert result.n_done == 3


def test_a_record_cut_short_is_found(folder: Path):
    path = folder / f"{STEM}.tar"
    path.write_bytes(path.read_bytes()[:7000])
    assert verify(folder).damaged[0] == ("long" * 50, "the tar ends inside the record")


def test_a_line_lost_from_the_middle_of_a_journal_is_found(folder: Path):
    path = folder / f"{STEM}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    assert "does not begin where the one before ends" in verify(folder).damaged[0][1]


def test_a_key_stored_twice_is_found(folder: Path):
    for suffix in (".tar", ".jsonl"):
        shutil.copy(folder / f"{STEM}{suffix}", folder / f"part-0002-0000-0000{suffix}")
    result = verify(folder)
    assert {reason for _, reason in result.damaged} == {"a record of this key came before"}
    assert (result.n_done, result.n_damaged) == (3, 3)


def test_a_store_in_work_is_counted_without_its_unfinished_end(tmp_path: Path, manifest, sample):
    folder = tmp_path / "work"
    with open_store_for_writing(folder, manifest, expected=3) as session, StoreWriter(folder, session.run, 0) as writer:
        writer.write("a", sample(0), {})
        writer.commit()
        writer.write("b", sample(1), {})
        for name in (f"{STEM}.jsonl", "errors.jsonl"):
            with (folder / name).open("ab") as lines:
                lines.write(b'{"key":"b"')
        result = verify(folder)
        (folder / f"{STEM}.jsonl").write_bytes((folder / f"{STEM}.jsonl").read_bytes()[:-10])
    assert (result.n_done, result.n_missing, result.damaged, result.unsealed) == (1, 2, (), (STEM,))
    assert not result.is_sound


def test_a_torn_line_of_a_complete_store_is_damage(folder: Path):
    with (folder / "errors.jsonl").open("ab") as lines:
        lines.write(b'{"key":"b"')
    assert verify(folder).damaged[-1] == ("errors.jsonl", "line 2 is torn or damaged")


def test_without_an_expected_count_nothing_is_called_sound(tmp_path: Path, manifest):
    open_store_for_writing(tmp_path, manifest).close()
    result = verify(tmp_path)
    assert result.n_missing is None
    assert not result.is_sound


def test_progress_goes_up_to_the_records(folder: Path):
    calls: list[tuple[int, int]] = []
    verify(folder, progress=lambda n_read, n_total: calls.append((n_read, n_total)))
    assert [n_read for n_read, _ in calls] == sorted({n_read for n_read, _ in calls})
    assert {n_total for _, n_total in calls} == {(folder / f"{STEM}.tar").stat().st_size}
    assert len(calls) == 3


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="is no stack store"):
        verify(tmp_path)
