"""Resuming: another configuration is refused at once, and under the same nothing is computed twice."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mapstack.models import medclip
from mapstack.store.manifest import read_manifest, write_manifest
from tests.train_like.jobs import Ended, samples, write_shard
from tests.train_like.launched import EXTRACT, run
from train_like import extract
from train_like.index import expand_shards
from train_like.module import StackModule

Command = Callable[..., Ended]
Figure = Callable[[str], None]

METHOD = "method={name: integrated_gradients, n_steps: 2}"
PROMPTS = ("stack={basis: prompts, map_size: 56}", "prompts.texts=[heart, no nodule]", METHOD)
# What is changed -> the field that is named. Of the first group the configuration alone tells.
SETTINGS = {
    "method.n_steps=3": "method.n_steps = 2, this run has 3",
    "method.baseline=white": 'method.baseline = "black", this run has "white"',
    "method={name: gradient}": 'method.baseline = "black", this run has nothing (and differs in method.',
    "stack.basis=axes": 'basis = "prompts", this run has "axes"',
    "stack.normalize=false": "normalize = true, this run has false",
    "stack.map_size=112": "map_size = 56, this run has 112",
    "stack.codec=int8": 'codec = "lowrank", this run has "int8"',
    "stack.codec=float16": 'codec = "lowrank", this run has "float16"',
    "stack.compress=zstd": 'compress = "none", this run has "zstd"',
    "trainer.precision=bf16-mixed": 'precision = "32-true", this run has "bf16-mixed"',
    "seed=1": "seed = 0, this run has 1",
}
INPUTS = {"model.checkpoint=OTHER": "weights", "data.shards=OTHER": "shards"}
TEXTS = {"prompts.texts=[heart, left nodule]": "prompts", "prompts.texts=[no nodule, heart]": "prompts"}
LIMIT_S = 1.0


def changed(override: str) -> list[str]:
    """The overrides of a job of which one is changed; another method has other parameters."""
    return [*(PROMPTS[:-1] if override.startswith("method={") else PROMPTS), override]


@pytest.fixture(scope="module")
def other_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("other_shard") / "b.tar", samples(2, first=9))


@pytest.fixture
def compute_nothing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def install() -> None:
        monkeypatch.setattr(StackModule, "predict_step", lambda *_: pytest.fail("a stack was computed"))

    return install


@pytest.mark.fault("W6")
def test_another_configuration_is_refused_at_once_and_named(
    job_config: Path,
    command: Command,
    tmp_path: Path,
    other_checkpoint: Path,
    other_shard: Path,
    compute_nothing: Callable[[], None],
    figure: Figure,
) -> None:
    assert command("extract", job_config, *PROMPTS, "data.limit=1").code == 0
    kept = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    compute_nothing()
    longest_s = 0.0
    for override, field in {**SETTINGS, **INPUTS, **TEXTS}.items():
        other = str(other_shard if "shards" in override else other_checkpoint)
        since = time.perf_counter()
        ended = command("extract", job_config, *changed(override.replace("OTHER", other)))
        longest_s = max(longest_s, time.perf_counter() - since)
        assert (ended.code, ended.line["status"]) == (3, "wrong_store"), override
        assert f"was written with {field}" in ended.err, override
        assert "overwrite: true" in ended.err
    now = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    assert now | {"store.lock": b""} == kept | {"store.lock": b""}
    assert longest_s < 10 * LIMIT_S
    n = len(SETTINGS) + len(INPUTS) + len(TEXTS)
    figure(f"{n} other configurations of {n} refused within {longest_s:.2f} s, the field named, 0 files changed")


@pytest.mark.fault("W6")
def test_other_settings_are_refused_before_shards_are_walked_and_a_model_is_loaded(
    job_config: Path, command: Command, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    """Both take minutes at full size."""
    assert command("extract", job_config, *PROMPTS, "data.limit=1").code == 0

    def wait(*_: Any, **__: Any) -> None:
        pytest.fail("it was not refused before")

    monkeypatch.setattr(extract, "index_shards", wait)
    monkeypatch.setattr(extract, "load_model", wait)
    for override, field in SETTINGS.items():
        ended = command("extract", job_config, *changed(override))
        assert ended.code == 3, override
        assert f"was written with {field}" in ended.err
    figure(f"{len(SETTINGS)} of {len(SETTINGS)} other settings are refused from the configuration alone")


@pytest.mark.fault("W6")
def test_other_inputs_are_refused_before_the_samples_are_counted(
    job_config: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    job_shards: str,
    other_shard: Path,
    other_checkpoint: Path,
    figure: Figure,
) -> None:
    """To walk an archive takes minutes, to build a model seconds."""
    assert command("extract", job_config, *PROMPTS, "data.limit=1").code == 0

    def wait(*_: Any, **__: Any) -> None:
        pytest.fail("it was not refused before")

    monkeypatch.setattr(extract, "index_shards", wait)
    monkeypatch.setattr(extract, "load_model", wait)
    monkeypatch.setattr(medclip, "build_medclip", wait)
    first, second = expand_shards(job_shards)
    inputs = {f"data.shards={each}": "shards_outline" for each in (other_shard, first, f"{second}::{first}")}
    inputs |= {f"model.checkpoint={other_checkpoint}": "weights", **TEXTS}
    longest_s: dict[str, float] = {}
    for override, field in inputs.items():
        since = time.perf_counter()
        ended = command("extract", job_config, *changed(override))
        longest_s[field] = max(longest_s.get(field, 0), time.perf_counter() - since)
        assert ended.code == 3, override
        assert f"was written with {field} = " in ended.err
    assert max(longest_s.values()) < 10 * LIMIT_S
    each_s = ", ".join(f"{field} {seconds:.2f} s" for field, seconds in longest_s.items())
    figure(f"{len(inputs)} other inputs refused before a shard is walked or a model is built: {each_s}")


@pytest.mark.fault("W6")
def test_what_names_and_sizes_of_shards_do_not_tell_is_refused_by_the_walk(
    write_config: Callable[[str | Path], Path], command: Command, tmp_path: Path, figure: Figure
) -> None:
    """Another key in a shard of the same size; and whatever differs from a store that does not say them."""
    shard = write_shard(tmp_path / "a.tar", samples(2))
    config = write_config(shard)
    assert command("extract", config, "data.limit=1").code == 0
    renamed, moved, longer = (tmp_path / name / "a.tar" for name in ("renamed", "moved", "longer"))
    for path in (renamed, moved, longer):
        path.parent.mkdir()
    write_shard(renamed, [("1.2.9" if key == "1.2.1" else key, members) for key, members in samples(2)])
    assert renamed.stat().st_size == shard.stat().st_size
    write_shard(longer, samples(9))
    ended = command("extract", config, f"data.shards={renamed}")
    assert (ended.code, ended.line["status"]) == (3, "wrong_store")
    assert "was written with shards = " in ended.err
    manifest = read_manifest(tmp_path / "store")
    del manifest["shards_outline"]
    write_manifest(tmp_path / "store", manifest)
    assert "was written with shards = " in command("extract", config, f"data.shards={longer}").err
    # The same one in another folder; from then on the store says it.
    shard.rename(moved)
    assert command("extract", config, f"data.shards={moved}").line["computed_by_rank_0"] == 1
    assert "was written with shards_outline = " in command("extract", config, f"data.shards={longer}").err
    figure("2 shards that differ inside refused by the walk; the same shard in another folder: 1 of 2 computed")


def test_what_decides_no_byte_is_not_compared(job_config: Path, command: Command) -> None:
    """An occlusion stack holds embeddings: it serves both of them, maps of any size, and has no codec."""
    free = ["stack={basis: axes, normalize: false, map_size: 112, codec: int8}", "data.limit=2"]
    assert command("extract", job_config, "data.limit=1").code == 0
    assert command("extract", job_config, *free).line["computed_by_rank_0"] == 1


@pytest.mark.fault("W6")
def test_another_configuration_is_refused_before_a_second_rank_is_started(
    job_config: Path, command: Command, other_checkpoint: Path, figure: Figure
) -> None:
    assert command("extract", job_config, "data.limit=1").code == 0
    (refused,) = run([*EXTRACT, job_config, "trainer.devices=2", f"model.checkpoint={other_checkpoint}"])
    assert refused.code == 3
    assert refused.out.count("\n") == refused.err.count("\n") == 1  # each rank would have said so
    figure("2 ranks, other weights: refused by 1 process, exit code 3")
