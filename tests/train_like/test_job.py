"""`extract` and `verify` as their users run them, in this process: what is stored, and how resuming goes."""

import os
import re
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapstack.config import make_method_from
from mapstack.explainer import Explainer
from mapstack.images import decode, prepare
from mapstack.models import EmbeddingModel
from mapstack.prompts import TextGroup
from mapstack.routes import Route
from mapstack.store import Store
from mapstack.stored_stack import read_basis, read_stack
from tests.train_like.jobs import Ended, record_bytes, samples, write_shard
from train_like.cli import main
from train_like.module import StackModule

Command = Callable[..., Ended]
Figure = Callable[[str], None]
TEXTS = ("left pleural effusion", "no nodule", "heart")
QUICK = {"name": "integrated_gradients", "n_steps": 3}
OCCLUSION = {"name": "occlusion", "sliding_window_shapes": 56, "strides": 56}
GRADIENT = {"name": "gradient"}
# Method, samples, basis, map size, codec, the door's route, and the largest difference in shares of the map's maximum.
PARITY = {
    "occlusion along the axes": (OCCLUSION, 3, "axes", 56, "float16", "axes", 1e-5),  # factored: without a codec
    "gradient along the axes": (GRADIENT, 1, "axes", 56, "float32", "direct", 1e-5),
    "gradient in half precision": (GRADIENT, 1, "axes", 56, "float16", "direct", 1e-3),
    "gradient in few terms": (GRADIENT, 1, "axes", 56, "lowrank, max_error: 0.001, compress: zstd", "direct", 1e-2),
    "integrated gradients along the prompts": (QUICK, 3, "prompts", 224, "float32", "prompts", 1e-5),
}


def as_override(block: dict[str, Any]) -> str:
    return "method={" + ", ".join(f"{key}: {value}" for key, value in block.items()) + "}"


def test_every_sample_is_accounted_for(job_config: Path, command: Command, tmp_path: Path) -> None:
    ended = command("extract", job_config)
    assert ended.code == 0
    assert ended.out.count("\n") == 1
    line = ended.line
    assert (line["command"], line["status"], line["output"]) == ("extract", "done", str(tmp_path / "store"))
    assert (line["expected"], line["done"], line["failed"], line["computed_by_rank_0"]) == (7, 7, 0, 7)
    store = Store(tmp_path / "store")
    assert sorted(store.keys()) == [key for key, _ in samples(7)]
    assert store.manifest["complete"] is True
    assert line["bytes"] == sum(len(content) for content in record_bytes(tmp_path / "store").values())
    assert re.search(r"100%.*7/7 .*image/s, [\d.]+ kB of [\d.]+ kB written", ended.err)
    verified = command("verify", tmp_path / "store")
    assert verified.code == 0
    assert verified.line == {
        "command": "verify",
        "status": "done",
        "output": str(tmp_path / "store"),
        "done": 7,
        "failed": 0,
        "missing": 0,
        "damaged": 0,
        "unsealed": [],
    }


@pytest.mark.parametrize(
    ("block", "n", "basis", "map_size", "codec", "route", "tolerance"), PARITY.values(), ids=PARITY
)
def test_the_job_and_the_python_door_make_the_same_map(
    block: dict[str, Any],
    n: int,
    basis: str,
    map_size: int,
    codec: str,
    route: Route,
    tolerance: float,
    job_config: Path,
    job_model: EmbeddingModel,
    command: Command,
    tmp_path: Path,
) -> None:
    ended = command(
        "extract",
        job_config,
        as_override(block),
        f"data={{limit: {n}, batch_size: {min(n, 2)}}}",
        f"prompts.texts=[{', '.join(TEXTS)}]",
        f"stack={{basis: {basis}, map_size: {map_size}, codec: {codec}}}",
    )
    assert ended.code == 0
    explainer = Explainer(job_model, make_method_from(block), map_size=map_size)
    groups = [TextGroup(text, (text,)) for text in TEXTS]
    store = Store(tmp_path / "store")
    rows = read_basis(store.manifest, store.basis)
    for key, members in samples(n):
        picture = prepare(decode(members["png"]), job_model.preprocessing)
        (direct,) = explainer.explain([picture], groups, route)
        record = store.read(key, check=True)
        stack = read_stack(record, store.manifest, rows, normalize=True, map_size=map_size)
        maps = stack.project(explainer.readout(groups).directions)[0]
        assert maps.shape == (3, map_size, map_size)
        assert (maps - direct.maps).abs().max() <= tolerance * direct.maps.abs().max()
        torch.testing.assert_close(torch.tensor(record.info["logits"]), direct.logits, rtol=1e-5, atol=1e-5)
        assert record.info["sha256"] == picture.sha256
        assert record.info["geometry"] == picture.geometry.to_dict()
        assert record.info["route"] == basis
    with tarfile.open(next((tmp_path / "store").glob("part-*.tar"))) as tar:
        assert all(name.endswith((".json", ".npy.zst" if "zstd" in codec else ".npy")) for name in tar.getnames())


@pytest.mark.fault("W6")
def test_a_limited_run_is_continued(
    job_config: Path, command: Command, during_batch: Any, tmp_path: Path, clean_store: Path, figure: Figure
) -> None:
    first = command("extract", job_config, "data.limit=3")
    assert (first.code, first.line["expected"], first.line["done"]) == (0, 3, 3)
    before = {path: path.read_bytes() for path in (tmp_path / "store").glob("part-*")}
    rest = command("extract", job_config)
    assert (rest.code, rest.line["done"], rest.line["computed_by_rank_0"]) == (0, 7, 4)
    assert "3 records are done already" in rest.err
    assert record_bytes(tmp_path / "store") == record_bytes(clean_store)
    assert {path: path.read_bytes() for path in before} == before
    during_batch(0, lambda: pytest.fail("a stack was computed"))
    again = command("extract", job_config)
    assert (again.code, again.line["done"], again.line["computed_by_rank_0"]) == (0, 7, 0)
    # A smaller limit asks for less than there is, and takes nothing away.
    smaller = command("extract", job_config, "data.limit=2")
    assert (smaller.code, smaller.line["expected"], smaller.line["done"]) == (0, 7, 7)
    assert command("verify", tmp_path / "store").code == 0
    figure("3 of 7 done: the same command computes 4, and once more 0; 0 bytes of the first 3 rewritten")


@pytest.fixture
def during_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Let something happen while the batch of a number, from 0, is computed."""

    step = StackModule.predict_step

    def install(number: int, happen: Callable[[], object]) -> None:
        def predict_step(self: StackModule, batch: Any, batch_idx: int = 0) -> Any:
            if batch_idx == number:
                happen()
            return step(self, batch, batch_idx)

        monkeypatch.setattr(StackModule, "predict_step", predict_step)

    return install


@pytest.mark.fault("W5")
def test_sigterm_commits_the_batch_and_the_next_run_goes_on(
    job_config: Path, command: Command, during_batch: Any, tmp_path: Path, clean_store: Path, figure: Figure
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    during_batch(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = command("extract", job_config)
    assert (ended.code, ended.line["status"]) == (143, "terminated")
    assert signal.getsignal(signal.SIGTERM) == handler
    assert len(Store(tmp_path / "store")) == 4
    assert command("verify", tmp_path / "store").line["missing"] == 3
    during_batch(1, lambda: None)
    rest = command("extract", job_config, "data.batch_size=2")
    assert (rest.code, rest.line["done"], rest.line["computed_by_rank_0"]) == (0, 7, 3)
    assert record_bytes(tmp_path / "store") == record_bytes(clean_store)
    figure("SIGTERM in the second batch of 2: 4 of 7 committed, exit code 143; then 3 computed")


@pytest.mark.fault("W5")
def test_ctrl_c_and_a_crash_stop_the_job_and_say_so(
    job_config: Path, command: Command, during_batch: Any, tmp_path: Path, figure: Figure
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def crash() -> None:
        raise OSError("disk on fire")

    during_batch(1, interrupt)
    ended = command("extract", job_config)
    assert (ended.code, ended.line["status"]) == (4, "stopped")
    assert "Ctrl-C came" in ended.line["error"]
    assert len(Store(tmp_path / "store")) == 2
    during_batch(1, crash)
    ended = command("extract", job_config)
    assert (ended.code, ended.line) == (4, {"command": "extract", "status": "stopped", "error": "OSError"})
    assert "disk on fire" in ended.err
    assert len(Store(tmp_path / "store")) == 4
    figure("one process: SIGINT and an exception in the second batch of 2: exit code 4, the batch before it kept")


@pytest.fixture(scope="module")
def other_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("other_shard") / "b.tar", samples(2, first=9))


def test_another_configuration_is_refused_and_nothing_is_lost(
    job_config: Path, command: Command, tmp_path: Path, other_checkpoint: Path, other_shard: Path
) -> None:
    assert command("extract", job_config, "data.limit=2").code == 0
    kept = record_bytes(tmp_path / "store")
    for override, field in {
        "method.strides=28": "method.strides = 56, this run has 28",
        "method.baseline=white": "method.baseline",
        "method.name=gradient": "method.name",
        f"model.checkpoint={other_checkpoint}": "weights",
        "seed=1": "seed = 0, this run has 1",
        f"data.shards={other_shard}": "shards",
    }.items():
        ended = command("extract", job_config, override)
        assert (ended.code, ended.line["status"]) == (3, "wrong_store"), override
        assert field in ended.err, override
        assert "overwrite" in ended.err
    assert record_bytes(tmp_path / "store") == kept
    replaced = command("extract", job_config, "method.strides=28", "data.limit=1", "overwrite=true")
    assert (replaced.code, replaced.line["done"]) == (0, 1)
    assert "overwrite: 2 records are discarded" in replaced.err
    assert Store(tmp_path / "store").manifest["identity"]["method"]["strides"] == 28


def test_passes_batches_and_readers_may_change_between_runs(
    job_config: Path, command: Command, tmp_path: Path, clean_store: Path
) -> None:
    assert command("extract", job_config, "data.limit=3").code == 0
    rest = command("extract", job_config, "method.perturbations_per_eval=4", "data.batch_size=3", "data.num_workers=1")
    assert (rest.code, rest.line["done"], rest.line["computed_by_rank_0"]) == (0, 7, 4)
    expected = {record.key: record.arrays["scores"] for record in Store(clean_store)}
    for record in Store(tmp_path / "store"):
        scores = np.asarray(record.arrays["scores"])
        assert np.abs(scores - expected[record.key]).max() <= 1e-5 * np.abs(scores).max()


def test_verify_refuses_what_is_no_store(command: Command, tmp_path: Path) -> None:
    ended = command("verify", tmp_path)
    assert (ended.code, ended.line["status"]) == (3, "wrong_store")
    assert ended.err == f"verify: {ended.line['error']}\n"
    assert "is no stack store" in ended.err


def test_verify_finds_a_flipped_bit(job_config: Path, command: Command, tmp_path: Path) -> None:
    assert command("extract", job_config, "data.limit=1").code == 0
    (tar,) = (tmp_path / "store").glob("*.tar")
    content = bytearray(tar.read_bytes())
    content[2000] ^= 1
    tar.write_bytes(content)
    ended = command("verify", tmp_path / "store")
    assert (ended.code, ended.line["damaged"]) == (3, 1)
    assert "damaged: '1.2.0': its bytes do not match their checksum" in ended.err


@pytest.mark.parametrize("arguments", [[], ["extract"], ["explode", "x"], ["verify"], ["extract", "c", "--fast"]])
def test_wrong_usage_gives_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
    assert refusal.value.code == 2
    assert "usage: python -m train_like" in capsys.readouterr().err
