"""A plain folder, with a table and without, and what all conversions share."""

import hashlib
import io
import json
import os
import stat
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapstack.errors import ConfigError, ShardError
from tests.datasets.trees import all_bytes, convert, failures, infos, picture, put, samples, summary, table
from tests.picture_files import raw_png
from train_like.datasets.rows import key_of
from train_like.index import expand_shards, index_shards

COLUMNS = {"path": "file", "id": "uid", "labels": "findings", "report": "text", "split": "part", "view": "projection"}
HEADER = ("file", "uid", "findings", "text", "part", "projection")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten pictures, two of them frontal in the test split; one file of the table is absent, one row comes twice."""
    rows = []
    for number in range(10):
        suffix = "png" if number % 2 else "jpg"
        put(tmp_path / "data" / "in" / f"{number}.{suffix}", picture(number, 30 + number, 40, suffix))
        labels = ["", "Edema", "Edema|Pneumonia", "Edema | Edema"][number % 4]
        rows.append((f"in/{number}.{suffix}", f"1.2.{number}", labels, f"Text, {number}.\nEnd.", "test", "PA"))
    rows.append(rows[3])
    rows.append(("in/absent.png", "1.2.99", "Edema", "", "test", "PA"))
    rows.append(("in/0.jpg", "1.3.0", "", "", "train", "LATERAL"))
    table(tmp_path / "data" / "table.csv", HEADER, rows)
    return tmp_path / "data"


def settings(folder: Path, **changes: object) -> dict[str, object]:
    return {"root": str(folder), "table": str(folder / "table.csv"), "columns": COLUMNS, **changes}


def test_each_row_becomes_a_sample(root: Path, tmp_path: Path) -> None:
    result = convert(tmp_path / "out", "folder", settings(root))
    assert (result.code, result.summary["expected"], result.summary["samples"], result.summary["failed"]) == (
        1,
        11,
        10,
        1,
    )
    told = infos(tmp_path / "out")
    assert {info["id"] for info in told.values()} == {f"1.2.{number}" for number in range(10)}
    assert all(key == key_of(info["id"]) for key, info in told.items())
    for key, members in samples(tmp_path / "out").items():
        number = int(told[key]["id"].split(".")[-1])
        suffix = "png" if number % 2 else "jpg"
        assert members[suffix] == (root / "in" / f"{number}.{suffix}").read_bytes()
        assert told[key]["sha256"] == hashlib.sha256(members[suffix]).hexdigest()
        assert told[key]["report"] == f"Text, {number}.\nEnd."
    assert told[key_of("1.2.2")]["labels"] == ["Edema", "Pneumonia"]
    assert told[key_of("1.2.3")]["labels"] == ["Edema"]
    assert "file is absent" in failures(tmp_path / "out")["1.2.99"]


def test_the_job_reads_what_was_written(root: Path, tmp_path: Path) -> None:
    result = convert(tmp_path / "out", "folder", settings(root))
    index = index_shards(expand_shards(result.summary["shards"]))
    assert len(index.entries) == 10
    assert index.problems == ()


def test_the_summary_counts(root: Path, tmp_path: Path) -> None:
    convert(tmp_path / "out", "folder", settings(root, terms="Mine."))
    told = summary(tmp_path / "out")
    assert (told["listed"], told["samples"], told["failed"], told["terms"]) == (12, 10, 1, "Mine.")
    assert told["left_out"] == {"of another view": 1}
    assert told["notes"] == {"rows that repeat another (joined)": 1}
    assert told["labels"]["Edema"] == {
        "positive": 7,
        "uncertain": 0,
        "negative": 0,
        "boxes": 0,
        "masks": 0,
        "positive_share": 0.7,
    }
    assert told["labels"]["Pneumonia"]["positive"] == 2
    assert told["height_px"] == {"least": 30, "median": 34, "most": 39}
    assert told["splits"] == {"test": 10}
    assert told["reports"] == 10
    assert told["picture_bytes"] == sum(path.stat().st_size for path in (root / "in").iterdir())
    assert [shard["samples"] for shard in told["shards"]] == [4, 4, 2]


def test_boxes_and_sentences_of_one_picture_are_joined(tmp_path: Path) -> None:
    put(tmp_path / "a.b.png", picture(1, 50, 40, "png"))
    table(
        tmp_path / "boxes.csv",
        ("p", "l", "t", "x", "y", "w", "h"),
        [
            ("a.b.png", "Edema", "Edema at the left base.", 3.5, 10.6, 5.2, 6.1),
            ("a.b.png", "Nodule", "", 30, 40, 100, 100),
            ("a.b.png", "Nodule", "", 300, 40, 100, 100),
            ("a.b.png", "", "", "", "", "", ""),
        ],
    )
    columns = {"path": "p", "label": "l", "prompt": "t", "x": "x", "y": "y", "width": "w", "height": "h"}
    dataset = {"root": str(tmp_path), "table": str(tmp_path / "boxes.csv"), "columns": columns}
    assert convert(tmp_path / "out", "folder", dataset).code == 0
    (info,) = infos(tmp_path / "out").values()
    assert info["findings"] == [
        {"label": "Edema", "prompt": "Edema at the left base.", "box": [10, 3, 17, 9]},
        {"label": "Nodule", "box": [40, 30, 50, 40]},
        {"label": "Nodule"},
    ]
    assert info["labels"] == ["Edema", "Nodule"]
    assert info["id"] == "a.b"
    assert summary(tmp_path / "out")["notes"] == {"boxes that lie outside their picture (left out)": 1}


def test_a_folder_without_a_table_gives_every_picture(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.5.png", "b/1.png"):
        put(tmp_path / "in" / name, picture(hash(name) % 100, suffix="png"))
    put(tmp_path / "in" / "notes.txt", "no picture")
    convert(tmp_path / "out", "folder", {"root": str(tmp_path / "in")})
    assert [info["id"] for info in infos(tmp_path / "out").values()] == ["a/1.5", "b/1", "b/2"]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_second_run_changes_no_byte_and_works_on_nothing(root: Path, tmp_path: Path, n_workers: int) -> None:
    convert(tmp_path / "out", "folder", settings(root), n_workers=n_workers)
    first = all_bytes(tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    convert(tmp_path / "out", "folder", settings(root), n_workers=n_workers)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == written
    convert(tmp_path / "again", "folder", settings(root), n_workers=3 - n_workers)
    assert all_bytes(tmp_path / "out") == first
    assert all_bytes(tmp_path / "again") == first


def test_only_owner_and_group_can_read(root: Path, tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        forkserver.ensure_running()  # which the processes that write are forked from
        convert(tmp_path / "out", "folder", settings(root), n_workers=2)
    finally:
        assert os.umask(previous) == 0o022
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0, path


def test_a_random_choice_is_the_seeds_and_stays_when_the_table_grows(root: Path, tmp_path: Path) -> None:
    def chosen(name: str, seed: int) -> set[str]:
        dataset = settings(root, absent="leave_out")
        convert(tmp_path / name, "folder", dataset, n_samples=5, seed=seed)
        return {info["id"] for info in infos(tmp_path / name).values()}

    first = chosen("a", 0)
    assert len(first) == 5
    assert chosen("b", 0) == first
    assert any(chosen(f"seed{seed}", seed) != first for seed in (1, 2, 3))
    put(root / "in" / "new.png", picture(77, suffix="png"))
    header, *rows = (root / "table.csv").read_text().split("\n", 1)
    (root / "table.csv").write_text("\n".join([header, "in/new.png,1.2.100,,,test,PA", *rows]))
    assert len(chosen("c", 0) & first) >= 4
    told = summary(tmp_path / "a")
    assert told["left_out"]["not drawn at random"] == 5
    assert told["left_out"]["whose file is absent"] == 1


def test_another_selection_is_refused_and_overwrite_replaces_it(root: Path, tmp_path: Path) -> None:
    convert(tmp_path / "out", "folder", settings(root))
    with pytest.raises(ShardError, match="holds shards that were made otherwise"):
        convert(tmp_path / "out", "folder", settings(root), n_samples=2)
    convert(tmp_path / "out", "folder", settings(root), n_samples=2, overwrite=True)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1
    convert(tmp_path / "alone", "folder", settings(root), n_samples=2)
    assert all_bytes(tmp_path / "alone") == all_bytes(tmp_path / "out")


def test_labels_are_renamed_dropped_and_decided(root: Path, tmp_path: Path) -> None:
    rename = {"Edema": "Lung Opacity", "Pneumonia": ""}
    convert(tmp_path / "out", "folder", settings(root, rename=rename))
    assert infos(tmp_path / "out")[key_of("1.2.2")]["labels"] == ["Lung Opacity"]


def test_what_is_no_picture_is_named_and_the_rest_is_written(tmp_path: Path) -> None:
    whole = picture(1, suffix="jpg")
    bad = {"cut": whole[:-400], "empty": b"", "page": b"<!DOCTYPE html><title>Log in</title>"}
    flipped = bytearray(picture(2, suffix="png"))
    flipped[100] ^= 1
    bad["flipped"] = bytes(flipped)
    for name, content in {**bad, "good": whole}.items():
        put(tmp_path / "in" / f"{name}.jpg", content)
    assert convert(tmp_path / "out", "folder", {"root": str(tmp_path / "in")}).code == 1
    assert list(samples(tmp_path / "out")) == ["good"]
    reasons = failures(tmp_path / "out")
    assert reasons.keys() == bad.keys()
    assert "cannot be decoded" in reasons["cut"]
    assert "cannot be decoded" in reasons["flipped"]
    assert "file is empty" in reasons["empty"]
    assert "has the format HTML or XML" in reasons["page"]


def test_decoding_finds_what_the_header_hides(tmp_path: Path) -> None:
    put(tmp_path / "in" / "short.png", raw_png(100, 100, 8, 0, b"\0\0"))  # sound chunks, two of its 10,100 bytes
    put(tmp_path / "in" / "good.jpg", picture(1))
    convert(tmp_path / "quick", "folder", {"root": str(tmp_path / "in")})
    assert failures(tmp_path / "quick") == {}
    convert(tmp_path / "slow", "folder", {"root": str(tmp_path / "in"), "check": "decode"})
    assert failures(tmp_path / "slow").keys() == {"short"}


def test_the_list_of_files_is_what_a_download_needs(root: Path, tmp_path: Path) -> None:
    result = convert(tmp_path / "out", "folder", settings(root), n_samples=3, list_files=True)
    names = Path(result.summary["files"]).read_text().splitlines()
    convert(tmp_path / "shards", "folder", settings(root), n_samples=3)
    wanted = {info["id"] for info in infos(tmp_path / "shards").values()} | set(failures(tmp_path / "shards"))
    assert len(names) == 3
    assert {f"1.2.{name.split('/')[1].split('.')[0]}".replace("absent", "99") for name in names} == wanted
    assert not list((tmp_path / "out").glob("*.tar"))


def test_the_contact_sheet_shows_boxes(tmp_path: Path) -> None:
    grey = np.full((100, 100), 90, np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "png")
    put(tmp_path / "in" / "a.png", file.getvalue())
    table(tmp_path / "t.csv", ("p", "l", "x", "y", "w", "h"), [("a.png", "Edema", 20, 30, 40, 50)])
    columns = {"path": "p", "label": "l", "x": "x", "y": "y", "width": "w", "height": "h"}
    dataset = {"root": str(tmp_path / "in"), "table": str(tmp_path / "t.csv"), "columns": columns}
    convert(tmp_path / "out", "folder", dataset)
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png").convert("RGB")).astype(int)
    tile = sheet[8 : 8 + 256, 8 : 8 + 256]
    coloured = np.abs(tile - tile.mean(axis=2, keepdims=True)).max(axis=2) > 30
    rows, columns_ = np.nonzero(coloured)
    assert abs(rows.min() - 0.30 * 256) < 2
    assert abs(rows.max() - 0.80 * 256) < 2
    assert abs(columns_.min() - 0.20 * 256) < 2
    assert abs(columns_.max() - 0.60 * 256) < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "nowhere"}, "dataset.root 'nowhere' is not there; it is the folder of the dataset"),
        ({"root": ""}, "dataset.root is empty; it is the folder of the dataset; set it"),
        ({"images": __file__}, r"dataset.images '.*' is a file; it is the folder of the dataset"),
        ({"table": None}, "dataset.columns is set and dataset.table is not"),
        ({"columns": {"labels": "findings"}}, "dataset.columns names no path"),
        ({"columns": {"path": "file", "x": "uid"}}, "dataset.columns names x of a box; a box has x, y, width, height"),
        (
            {"columns": {"path": "filename"}},
            "dataset.columns.path is 'filename', which table .* lacks: .*Did you mean 'file'",
        ),
        ({"splits": ["valid"]}, r"split 'valid' is none of the dataset's \(test, train\)"),
    ],
)
def test_wrong_settings_are_refused(root: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, ShardError), match=message):
        convert(tmp_path / "out", "folder", settings(root, **changes))


def test_a_table_may_not_lead_out_of_its_folder(root: Path, tmp_path: Path) -> None:
    for name in ("../secret.png", "/etc/passwd"):
        table(root / "table.csv", HEADER, [(name, "x", "", "", "test", "PA")])
        with pytest.raises(ShardError, match="names a picture outside dataset.root"):
            convert(tmp_path / "out", "folder", settings(root))


def test_a_phantom_takes_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source is 'phantom', which has no files"):
        convert(tmp_path / "out", "phantom", {"root": str(tmp_path)})
    assert json.dumps(convert(tmp_path / "out", "phantom", {}, n_samples=2, size=224).summary["samples"]) == "2"


def test_more_samples_than_there_are_is_noted(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(tmp_path / "out", "folder", settings(root), n_samples=20)
    assert summary(tmp_path / "out")["notes"]["samples fewer than n_samples (all are taken)"] == 9
    told = capsys.readouterr().err.splitlines()
    assert "left out: 1 of another view" in told
    assert "failed: 1 file is absent; the table lists it; fetch it, or set dataset.absent=leave_out." in told
    assert "note: 9 samples fewer than n_samples (all are taken)" in told


@pytest.mark.parametrize("list_files", [False, True])
def test_an_output_that_cannot_be_written_is_named(root: Path, tmp_path: Path, list_files: bool) -> None:
    put(tmp_path / "file", "")
    with pytest.raises(
        ShardError, match=r"folder '.*file/out' cannot be written \(Not a directory\); .* choose another"
    ):
        convert(tmp_path / "file" / "out", "folder", settings(root), list_files=list_files)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(root: Path, tmp_path: Path) -> None:
    (root / "table.csv").chmod(0)
    with pytest.raises(ShardError, match=r"table '.*table.csv' cannot be read \(Permission denied\); .* permissions"):
        convert(tmp_path / "out", "folder", settings(root))
    root.chmod(0)
    try:
        with pytest.raises(ShardError, match=r"cannot be read \(Permission denied\); .* mend their permissions"):
            convert(tmp_path / "out", "folder", settings(root / "in"))
    finally:
        root.chmod(0o700)
