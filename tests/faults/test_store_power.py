import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mapstack.store import open_store_for_writing
from mapstack.store.disk import FILE_MODE, sync_folder, write_all
from tests.faults.power import Died, Event, Recorder, State, after_power_cut
from tests.faults.recording import Call, Watch
from tests.faults.store_job import BASIS, COMPLETE, MANIFEST, SAMPLES, faults_after, record_digests, run_job

STORE = Path("archive", "store")  # neither folder is there before the job
SHARES_KEPT = (0.0, 0.2, 0.5, 0.8, 1.0)
History = tuple[list[Event], int]  # what was called, and after how many of those the power may fail


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch) -> None:
    # What is durable is for the model of the disk to say.
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, str]:
    run_job(tmp_path / "clean")
    return record_digests(tmp_path / "clean")


def empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def record(root: Path, is_skipped: Callable[[Call], bool] = lambda call: False) -> History:
    """A job that nothing interrupts."""
    recorder = Recorder(is_skipped)
    with Watch(empty(root), recorder):
        run_job(root / STORE, recorder.acknowledge)
    return recorder.events, 0


def record_killed(root: Path, n_events: int) -> History:
    """A job that is killed and started again, which finds files that nobody made durable; the power fails later."""
    recorder = Recorder()
    watch = Watch(empty(root), recorder)
    recorder.die_at(n_events)
    with watch, suppress(Died):
        run_job(root / STORE, recorder.acknowledge)
    recorder.die_at(None)
    with watch:
        run_job(root / STORE, recorder.acknowledge)
    return recorder.events, n_events


def record_resumed(root: Path, state: State) -> History:
    """A job that resumes what a power cut left, and meets a second one."""
    recorder = Recorder()
    with Watch(empty(root), recorder):
        state.write(root)
        # A store that is opened again is not complete until it is finished again.
        for key in sorted(state.acknowledged - {COMPLETE}):
            recorder.acknowledge(key)
        n_events = len(recorder.events)
        run_job(root / STORE, recorder.acknowledge)
    return recorder.events, n_events


def choose_cut(events: list[Event], n_first: int, rng: random.Random) -> int:
    """Choose the number of events before the cut; each call of each file as often, though most write into a tar."""
    kinds = [(event.name, event.path) if isinstance(event, Call) else ("", "") for event in events[n_first:]]
    kinds.append(("end", ""))
    chosen = rng.choice(sorted(set(kinds)))
    return rng.choice([n_first + index for index, kind in enumerate(kinds) if kind == chosen])


def states(histories: Sequence[History], n_states: int) -> Iterator[State]:
    """So many states, all different, that the disk may hold when the power fails somewhere in one of the histories.

    The first are those at the end of each history with next to nothing kept that no fsync covers.
    """
    seen = set()
    for seed in itertools.count():
        assert seed < 100 * n_states, "the histories do not lead to so many states"
        rng = random.Random(seed)
        if seed < len(histories):
            state = after_power_cut(histories[seed][0], 0.0, rng)
        else:
            events, n_first = rng.choice(histories)
            state = after_power_cut(events[: choose_cut(events, n_first, rng)], rng.choice(SHARES_KEPT), rng)
        if state.fingerprint() not in seen:
            seen.add(state.fingerprint())
            yield state
        if len(seen) == n_states:
            return


def bad_states(histories: Sequence[History], n_states: int, root: Path, clean: dict[str, str]) -> list[list[str]]:
    """What is wrong with each state that is not survived."""
    found = []
    for state in states(histories, n_states):
        state.write(empty(root))
        found.append(faults_after(root / STORE, state.acknowledged, clean))
    return [faults for faults in found if faults]


def test_the_model_holds_what_a_disk_holds_when_nothing_is_lost(tmp_path: Path):
    events, _ = record(tmp_path / "store")
    state = after_power_cut(events, 1.0, random.Random(0))
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "store")): path.read_bytes() for path in files} == state.files
    assert state.acknowledged > set(SAMPLES)


def test_the_model_keeps_what_an_fsync_covers_and_no_more(tmp_path: Path):
    recorder = Recorder()
    with Watch(tmp_path, recorder):
        for name in ("named", "unnamed"):
            fd = os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT)
            os.write(fd, b"kept")
            os.fsync(fd)
            os.write(fd, b"lost")
            os.close(fd)
            if name == "named":
                sync_folder(tmp_path)
        os.rename(tmp_path / "named", tmp_path / "renamed")
    cuts = [after_power_cut(recorder.events, 0.5, random.Random(seed)).files for seed in range(200)]
    assert {frozenset(files) for files in cuts} == {
        frozenset(names) for names in (["named"], ["renamed"], ["named", "unnamed"], ["renamed", "unnamed"])
    }
    contents = {content for files in cuts for content in files.values()}
    assert contents >= {b"kept", b"keptlost", b"kept\0\0\0\0"}
    assert all(content.startswith(b"kept") for content in contents)


@pytest.mark.fault("W2")
def test_no_power_cut_loses_or_tears_a_record(tmp_path: Path, clean, campaign, figure):
    n_states = campaign(240, 5000)
    bad = bad_states([record(tmp_path / "recorded")], n_states, tmp_path / "state", clean)
    figure(f"power cut: {n_states} states, {len(bad)} bad")
    assert bad == []


@pytest.mark.fault("W2")
def test_a_power_cut_after_a_kill_loses_nothing(tmp_path: Path, clean, campaign, figure):
    n_states = campaign(200, 3000)
    events, _ = record(tmp_path / "recorded")
    histories = [record_killed(tmp_path / "recorded", n_events) for n_events in range(len(events))]
    bad = bad_states(histories, n_states, tmp_path / "state", clean)
    figure(f"kill, start again, power cut: {n_states} states, {len(bad)} bad")
    assert bad == []


@pytest.mark.fault("W2")
def test_a_second_power_cut_loses_nothing(tmp_path: Path, clean, campaign, figure):
    n_states = campaign(120, 3000)
    first = list(states([record(tmp_path / "recorded")], campaign(40, 400)))
    histories = [record_resumed(tmp_path / "recorded", state) for state in first]
    bad = bad_states(histories, n_states, tmp_path / "state", clean)
    figure(f"power cut, start again, power cut: {n_states} states, {len(bad)} bad")
    assert bad == []


@pytest.mark.fault("W2")
def test_a_power_cut_while_a_store_is_discarded_leaves_nothing_that_calls_itself_complete(
    tmp_path: Path, clean, campaign, figure
):
    n_states = campaign(40, 400)
    complete = after_power_cut(record(tmp_path / "recorded")[0], 1.0, random.Random(0))
    recorder = Recorder()
    with Watch(empty(tmp_path / "recorded"), recorder):
        complete.write(tmp_path / "recorded")
        n_events = len(recorder.events)
        open_store_for_writing(tmp_path / "recorded" / STORE, MANIFEST, overwrite=True, basis=BASIS).close()
    assert sum(event.name == "unlink" for event in recorder.events if isinstance(event, Call)) >= 6
    n_refused = 0
    for state in states([(recorder.events, n_events)], n_states):
        state.write(empty(tmp_path / "state"))
        # Begun again without `overwrite`, it is refused, or goes on with what is left.
        faults = faults_after(tmp_path / "state" / STORE, (), clean)
        n_refused += bool(faults)
        assert not faults or faults[0].startswith("StoreError: ")
        open_store_for_writing(tmp_path / "state" / STORE, MANIFEST, overwrite=True, basis=BASIS).close()
        assert faults_after(tmp_path / "state" / STORE, (), clean) == []
    figure(f"power cut while discarding: {n_states} states, 0 bad, {n_refused} refused until discarded again")


def write_in_place(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    write_all(fd, [content])
    os.fsync(fd)
    os.close(fd)
    sync_folder(path.parent)


def commit_journal_first(part: Any) -> None:
    if part._pending:
        tar, journal = part._fds
        write_all(journal, [b"".join(part._pending)])
        os.fsync(journal)
        os.fsync(tar)
        part._pending.clear()


JOURNAL_FIRST = {"writer._OpenPart.commit": commit_journal_first}
IN_PLACE = {f"{room}.write_atomic": write_in_place for room in ("session", "manifest", "failures")}


@pytest.mark.fault("W2")
@pytest.mark.parametrize(
    ("mistake", "skipped", "patches"),
    [
        ("no fsync", "fsync", {}),
        ("no fsync of the folder", "fsync_folder", {}),
        ("journal before data", "", JOURNAL_FIRST),
        ("in place", "", IN_PLACE),
        ("journal before data and in place", "", {**JOURNAL_FIRST, **IN_PLACE}),
        ("journal before data and no fsync", "fsync", JOURNAL_FIRST),
    ],
)
def test_the_campaign_catches_a_writer_with(
    mistake, skipped, patches, tmp_path: Path, clean, campaign, figure, monkeypatch
):
    n_states = campaign(120, 1000)
    with monkeypatch.context() as patch:
        for name, replacement in patches.items():
            patch.setattr(f"mapstack.store.{name}", replacement)
        history = record(tmp_path / "recorded", is_skipped=lambda call: call.name == skipped)
    n_bad = len(bad_states([history], n_states, tmp_path / "state", clean))
    figure(f"seeded mistake, {mistake}: {n_bad} of {n_states} states bad")
    assert n_bad > 0
