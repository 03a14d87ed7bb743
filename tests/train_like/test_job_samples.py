"""Jobs on samples that were once the end of them, and on shards that moved."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.strategies import DDPStrategy, ddp

from mapstack.config import TrainerConfig
from mapstack.store import Store, open_store_for_writing
from tests.train_like.jobs import Ended, failures, flat_png, png, samples, write_shard
from train_like.extract import make_trainer

Command = Callable[..., Ended]
WriteConfig = Callable[[str | Path], Path]

INTEGRATED = "method={name: integrated_gradients, n_steps: 2, rows_per_pass: 512}"
LONG = " ".join(["no left lung effusion"] * 30)


def test_a_black_film_does_not_stop_an_archive(write_config: WriteConfig, command: Command, tmp_path: Path) -> None:
    """From a black baseline its maps are zero everywhere, and a share of nothing is no number."""
    shard = write_shard(tmp_path / "a.tar", [("black", {"png": flat_png(0)}), ("film", {"png": png(1, 60, 90)})])
    stack = "stack={basis: prompts, basis_tolerance: 0.5, map_size: 56}"
    ended = command("extract", write_config(shard), INTEGRATED, stack, "prompts.texts=[heart, no nodule]")
    assert (ended.code, ended.line["done"], ended.line["failed"]) == (0, 2, 0)
    store = Store(tmp_path / "store")
    assert store.read("black").info["map_error"] == 0
    assert 0 < store.read("film").info["map_error"] < 1


def test_a_job_in_double_precision_makes_the_same_stacks(job_config: Path, command: Command, tmp_path: Path) -> None:
    """The method draws at random: it must draw the same numbers."""
    method = "method={name: gradient_shap, n_samples: 2, rows_per_pass: 512}"
    arrays = []
    for precision in ("32-true", "64-true"):
        settings = (f"trainer.precision={precision}", "data.limit=2", f"output={tmp_path}/{precision}")
        ended = command("extract", job_config, method, "stack={map_size: 28, codec: float32}", *settings)
        assert (ended.code, ended.line["done"]) == (0, 2)
        store = Store(tmp_path / precision)
        assert store.manifest["identity"]["precision"] == precision
        arrays.append([store.read(key).arrays["stack"] for key in sorted(store.keys())])
    for single, double in zip(*arrays, strict=True):
        assert np.abs(single - double).max() < 1e-3 * np.abs(double).max()


def test_problems_are_counted_once_wherever_the_shards_are_mounted(
    write_config: WriteConfig, command: Command, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    shard = write_shard(first / "a.tar", [*samples(2), samples(1)[0]])
    shard.write_bytes(shard.read_bytes()[:-9000])
    other = tmp_path / "other"
    settings = ("data.duplicates=first", "data.max_bad_share=1")
    before = command("extract", write_config(f"{first}/a.tar"), *settings)
    assert (before.code, before.line["done"]) == (1, 2)
    named = failures(tmp_path / "store")
    assert named
    shutil.copytree(first, other)
    after = command("extract", write_config(f"{other}/a.tar"), *settings)
    assert {name: after.line[name] for name in ("expected", "done", "failed")} == {
        name: before.line[name] for name in ("expected", "done", "failed")
    }
    assert failures(tmp_path / "store").keys() == named.keys()
    assert not any("/" in key for key in named)


def test_a_text_that_is_cut_is_said_by_its_number(job_config: Path, command: Command, tmp_path: Path) -> None:
    texts = f"prompts.texts=[heart, {LONG}, no nodule, {LONG} heart]"
    said = "of number 2, 4 (of 4) the model reads the beginning only"
    ended = command("extract", job_config, "data.limit=1", texts)
    assert ended.code == 0
    assert said in ended.err
    assert "left lung" not in ended.err
    project = f"project={{output: {tmp_path}/maps, pictures: false}}"
    assert said in command("project", job_config, texts, project).err
    assert "beginning" not in command("project", job_config, "prompts.texts=[heart]", project).err


def test_ranks_wait_for_each_other_as_long_as_indexing_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an hour is Lightning's own patience; who is waited for may be counting the samples of many shards."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(ddp, "_init_dist_connection", lambda *_, **settings: told.append(settings))
    trainer = make_trainer(TrainerConfig("cpu", 2), [])
    assert isinstance(trainer.strategy, DDPStrategy)
    trainer.strategy.setup_distributed()
    assert told[0]["timeout"] == timedelta(days=1)
    assert not isinstance(make_trainer(TrainerConfig("cpu", 1), []).strategy, DDPStrategy)


@pytest.fixture
def maps(tmp_path: Path) -> str:
    return f"project={{output: {tmp_path}/maps}}"


def test_a_map_is_drawn_on_its_own_picture_only(
    write_config: WriteConfig, command: Command, tmp_path: Path, maps: str
) -> None:
    """Two archives may number their samples alike."""
    explained = write_shard(tmp_path / "a.tar", [("1", {"png": png(1, 60, 90)})])
    another = write_shard(tmp_path / "b.tar", [("1", {"png": png(2, 60, 90)})])
    assert command("extract", write_config(explained)).code == 0
    ended = command("project", write_config(another), maps, "prompts.texts=[heart]")
    assert ended.code == 2
    assert "key '1' has a picture of sha256" in ended.line["error"]
    assert not list((tmp_path / "maps").glob("*.png"))
    ended = command("project", write_config(explained), maps, "prompts.texts=[heart]")
    assert ended.code == 0
    assert len(list((tmp_path / "maps").glob("*.png"))) == 1


def test_what_has_no_map_shows_in_the_exit_code(
    write_config: WriteConfig, command: Command, tmp_path: Path, maps: str
) -> None:
    config = write_config(write_shard(tmp_path / "a.tar", [*samples(3), ("bad", {"png": b"none", "json": b"{}"})]))
    project = ("project", config, maps, "prompts.texts=[heart]", "project.pictures=false")
    counted = ("samples", "expected", "failed", "missing")

    def account() -> tuple[int, str, list[int]]:
        ended = command(*project)
        return ended.code, ended.line["status"], [ended.line[name] for name in counted]

    assert command("extract", config, "data.limit=2").line["done"] == 2
    assert account() == (0, "done", [2, 2, 0, 0])
    with open_store_for_writing(tmp_path / "store", Store(tmp_path / "store").manifest, expected=4):
        assert account() == (1, "some_failed", [2, 4, 0, 2])
    assert account() == (1, "some_failed", [2, 4, 0, 2])
    assert command("extract", config).line["failed"] == 1
    assert account() == (1, "some_failed", [3, 4, 1, 0])


def test_a_free_text_of_a_contrast_names_no_file(
    write_config: WriteConfig, command: Command, tmp_path: Path, maps: str
) -> None:
    config = write_config(write_shard(tmp_path / "a.tar", samples(1)))
    prompts = Path(__file__).parents[2] / "configs" / "prompts" / "phantom.yaml"
    assert command("extract", config).code == 0
    contrast = f"prompts={{file: {prompts}, classes: [Pneumothorax], against: lung of Jane Doe}}"
    assert command("project", config, maps, contrast).code == 0
    (picture,) = (tmp_path / "maps").glob("*.png")
    assert picture.name.endswith(".000-text.png")
