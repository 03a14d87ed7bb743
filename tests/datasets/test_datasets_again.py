"""Every converter on its tree: the same bytes however often it is begun, and its flaws named."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.datasets import mimic_trees, other_trees
from tests.datasets.trees import all_bytes, convert, failures, infos, picture, put, summary, table

ROOT = Path(__file__).parents[2]
REPEATS_ID = "rows that repeat an identifier (the first is taken)"
JOINED = "rows that repeat another (joined)"
STUDIES = "studies that the labeller's table holds again (the first row is taken)"


@dataclass(frozen=True)
class Tree:
    """A dataset on disk, every one with a row that comes twice and a row whose file is absent.

    Attributes:
        source: Which converter reads it.
        dataset: Its configuration.
        absent: The identifier of the row without a file.
        repeats: The notes of dataset.json on rows that come twice.
    """

    source: str
    dataset: dict[str, Any]
    absent: str
    repeats: dict[str, int]


def mimic_cxr(folder: Path) -> Tree:
    root = folder / "mimic-cxr-jpg"
    mimic_trees.write_tables(root, [*mimic_trees.PICTURES, mimic_trees.PICTURES[0]], ".gz")
    mimic_trees.write_pictures(root)
    reports = mimic_trees.reports_zip(folder / "mimic-cxr-reports.zip")
    dataset = {"root": str(root), "reports": str(reports), "views": "all"}
    return Tree("mimic_cxr", dataset, mimic_trees.ABSENT, {REPEATS_ID: 1, STUDIES: 1})


def mimic_cxr_dicom(folder: Path) -> Tree:
    mimic_trees.write_tables(folder / "jpg", [*mimic_trees.PICTURES, mimic_trees.PICTURES[0]], ".gz")
    mimic_trees.write_dicom_files(folder / "dicom")
    dataset = {"root": str(folder / "jpg"), "images": str(folder / "dicom"), "image_suffix": "dcm", "views": "all"}
    return Tree("mimic_cxr", dataset, mimic_trees.ABSENT, {REPEATS_ID: 1, STUDIES: 1})


def ms_cxr(folder: Path) -> Tree:
    mimic_trees.write_pictures(folder / "jpg")
    mimic_trees.ms_cxr(folder / "ms-cxr")
    dataset = {"root": str(folder / "ms-cxr"), "images": str(folder / "jpg")}
    return Tree("ms_cxr", dataset, mimic_trees.ABSENT, {JOINED: 1})


def chexpert(folder: Path) -> Tree:
    root = folder / "CheXpert-v1.0"
    other_trees.chexpert(root, quirks=True)
    return Tree("chexpert", {"root": str(root), "views": "all"}, other_trees.ABSENT["chexpert"], {REPEATS_ID: 1})


def chexlocalize(folder: Path) -> Tree:
    other_trees.chexlocalize(folder, quirks=True)
    return Tree("chexpert", {"root": str(folder)}, other_trees.ABSENT["chexlocalize"], {REPEATS_ID: 1})


def nih(folder: Path) -> Tree:
    other_trees.nih(folder, in_twelve=True, quirks=True)
    return Tree("nih", {"root": str(folder)}, other_trees.ABSENT["nih"], {REPEATS_ID: 1, JOINED: 1})


def vindr(folder: Path) -> Tree:
    other_trees.vindr(folder, quirks=True)
    dataset = {"root": str(folder), "accept_burned_in": True}
    return Tree("vindr", dataset, other_trees.ABSENT["vindr"], {JOINED: 2})


def rsna(folder: Path) -> Tree:
    other_trees.rsna(folder, quirks=True)
    return Tree("rsna", {"root": str(folder), "accept_burned_in": True}, other_trees.ABSENT["rsna"], {JOINED: 2})


def plain(folder: Path) -> Tree:
    rows = [(f"in/{number}.png", f"1.2.{number}", "Edema", "A text.") for number in range(5)]
    for number, (name, *_) in enumerate(rows):
        put(folder / name, picture(number, 30 + number, 40, "png"))
    table(folder / "t.csv", ("file", "uid", "labels", "text"), [*rows, rows[3], ("in/9.png", "1.2.9", "", "")])
    columns = {"path": "file", "id": "uid", "labels": "labels", "report": "text"}
    return Tree(
        "folder", {"root": str(folder), "table": str(folder / "t.csv"), "columns": columns}, "1.2.9", {JOINED: 1}
    )


TREES = (mimic_cxr, mimic_cxr_dicom, ms_cxr, chexpert, chexlocalize, nih, vindr, rsna, plain)


@dataclass(frozen=True)
class Made:
    """A tree, and what one run made of it.

    Attributes:
        tree: Of files.
        output: Where its shards are.
        files: Every file there, the records of the shards and dataset.json included.
    """

    tree: Tree
    output: Path
    files: dict[str, bytes]

    def convert(self, output: Path, n_workers: int = 1) -> None:
        assert convert(output, self.tree.source, self.tree.dataset, n_per_shard=2, n_workers=n_workers).code == 1


@pytest.fixture(scope="module", params=TREES, ids=lambda tree: tree.__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    made = Made(request.param(folder / "in"), folder / "out", {})
    made.convert(made.output)
    made.files.update(all_bytes(made.output))
    assert {"dataset.json", "failed.jsonl", "contact_sheet.png", "made-000000.tar"} <= made.files.keys()
    return made


def test_a_row_that_comes_twice_and_an_absent_file_are_named(made: Made) -> None:
    reasons = failures(made.output)
    assert reasons.keys() == {made.tree.absent}
    told = summary(made.output)
    assert told["failed"] == 1
    assert told["failures"] == {reasons[made.tree.absent]: 1}
    assert "file is absent" in reasons[made.tree.absent]
    assert {note: n for note, n in told["notes"].items() if note in (REPEATS_ID, JOINED, STUDIES)} == made.tree.repeats
    assert len(infos(made.output)) == told["samples"] == told["listed"] - 1
    for info in infos(made.output).values():
        boxes = [(each["label"], each.get("reader"), each.get("box")) for each in info.get("findings", ())]
        assert len(boxes) == len({repr(box) for box in boxes})


def test_another_run_leaves_the_same_bytes(made: Made, tmp_path: Path) -> None:
    made.convert(made.output)
    assert all_bytes(made.output) == made.files
    made.convert(tmp_path / "elsewhere", n_workers=2)
    assert all_bytes(tmp_path / "elsewhere") == made.files


def test_after_a_kill_the_next_run_leaves_the_same_bytes(
    made: Made, tmp_path: Path, campaign: Callable[[int, int], int]
) -> None:
    for trial in range(campaign(1, 10)):
        output = tmp_path / f"out{trial}"
        config = tmp_path / "shards.yaml"
        settings = {"source": made.tree.source, "dataset": made.tree.dataset, "output": str(output), "name": "made"}
        config.write_text(yaml.safe_dump({**settings, "n_per_shard": 2, "n_workers": 1}))
        # Every file is opened once and gets its name once.
        number = random.Random(f"{made.tree.absent} {trial}").randrange(2, 2 * len(made.files) + 1)
        command = (sys.executable, "-m", "tests.datasets.killed", str(config), str(output), str(number))
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=250)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert all_bytes(output) != made.files
        made.convert(output)
        assert all_bytes(output) == made.files


def test_what_is_torn_or_lost_afterwards_is_made_again(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name, content in made.files.items():
        put(output / name, content)
    choose = random.Random(made.tree.absent)
    shards, parts = sorted(output.glob("*.tar")), sorted(output.glob(".parts/0*.json"))
    choose.choice(shards).unlink()
    other = choose.choice(parts)
    other.write_bytes(other.read_bytes()[: choose.randrange(20)])
    (output / "dataset.json").unlink()
    (output / "failed.jsonl").write_text("")
    made.convert(output)
    assert all_bytes(output) == made.files
