"""docs/configuration.md tells the default and meaning of every key; what it shows of samples and prompts works."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapstack.baselines import BASELINES
from mapstack.codecs import CODECS
from mapstack.config import DataConfig, ModelConfig, StackConfig, TrainerConfig
from mapstack.config_files import load_config
from mapstack.dataset_configs import COLUMNS, DATASETS, DatasetConfig
from mapstack.images import MEDCLIP
from mapstack.job_configs import ShardsConfig
from mapstack.methods import CaptumMethod, GradientShap, IntegratedGradients, Occlusion
from mapstack.models import MODEL_NAMES, PRECISIONS
from mapstack.phantom import phantom
from mapstack.prompts import load_prompt_set
from mapstack.store import COMPRESSIONS
from tests.packaging.configuration_page import (
    PAGE,
    all_blocks,
    anchor,
    configurations,
    meanings,
    own_meanings,
    split_page,
    tables,
)
from train_like.evaluation.cases import Cases

ROOT = PAGE.parents[1]
TEXT = PAGE.read_text(encoding="utf-8")
MASKS = '    "masks.npz": {"Pleural Effusion": mask},\n'


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_page_holds_what_the_docstrings_say() -> None:
    assert split_page()[1] == tables(), "run python -m tests.packaging.configuration_page"


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.__name__)
def test_every_key_has_a_meaning_and_every_meaning_a_key(block: type) -> None:
    keys, told = {each.name for each in fields(block)}, meanings(block)
    assert [key for key in sorted(keys) if not told.get(key, "").endswith(".")] == []
    assert own_meanings(block).keys() <= keys


@pytest.mark.parametrize(
    ("block", "key", "choices"),
    [
        (ModelConfig, "name", MODEL_NAMES),
        (StackConfig, "codec", CODECS),
        (StackConfig, "compress", COMPRESSIONS),
        (TrainerConfig, "precision", PRECISIONS),
        (ShardsConfig, "source", ("phantom", *DATASETS)),
        (DatasetConfig, "columns", COLUMNS),
        (Occlusion, "baseline", BASELINES),
        (IntegratedGradients, "baseline", BASELINES),
        (GradientShap, "baselines", BASELINES),
        (CaptumMethod, "baseline", BASELINES),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_choice_is_named(block: type, key: str, choices: Iterable[str]) -> None:
    meaning = meanings(block)[key]
    assert [name for name in choices if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", meaning)] == []


def test_meanings_are_read_over_several_lines_and_from_what_a_class_extends() -> None:
    class Base:
        """Two keys.

        Attributes:
            first: One sentence: with a colon,
                on two lines.
            second: Another.

        Raises:
            ValueError: Never.
        """

    class Extended(Base):
        """One of them anew.

        Attributes:
            second: Mine.
        """

    assert own_meanings(Base) == {"first": "One sentence: with a colon, on two lines.", "second": "Another."}
    assert meanings(Extended) == {"first": "One sentence: with a colon, on two lines.", "second": "Mine."}


def test_every_link_within_the_page_has_its_heading() -> None:
    headings = [anchor(title) for title in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)]
    linked = set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
    assert linked <= set(headings)
    assert [each for each in linked if headings.count(each) > 1] == []


def test_every_file_that_is_named_exists_and_every_shipped_configuration_is_named() -> None:
    named = set(re.findall(r"configs/[\w/]+\.yaml", TEXT))
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.yaml")} <= named
    for name in named | {target.removeprefix("../") for target in re.findall(r"\]\((\.\./[^)]+)\)", TEXT)}:
        assert (ROOT / name).is_file(), name


def test_the_shown_commands_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    taken = {command: schema for schema, commands in configurations().items() for command in commands}
    lines = re.findall(r"^python -m (?:train_like )?((?:serve )?\w+) (.*)$", TEXT, re.MULTILINE)
    assert len(lines) == 3
    for command, arguments in lines:
        path, *overrides = shlex.split(arguments)
        assert load_config(taken[command], path, overrides) != load_config(taken[command], path)


@pytest.mark.parametrize("with_masks", [True, False])
def test_the_shown_sample_is_read_with_its_region(
    with_masks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = fenced("python")
    assert MASKS in code
    monkeypatch.chdir(tmp_path)
    Image.fromarray(phantom(seed=7, labels=["Pleural Effusion"]).pixels).save("x-ray.png")
    defined: dict[str, Any] = {}
    exec(compile(code if with_masks else code.replace(MASKS, ""), "configuration.md", "exec"), defined)

    (case,) = Cases(DataConfig(shards="mine-000000.tar"), MEDCLIP, None, None)
    assert (case.key, case.labels) == ("picture-7", ("Pleural Effusion",))
    (region,) = case.regions
    assert (region.label, region.sentence) == ("Pleural Effusion", "Small right pleural effusion.")
    assert np.array_equal(region.mask.numpy(), defined["mask"])  # the box, half-open, says the same


def test_the_shown_prompt_set_is_read(tmp_path: Path) -> None:
    (content,) = fenced("yaml")
    (tmp_path / "prompts.yaml").write_text(content, encoding="utf-8")
    no_finding, effusion = load_prompt_set(tmp_path / "prompts.yaml").classes
    assert (no_finding.label, len(no_finding.prompts)) == ("No Finding", 1)
    assert effusion.prompts[1] == "Left lung base: moderate pleural effusion with a meniscus."
