"""What goes wrong in the shards or in the model: named, counted, and never stored."""

import gc
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapstack.explainer import Explainer
from mapstack.models import EmbeddingModel
from mapstack.stack import Stack
from mapstack.store import Store
from tests.train_like.jobs import Ended, failures, flat_png, record_arrays, samples, write_shard
from train_like import extract
from train_like.index import ShardIndex, index_shards

Command = Callable[..., Ended]
WriteConfig = Callable[[str | Path], Path]
Figure = Callable[[str], None]
PAUSE_S = 613  # told apart from whatever else sleeps
GARBAGE = b"\x89PNG\r\n\x1a\n and then nothing of a picture"


@pytest.mark.fault("R7")
@pytest.mark.fault("R6")
def test_bad_samples_are_named_and_the_others_done(
    write_config: WriteConfig, command: Command, tmp_path: Path, clean_store: Path, figure: Figure
) -> None:
    good = samples(3)
    content = [good[0], ("no.picture", {"json": b"{}"}), good[1], ("broken", {"png": GARBAGE, "json": b"{}"}), good[2]]
    shard = write_shard(tmp_path / "mixed.tar", content)
    config = write_config(shard)
    ended = command("extract", config)
    assert (ended.code, ended.line["status"]) == (1, "some_failed")
    assert (ended.line["expected"], ended.line["done"], ended.line["failed"]) == (5, 3, 2)
    named = failures(tmp_path / "store")
    assert {key: where for key, (where, _) in named.items()} == {"no.picture": str(shard), "broken": str(shard)}
    assert "one image (jpeg, jpg, png, dcm), this one has none" in named["no.picture"][1]
    assert "picture" in named["broken"][1]
    expected = record_arrays(clean_store)
    for key, arrays in record_arrays(tmp_path / "store").items():
        for name, array in arrays.items():
            assert np.abs(array - expected[key][name]).max() <= 1e-5 * np.abs(array).max()
    verified = command("verify", tmp_path / "store")
    assert (verified.code, verified.line["failed"], verified.line["missing"]) == (1, 2, 0)
    again = command("extract", config)  # a failed sample is tried again, and counted once
    assert (again.code, again.line["done"], again.line["failed"]) == (1, 3, 2)
    assert again.line["computed_by_rank_0"] == 0
    figure("a whole job: 5 expected, 3 done, 2 failed and named with their shard, exit code 1")


def test_a_mended_sample_is_no_longer_failed(write_config: WriteConfig, command: Command, tmp_path: Path) -> None:
    """A reader that fails once, such as a disk that was away, leaves nothing behind."""
    shard = write_shard(tmp_path / "one.tar", samples(2))
    config = write_config(shard)
    whole = shard.read_bytes()
    position = whole.index(b"\x89PNG") + 1000
    shard.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
    assert command("extract", config).line["failed"] == 1
    shard.write_bytes(whole)
    ended = command("extract", config)
    assert (ended.code, ended.line["done"], ended.line["failed"], ended.line["computed_by_rank_0"]) == (0, 2, 0, 1)


@pytest.mark.fault("R1")
def test_a_cut_shard_is_never_silent(
    write_config: WriteConfig, command: Command, tmp_path: Path, figure: Figure
) -> None:
    """Cut between two members, where the stock reader ends without a word."""
    shard = write_shard(tmp_path / "cut.tar", samples(4))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: whole.index(b"1.2.3.png")])
    ended = command("extract", write_config(shard))
    assert (ended.code, ended.line["status"], ended.line["done"], ended.line["failed"]) == (1, "some_failed", 2, 2)
    assert ended.line["expected"] == 4
    assert all("cut" in reason or "end" in reason for _, reason in failures(tmp_path / "store").values())
    figure("a whole job on a cut shard: 2 done + 2 failed = 4 expected, exit code 1")


@pytest.mark.fault("R7")
@pytest.mark.parametrize("workers", [0, 1])
def test_the_job_stops_when_too_many_samples_are_bad(
    write_config: WriteConfig, command: Command, tmp_path: Path, workers: int, figure: Figure
) -> None:
    """More than 1 % after 100."""
    shard = write_shard(tmp_path / "bad.tar", [(f"bad{i}", {"png": GARBAGE}) for i in range(150)])
    config = write_config(shard)
    ended = command("extract", config, f"data.num_workers={workers}")
    assert (ended.code, ended.line["status"]) == (4, "stopped")
    assert "\nextract: 100 of 100 samples are bad; at most 1.0% may be" in ended.err  # below the bar, not behind it
    assert len(failures(tmp_path / "store")) == 100
    allowed = command("extract", config, "data.max_bad_share=1")
    assert (allowed.code, allowed.line["failed"]) == (1, 150)
    figure(f"a whole job with {workers} workers stops after 100 of 150 bad samples, exit code 4")


def test_the_job_does_not_begin_when_too_many_samples_are_no_samples(
    write_config: WriteConfig, command: Command, tmp_path: Path
) -> None:
    content = samples(98) + [(f"bare{i}", {"json": b"{}"}) for i in range(2)]
    config = write_config(write_shard(tmp_path / "bare.tar", content))
    ended = command("extract", config)
    assert (ended.code, ended.line["status"]) == (4, "stopped")
    assert "2 of 100 samples are bad" in ended.err
    assert set(failures(tmp_path / "store")) == {"bare0", "bare1"}


@pytest.fixture
def costless(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a job whose stacks cost nothing."""

    def make_stack(self: Explainer, inputs: Any, *_: Any, **__: Any) -> Stack:
        values = torch.ones(len(inputs), 512, 4, 4)
        return Stack(values.mean(dim=(2, 3)), self.normalize, values, is_raw=True)

    monkeypatch.setattr(Explainer, "stack", make_stack)
    return ["method={name: gradient}", "stack={map_size: 4, codec: float16}", "data.batch_size=50"]


@pytest.mark.fault("R7")
def test_what_the_index_names_and_what_the_loop_finds_bad_is_added_up(
    write_config: WriteConfig, command: Command, tmp_path: Path, costless: list[str], figure: Figure
) -> None:
    """Each alone would pass a limit of 1 %."""
    good = [(f"good{i}", {"png": flat_png(i), "json": b"{}"}) for i in range(98)]
    bare, broken = ("bare", {"json": b"{}"}), ("broken", {"png": GARBAGE, "json": b"{}"})
    config = write_config(write_shard(tmp_path / "both.tar", [*good, bare, broken]))
    for _ in range(2):  # found again where all the others are done
        ended = command("extract", config, *costless)
        assert (ended.code, ended.line["status"]) == (4, "stopped")
        assert "extract: 2 of 100 samples are bad; at most 1.0% may be" in ended.err
        assert set(failures(tmp_path / "store")) == {"bare", "broken"}
    assert command("extract", config, *costless, "data.max_bad_share=0.02").code == 1
    for bad in (bare, broken):
        shard = write_shard(tmp_path / f"{bad[0]}.tar", [*good, bad, ("more", good[0][1])])
        alone = command("extract", config, *costless, f"data.shards={shard}", f"output={tmp_path / bad[0]}")
        assert (alone.code, alone.line["done"], alone.line["failed"]) == (1, 99, 1)
    figure("a whole job, 1 sample without a picture and 1 broken one of 100: stopped at a limit of 1 %, either passes")


def test_what_the_index_names_is_set_against_the_whole_job(
    write_config: WriteConfig, command: Command, tmp_path: Path, costless: list[str]
) -> None:
    """2 of 300 are few, also when 100 are done."""
    content = [("bare0", {"json": b"{}"}), ("bare1", {"json": b"{}"})]
    content += [(f"good{i}", {"png": flat_png(i % 256), "json": b"{}"}) for i in range(298)]
    ended = command("extract", write_config(write_shard(tmp_path / "few.tar", content)), *costless)
    assert (ended.code, ended.line["done"], ended.line["failed"]) == (1, 298, 2)


def test_few_bad_samples_of_a_long_job_do_not_stop_its_last_run(
    write_config: WriteConfig, command: Command, tmp_path: Path
) -> None:
    content = samples(2) + [(f"bad{i}", {"png": GARBAGE, "json": b"{}"}) for i in range(120)]
    config = write_config(write_shard(tmp_path / "bad.tar", content))
    assert command("extract", config, "data.max_bad_share=1").line["failed"] == 120
    # 120 of 122 are bad, which 0.99 allows; of the 120 that are still to do, all are.
    assert command("extract", config, "data.max_bad_share=0.99").code == 1


@pytest.mark.fault("R10")
@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
def test_nan_is_never_stored(
    write_config: WriteConfig,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job_model: EmbeddingModel,
    method: str,
    figure: Figure,
) -> None:
    """The model answers NaN for the bright picture only."""
    pictures = {"grey": 100, "white": 255, "dark": 20}
    content = [(key, {"png": flat_png(brightness)}) for key, brightness in pictures.items()]
    original = type(job_model).embed_images

    def embed_images(self: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = original(self, pixel_values)
        is_bright = pixel_values.mean(dim=(1, 2, 3)) > 0
        factor = torch.where(is_bright, math.nan, 1.0)
        return embedding * factor[:, None]

    monkeypatch.setattr(type(job_model), "embed_images", embed_images)
    ended = command(
        "extract",
        write_config(write_shard(tmp_path / "nan.tar", content)),
        f"method.name={method}",
        *(["method.n_steps=2", "stack.basis=prompts"] if method != "occlusion" else []),
        "prompts.texts=[heart, no nodule]",
    )
    assert (ended.code, ended.line["done"], ended.line["failed"]) == (1, 2, 1)
    ((key, (_, reason)),) = failures(tmp_path / "store").items()
    assert key == "white"
    assert "NaN" in reason
    for record in Store(tmp_path / "store"):
        assert all(np.isfinite(record.arrays[name]).all() for name in record.arrays)
    figure(f"a whole job, {method}: a model that answers NaN for 1 of 3 pictures: 2 done, 1 named, 0 stored")


@pytest.mark.fault("R14")
def test_a_hanging_reader_is_noticed(
    write_config: WriteConfig, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    """After the index was made the shard becomes a pipe that nobody writes to."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how long torch waits for its end

    def index_and_hang(shards: list[str], **options: Any) -> ShardIndex:
        index = index_shards(shards, **options)
        for shard in shards:
            os.unlink(shard)
            os.mkfifo(shard)
        return index

    config = write_config(write_shard(tmp_path / "slow.tar", samples(2)))
    assert command("extract", config, "data.num_workers=1", "data.limit=1").code == 0  # workers can be started
    monkeypatch.setattr(extract, "index_shards", index_and_hang)
    started = time.perf_counter()
    ended = command("extract", config, "data.num_workers=1", "data.timeout_s=2")
    seconds = time.perf_counter() - started
    assert seconds < 10 * (2 * 2)  # twice the timeout, on a machine ten times slower
    assert (ended.code, ended.line["status"]) == (4, "stopped")
    assert "\nextract: reading the shards stopped (DataLoader timed out after 2 seconds)" in ended.err
    assert "Traceback" not in ended.err
    assert len(Store(tmp_path / "store")) == 1
    figure(f"a whole job whose reader hangs ends after {seconds:.1f} s at a time limit of 2 s, exit code 4")
    gc.collect()  # torch waits for the hanging worker here, and not in the next test


def is_pause(command_line: Path) -> bool:
    with suppress(OSError):  # it has ended in between
        return command_line.read_bytes() == f"sleep\0{PAUSE_S}\0".encode()
    return False


@pytest.mark.fault("R14")
def test_a_shard_that_hangs_while_samples_are_counted_ends_the_job(
    write_config: WriteConfig, command: Command, tmp_path: Path, figure: Figure
) -> None:
    """A program that never answers, before there is a reader process that could be timed out."""
    shards = ["data.allowed_schemes=[pipe]", f"data.shards=pipe:exec sleep {PAUSE_S}"]
    started = time.perf_counter()
    ended = command("extract", write_config(""), *shards, "data.timeout_s=1")
    seconds = time.perf_counter() - started
    assert seconds < 10 * (2 * 1)  # twice the timeout, on a machine ten times slower
    assert (ended.code, ended.line["status"]) == (4, "stopped")
    assert f"extract: reading the shards stopped ('pipe:exec sleep {PAUSE_S}' has given nothing for 1 s" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "store").exists()
    deadline = time.monotonic() + 20
    while left := [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_pause(path)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    figure(f"a whole job whose count hangs ends after {seconds:.1f} s at a time limit of 1 s, exit code 4, 0 left over")


def test_a_job_without_samples_is_over_at_once(write_config: WriteConfig, command: Command, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "none.tar", [("bare", {"json": b"{}"})])
    ended = command("extract", write_config(shard))
    assert (ended.code, ended.line["expected"], ended.line["done"], ended.line["failed"]) == (1, 1, 0, 1)
