import copy
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mapstack.errors import InputError, StoreError
from mapstack.store import Store, StoreWriter, finish, open_store_for_writing, record_failure, verify
from mapstack.store.journal import read_journal
from mapstack.store.recovery import recover

STEM = "part-0001-0000-0000"
N_RECORDS = 3


@pytest.fixture
def without_fsync(monkeypatch) -> None:
    # Thousands of states are tried, and what is durable plays no part in them.
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def interrupted(tmp_path: Path, manifest, sample) -> Path:
    """A store as a kill leaves it: three committed records in an unsealed part."""
    folder, copied = tmp_path / "whole", tmp_path / "interrupted"
    with open_store_for_writing(folder, manifest) as session, StoreWriter(folder, session.run, 0) as writer:
        for index in range(N_RECORDS):
            writer.write(f"k{index}", sample(index), {"index": index})
        writer.commit()
        shutil.copytree(folder, copied)
    return copied


@pytest.fixture
def clean_tars(tmp_path: Path, write_store) -> dict[int, bytes]:
    """The sealed tar of a run that was never interrupted, by its number of records."""
    tars = {}
    for n_records in range(1, N_RECORDS + 1):
        folder = write_store(tmp_path / f"clean-{n_records}", [f"k{index}" for index in range(n_records)])
        tars[n_records] = (folder / f"{STEM}.tar").read_bytes()
    return tars


def states(interrupted: Path, scratch: Path, tar: bytes, journal: bytes) -> Iterator[tuple[int, int, Path]]:
    """Every cut in the last record with the whole journal, every cut of the journal with the whole tar, and between."""
    cuts = [(n_bytes, len(journal)) for n_bytes in range(len(tar) * 2 // 3 - 1, len(tar) + 1)]
    cuts += [(len(tar), n_bytes) for n_bytes in range(len(journal))]
    cuts += [(n_bytes, n_bytes % len(journal)) for n_bytes in range(0, len(tar), 97)]
    shutil.copytree(interrupted, scratch)
    for tar_size, journal_size in cuts:
        for suffix in (".tar", ".tar.partial", ".jsonl"):  # overwriting a file in place would wait for the disk
            (scratch / (STEM + suffix)).unlink(missing_ok=True)
        (scratch / f"{STEM}.tar.partial").write_bytes(tar[:tar_size])
        (scratch / f"{STEM}.jsonl").write_bytes(journal[:journal_size])
        yield tar_size, journal_size, scratch


@pytest.mark.fault("W1")
@pytest.mark.usefixtures("without_fsync")
def test_w1_a_cut_at_every_byte_leaves_whole_records_in_a_clean_tar(interrupted, tmp_path, clean_tars, figure):
    tar = (interrupted / f"{STEM}.tar.partial").read_bytes()
    journal = (interrupted / f"{STEM}.jsonl").read_bytes()
    entries = read_journal(interrupted / f"{STEM}.jsonl").entries
    line_ends = read_journal(interrupted / f"{STEM}.jsonl").line_ends
    assert len(entries) == N_RECORDS
    n_states = 0
    for tar_size, journal_size, folder in states(interrupted, tmp_path / "scratch", tar, journal):
        n_states += 1
        n_whole = min(sum(e.end <= tar_size for e in entries), sum(end <= journal_size for end in line_ends))
        recovered = recover(folder)
        assert recovered.n_records == n_whole
        if n_whole:
            assert (folder / f"{STEM}.tar").read_bytes() == clean_tars[n_whole]
            assert (folder / f"{STEM}.jsonl").read_bytes() == journal[: line_ends[n_whole - 1]]
        assert sum(name.startswith("part-") for name in os.listdir(folder)) == (2 if n_whole else 0)
    figure(f"tar or journal cut at {n_states} places: whole records in a clean tar")


def test_a_damaged_line_inside_a_journal_ends_what_is_trusted(interrupted, clean_tars, flip):
    flip(interrupted / f"{STEM}.jsonl", read_journal(interrupted / f"{STEM}.jsonl").line_ends[0] + 10, 1)
    assert Store(interrupted).keys() == ["k0"]
    assert recover(interrupted).n_records == 1
    assert (interrupted / f"{STEM}.tar").read_bytes() == clean_tars[1]


@pytest.mark.usefixtures("without_fsync")
@pytest.mark.parametrize("n_zeros", [1, 512, 10240])
def test_zeros_where_a_power_cut_dropped_the_bytes_are_cut_off(interrupted, clean_tars, n_zeros):
    tar, journal = interrupted / f"{STEM}.tar.partial", interrupted / f"{STEM}.jsonl"
    size = tar.stat().st_size
    with tar.open("r+b") as file:
        file.seek(size - 700)
        file.write(bytes(700))
    for path in (tar, journal):
        with path.open("ab") as file:
            file.write(bytes(n_zeros))
    recovered = recover(interrupted)
    assert (recovered.n_records, recovered.n_records_dropped) == (2, 1)
    assert (interrupted / f"{STEM}.tar").read_bytes() == clean_tars[2]


@pytest.mark.usefixtures("without_fsync")
def test_a_recovery_that_is_itself_interrupted_is_done_again(interrupted, clean_tars, monkeypatch):
    with (interrupted / f"{STEM}.tar.partial").open("ab") as file:
        file.write(b"torn")
    calls = {"ftruncate": os.ftruncate, "rename": os.rename, "write": os.write}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name, original in calls.items():
        monkeypatch.setattr(os, name, stop)
        with pytest.raises(KeyboardInterrupt):
            recover(interrupted)
        monkeypatch.setattr(os, name, original)
    recover(interrupted)
    assert (interrupted / f"{STEM}.tar").read_bytes() == clean_tars[N_RECORDS]
    assert recover(interrupted).n_parts == 0


def test_a_complete_store_stays_complete_while_a_job_looks_for_work(tmp_path: Path, manifest, write_store):
    """Else a power cut at that moment would take back what was acknowledged."""
    folder = write_store(tmp_path / "store", ["a", "b"])
    for expected, is_complete in ((2, True), (1, True), (3, False)):
        with open_store_for_writing(folder, manifest, expected=expected) as session:
            assert Store(folder).manifest["complete"] is is_complete
            finish(session, 2)
    with open_store_for_writing(folder, manifest):
        assert Store(folder).manifest["complete"] is False  # nobody has counted


def test_a_resumed_run_computes_only_what_is_missing_and_equals_a_clean_one(
    interrupted, tmp_path, manifest, sample, write_store
):
    keys = [f"k{index}" for index in range(5)]
    with open_store_for_writing(interrupted, manifest) as session:
        assert session.done == {"k0", "k1", "k2"}
        assert (session.run, session.recovered.n_parts, session.recovered.n_records) == (2, 1, 3)
        for rank, index in enumerate((3, 4)):  # another number of ranks
            with StoreWriter(interrupted, session.run, rank) as writer:
                writer.write(keys[index], sample(index), {"index": index})
        assert finish(session, 5).done == 5
    clean = write_store(tmp_path / "clean", keys)
    ours = {e.key: (e.sha256, e.size) for path in interrupted.glob("*.jsonl") for e in read_journal(path).entries}
    theirs = {e.key: (e.sha256, e.size) for e in read_journal(clean / f"{STEM}.jsonl").entries}
    assert ours == theirs
    assert verify(interrupted).is_sound
    assert Store(interrupted).manifest["complete"] is True
    for path in interrupted.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert tar.getnames()


WRITE_FOREVER = """
import itertools, sys, numpy as np
from mapstack.store import StoreWriter, open_store_for_writing
with open_store_for_writing(sys.argv[1], {"identity": {"a": 1}}) as session:
    with StoreWriter(sys.argv[1], session.run, 0, max_part_bytes=20000) as writer:
        for index in itertools.count():
            key = f"run{session.run}-{index}"
            writer.write(key, {"stack": np.full((2, 3, 4), index, np.float32)}, {"index": index})
            writer.commit()
            print(key, flush=True)
"""


@pytest.mark.fault("W1")
def test_w1_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path, figure):
    folder = tmp_path / "store"
    acknowledged: set[str] = set()
    for n_lines in (1, 7, 23):
        with subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, folder], stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout is not None
            acknowledged |= {job.stdout.readline().strip() for _ in range(n_lines)}
            job.send_signal(signal.SIGKILL)
            acknowledged |= set(job.stdout.read().split())
    with open_store_for_writing(folder, {"identity": {"a": 1}}) as session:
        assert session.done >= acknowledged
    figure(f"writer killed 3 times: {len(acknowledged)} acknowledged, 0 lost")
    assert len(acknowledged) >= 31
    assert verify(folder).damaged == ()
    for record in Store(folder):
        assert (record.arrays["stack"] == record.info["index"]).all()


@pytest.mark.fault("W6")
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("method", "n_steps"), 50, r"with method\.n_steps = 20, this run has 50; one store holds one configuration"),
        (("model", "fingerprint"), "91bc", r'with model\.fingerprint = "3f2a", this run has "91bc"'),
        (("seed",), None, "with seed = 0, this run has null"),
        (("method", "stdevs"), 0.1, r"with method\.stdevs = nothing, this run has 0\.1"),
        (("method",), {}, r"with method = nothing, this run has {} \(and differs in method.n_steps, method.name\)"),
    ],
)
def test_w6_another_configuration_is_refused_and_the_field_named(interrupted, manifest, path, value, message, figure):
    before = {path.name: path.read_bytes() for path in interrupted.iterdir() if path.name != "store.lock"}
    changed = copy.deepcopy(manifest)
    block = changed["identity"]
    for name in path[:-1]:
        block = block[name]
    block[path[-1]] = value
    begun = time.monotonic()
    with pytest.raises(StoreError, match=message):
        open_store_for_writing(interrupted, changed)
    took_s = time.monotonic() - begun
    figure(f"another {'.'.join(path)}: refused and named in {took_s:.3f} s")
    assert took_s < 1
    assert {path.name: path.read_bytes() for path in interrupted.iterdir() if path.name != "store.lock"} == before
    with open_store_for_writing(interrupted, manifest) as session:  # and the refusal let go of the lock
        assert len(session.done) == N_RECORDS


def test_fields_outside_the_identity_are_refreshed(interrupted, manifest):
    open_store_for_writing(interrupted, {**manifest, "packages": {"numpy": "3"}}, expected=9).close()
    stored = Store(interrupted).manifest
    assert stored["packages"] == {"numpy": "3"}
    assert stored["totals"] == {"expected": 9, "done": 3, "failed": 0, "n_bytes": 3 * 3 * 1024}


@pytest.mark.fault("W6")
def test_w6_another_basis_is_refused(tmp_path, manifest, figure):
    folder = tmp_path / "store"
    open_store_for_writing(folder, manifest, basis=np.eye(3)).close()
    assert (Store(folder).basis == np.eye(3)).all()
    open_store_for_writing(folder, manifest, basis=np.eye(3)).close()
    for other in (np.eye(4), None):
        with pytest.raises(StoreError, match=r"was written with basis_sha256 = .*, this run has"):
            open_store_for_writing(folder, manifest, basis=other)
    figure("2 of 2 other bases refused")


def test_a_key_that_failed_is_reported_and_can_be_mended(interrupted, manifest, sample):
    with open_store_for_writing(interrupted, manifest) as session:
        record_failure(interrupted, "bad", "s.tar", "truncated")
    with (interrupted / "errors.jsonl").open("ab") as file:
        file.write(b'{"torn')
    with open_store_for_writing(interrupted, manifest) as session:
        assert session.failed == {"bad"}
        assert finish(session, 4).failed == 1
        with StoreWriter(interrupted, session.run, 0) as writer:
            writer.write("bad", sample(0), {})
        totals = finish(session, 4)
    assert (totals.done, totals.failed) == (4, 0)
    assert verify(interrupted).is_sound


def test_overwrite_discards_the_store_and_says_what(interrupted, manifest, sample):
    (interrupted / "notes.txt").write_text("mine")
    sizes = [p.stat().st_size for p in interrupted.iterdir() if p.name not in ("notes.txt", "store.lock")]
    with open_store_for_writing(interrupted, {"identity": {"other": 1}}, overwrite=True) as session:
        assert session.discarded is not None
        assert (session.discarded.n_records, session.discarded.n_files) == (3, 4)
        assert session.discarded.n_bytes == sum(sizes)
        assert (session.done, session.run) == (frozenset(), 1)
    assert len(Store(interrupted)) == 0
    assert (interrupted / "notes.txt").read_text() == "mine"


def test_overwrite_of_nothing_discards_nothing(tmp_path, manifest):
    with open_store_for_writing(tmp_path / "store", manifest, overwrite=True) as session:
        assert session.discarded is None


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "manifest.json", "part-0001-0000-0000.tar/x", "deep/part.tar"])
def test_a_folder_that_is_no_store_is_never_touched(tmp_path, manifest, overwrite, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"name": "a web page"}')
    with pytest.raises(StoreError, match=r"use another output folder"):
        open_store_for_writing(tmp_path, manifest, overwrite=overwrite)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_parts_without_a_manifest_are_refused_until_discarded(interrupted, manifest):
    (interrupted / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"holds parts and no manifest.json"):
        open_store_for_writing(interrupted, manifest)
    with open_store_for_writing(interrupted, manifest, overwrite=True) as session:
        assert session.discarded is not None


def test_a_start_that_was_interrupted_before_the_manifest_is_a_new_store(tmp_path, manifest):
    for name in ("store.lock", "manifest.json.tmp", "errors.jsonl", "basis.npy"):
        (tmp_path / name).touch()
    with open_store_for_writing(tmp_path, manifest, basis=np.eye(2)) as session:
        assert session.run == 1
    assert verify(tmp_path).damaged == ()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / f"{STEM}.tar").unlink(), "its tar is missing"),
        (lambda folder: (folder / f"{STEM}.jsonl").unlink(), "it has no journal"),
        (lambda folder: os.truncate(folder / f"{STEM}.tar", 5000), "its tar has 5000 bytes where the journal says"),
        (lambda folder: os.truncate(folder / f"{STEM}.jsonl", 300), "line 2 of its journal is damaged"),
        (lambda folder: shutil.copy(folder / f"{STEM}.tar", folder / f"{STEM}.tar.partial"), "it is there twice"),
    ],
)
def test_a_damaged_sealed_part_is_refused_and_never_cut(tmp_path, write_store, manifest, damage, message):
    folder = write_store(tmp_path / "store", ["a", "b", "c"])
    damage(folder)
    files = {path.name: path.stat().st_size for path in folder.glob("part-*")}
    with pytest.raises(StoreError, match=f"is damaged in {STEM}: {message}.*remove its .tar and .jsonl"):
        open_store_for_writing(folder, manifest)
    assert {path.name: path.stat().st_size for path in folder.glob("part-*")} == files
    for path in folder.glob("part-*"):  # what the message says to do
        path.unlink()
    with open_store_for_writing(folder, manifest) as session:
        assert session.done == frozenset()


@pytest.mark.parametrize("bad", [{}, {"identity": 3}])
def test_a_manifest_without_identity_is_refused(tmp_path, bad):
    with pytest.raises(InputError, match="the manifest has no mapping 'identity'"):
        open_store_for_writing(tmp_path / "store", bad)
    assert not (tmp_path / "store").exists()


def test_a_manifest_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(InputError, match="the manifest cannot be written as JSON"):
        open_store_for_writing(tmp_path / "store", {"identity": {"a": float("nan")}})


def test_a_basis_that_is_no_matrix_is_refused(tmp_path, manifest):
    with pytest.raises(InputError, match=r"the basis of shape \(3,\) is refused"):
        open_store_for_writing(tmp_path / "store", manifest, basis=np.zeros(3))
