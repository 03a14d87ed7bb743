"""What the walk-throughs show is what the commands take."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from mapstack.config_files import load_config
from mapstack.job_configs import ShardsConfig
from train_like.cli import _COMMANDS
from train_like.datasets.tables import MIMIC_CLASSES

ROOT = Path(__file__).parents[2]
PAGES = ("mimic_cxr", "chexlocalize")
LINES = [
    line.removeprefix("python -m train_like ")
    for page in PAGES
    for line in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("python -m train_like ")
]


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_walk_throughs_is_taken(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(line)
    schema = _COMMANDS[name][1]
    if schema is None:
        assert len(arguments) == 1
        return
    file, dataclass = schema.split(":")
    config = load_config(getattr(import_module(f"mapstack.{file}"), dataclass), arguments[0], arguments[1:])
    if isinstance(config, ShardsConfig):
        assert config.source != "phantom"


def test_the_walk_throughs_have_commands() -> None:
    assert len(LINES) >= 14


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_walk_through_names_exists(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:docs|configs|mapstack)/[\w/]+\.(?:md|yaml|py)", text):
        assert (ROOT / name).is_file(), name


def test_shipped_renamings_lead_to_known_classes() -> None:
    for path in (ROOT / "configs").glob("*_shards.yaml"):
        config = load_config(ShardsConfig, path)
        assert set(config.dataset.rename.values()) <= set(MIMIC_CLASSES), path.name
