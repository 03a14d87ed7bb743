"""docs/stack_format.md names every field of what the job writes, and none that it does not."""

import json
import re
from pathlib import Path

import pytest

from mapstack.store import Store
from tests.train_like.jobs import samples, write_shard
from train_like.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "stack_format.md").read_text(encoding="utf-8")
CONFIG = """
model: {{name: medclip-vit, checkpoint: {checkpoint}}}
data: {{shards: "{folder}/two.tar", num_workers: 0}}
method: {{name: integrated_gradients, n_steps: auto, max_steps: 2}}
stack: {{basis: prompts, basis_tolerance: 0.5, map_size: 28}}
prompts: {{texts: [left lung, right heart]}}
output: {folder}/store
trainer: {{accelerator: cpu, devices: 1}}
"""


@pytest.fixture(scope="module")
def folder(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one record, which says all that a record can say, and one failure."""
    folder = tmp_path_factory.mktemp("page")
    write_shard(folder / "two.tar", [*samples(1), ("broken", {"png": b"no picture", "json": b"{}"})])
    (folder / "job.yaml").write_text(CONFIG.format(checkpoint=small_checkpoint, folder=folder), encoding="utf-8")
    assert main(["extract", str(folder / "job.yaml")]) == 1
    return folder / "store"


def described(title: str) -> set[str]:
    """Return the names in the first column of a table."""
    table = re.search(rf"^\| {re.escape(title)} \| is \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None
    return {name for row in table[1].splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def described_of(file: str) -> set[str]:
    """Return the names in the row of a file."""
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{file}`"))
    return set(re.findall(r"`(\w+)`", row.split("|")[2]))


def test_the_manifest_is_described(folder: Path) -> None:
    manifest = Store(folder).manifest
    assert described("field") == manifest.keys()
    assert described("field of `identity`") == manifest["identity"].keys()
    (totals,) = re.findall(r"^\| `totals` \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", totals)) == manifest["totals"].keys()


def test_the_json_of_a_record_is_described(folder: Path) -> None:
    (record,) = Store(folder)
    assert described("field of `KEY.json`") == {"key", *record.info}
    (geometry,) = re.findall(r"^\| `geometry` \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", geometry)) == record.info["geometry"].keys()


def test_the_files_and_their_lines_are_described(folder: Path) -> None:
    (journal,) = folder.glob("part-*.jsonl")
    for path, file in ((journal, "part-RUN-RANK-NUMBER.jsonl"), (folder / "errors.jsonl", "errors.jsonl")):
        (line,) = path.read_text(encoding="ascii").splitlines()
        assert described_of(file) == json.loads(line).keys()
    written = {re.sub(r"^part(-\d{4}){3}", "part-RUN-RANK-NUMBER", path.name) for path in folder.iterdir()}
    table = PAGE.split("| file | holds |")[1].split("\n\n")[0]
    assert written == set(re.findall(r"^\| `([\w.-]+)` \|", table, re.MULTILINE))
