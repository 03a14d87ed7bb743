"""Scores on disk: what a kill tore is done again, and scores of two configurations never meet."""

from pathlib import Path

import pytest

from mapstack.errors import StoreError
from train_like.evaluation.journal import Journal

SIGNATURE = {"weights": "ab", "prompts": ["text", None], "seed": 0, "smoothing_px": (0, 6.5)}
SCORES = {"settings": {"gradient|conventional": {"Edema": {"hit": 1.0, "ious": [0.1, None]}}}}


def opened(folder: Path, *, overwrite: bool = False, **changes: object) -> Journal:
    return Journal(folder, SIGNATURE | changes, overwrite=overwrite)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Three pictures in two stages."""
    made = opened(tmp_path / "new" / "evaluation")
    for stage, key in (("tune", "a"), ("tune", "b"), ("localise", "a")):
        made.add(stage, key, f"digest of {key}", SCORES | {"key": f"{stage} {key}"})
    return made


@pytest.fixture
def lines(journal: Journal, tmp_path: Path) -> Path:
    return tmp_path / "new" / "evaluation" / "scores.jsonl"


def test_what_was_added_is_there_at_once_and_after_opening_again(journal: Journal, lines: Path) -> None:
    before = lines.read_bytes()
    for each in (journal, opened(lines.parent)):
        assert list(each.stage("tune")) == ["a", "b"]
        assert each.stage("tune")["b"] == SCORES | {"key": "tune b"}
        assert each.stage("localise") == {"a": SCORES | {"key": "localise a"}}
        assert each.stage("matrix") == {}
    assert lines.read_bytes() == before  # a second run that has nothing to do writes nothing


def test_another_picture_of_the_same_key_is_scored_anew(journal: Journal, lines: Path) -> None:
    for each in (journal, opened(lines.parent)):
        assert each.holds("tune", "b", "digest of b")
        assert not each.holds("tune", "b", "digest of a")
        assert not each.holds("tune", "c", "digest of c")
        assert not each.holds("matrix", "b", "digest of b")
    journal.add("tune", "b", "another digest", {"new": 1})
    for each in (journal, opened(lines.parent)):
        assert each.holds("tune", "b", "another digest")
        assert not each.holds("tune", "b", "digest of b")
        assert each.stage("tune")["b"] == {"new": 1}
        assert list(each.stage("tune")) == ["a", "b"]


@pytest.mark.parametrize("n_bytes_lost", [1, 2, 20, 100])
def test_a_torn_last_line_is_cut_off_and_its_picture_done_again(
    journal: Journal, lines: Path, n_bytes_lost: int
) -> None:
    whole = lines.read_bytes()
    lines.write_bytes(whole[:-n_bytes_lost])
    again = opened(lines.parent)
    assert list(again.stage("tune")) == ["a", "b"]
    assert again.stage("localise") == {}
    assert lines.read_bytes() == whole[: whole[:-1].rindex(b"\n") + 1]
    again.add("localise", "a", "digest of a", SCORES | {"key": "localise a"})
    assert lines.read_bytes() == whole


def test_a_damaged_line_takes_all_after_it_along(journal: Journal, lines: Path) -> None:
    head, first, *rest = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(head + first.replace(b'"hit":1.0', b'"hit":0.0') + b"".join(rest))
    again = opened(lines.parent)
    assert (again.stage("tune"), again.stage("localise")) == ({}, {})
    assert lines.read_bytes() == head


def test_a_journal_torn_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    opened(tmp_path)
    whole = (tmp_path / "scores.jsonl").read_bytes()
    (tmp_path / "scores.jsonl").write_bytes(whole[:10])
    assert opened(tmp_path, seed=1).stage("tune") == {}
    assert (tmp_path / "scores.jsonl").read_bytes() != whole
    with pytest.raises(StoreError):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("weights", "cd"), ("prompts", ["text", "normal"]), ("seed", 1), ("smoothing_px", (0,))]
)
def test_another_signature_is_refused_by_name_and_nothing_is_lost(
    journal: Journal, lines: Path, name: str, value: object
) -> None:
    before = lines.read_bytes()
    sentence = f"evaluation '{lines.parent}' was made with another {name}; scores of one evaluation belong to one"
    with pytest.raises(StoreError) as refusal:
        opened(lines.parent, **{name: value})
    assert str(refusal.value).startswith(sentence)
    assert str(refusal.value).endswith("use another output, or overwrite=true to discard it.")
    assert lines.read_bytes() == before


def test_overwrite_discards_what_is_there(journal: Journal, lines: Path) -> None:
    other = opened(lines.parent, overwrite=True, seed=1)
    assert other.stage("tune") == {}
    other.add("tune", "c", "digest of c", {})
    assert list(opened(lines.parent, seed=1).stage("tune")) == ["c"]
