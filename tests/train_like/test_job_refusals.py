"""Wrong configuration: exit 2 and one sentence, before anything is written."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train_like.jobs import Ended

Command = Callable[..., Ended]

REFUSED = {
    "data.batchsize=3": r"'data.batchsize' is unknown; .* Did you mean 'data.batch_size'\?",
    "dta.batch_size=3": r"'dta' is unknown; .* Did you mean 'data'\?",
    "method.stride=3": r"'method.stride' is unknown; .* Did you mean 'method.strides'\?",
    "data.batch_size=two": r"'data.batch_size' is wrong: Value 'two'",
    "data.batch_size=0": r"data.batch_size is 0; it must be at least 1",
    "data.max_bad_share=-1": r"data.max_bad_share is -1.0; it must be at least 0",
    "method.strides=0": r"method.strides is 0; it must be at least 1",
    "method.perturbations_per_eval=0": r"method.perturbations_per_eval is 0",
    "method.baseline=blck": r"method.baseline 'blck' is unknown; .* Did you mean 'black'\?",
    "method.sliding_window_shapes=500": r"sliding_window_shapes is 500 px and the model-input frame 224 px",
    "method.name=intgrad": r"method 'intgrad' is unknown; .* Did you mean 'integrated_gradients'\?",
    "method=occlusion": r"'method' is 'occlusion'; it is a block of keys",
    "method=[1]": r"'method' is \[1\]; it is a block of keys",
    "stack=axes": r"'stack' is 'axes'; it is a block of keys",
    "stack.map_size=100": r"map_size 100 does not fit maps of 224 x 224 px",
    "stack.codec=float61": r"stack.codec 'float61' is unknown; .* Did you mean 'float16'\?",
    "stack.basis=prompts": r"stack.basis is 'prompts' and no prompts are configured",
    "route=direct": r"route is 'direct'; extract writes a stack",
    "model.checkpoint=nowhere": r"checkpoint 'nowhere' is not a folder",
    "model.name=medclip": r"model 'medclip' is unknown; .* Did you mean 'medclip-vit'\?",
    "data.shards=": r"data.shards",
    "data.shards=[]": r"data.shards names no shard",
    "data.shards=nowhere-*.tar": r"shard pattern 'nowhere-\*.tar' matches no file",
    "data.shards=pipe:cat a.tar": r"has the scheme 'pipe'",
    "prompts.file=nowhere.yaml": r"prompt file 'nowhere.yaml' cannot be read",
    "trainer.accelerator=gpuu": r"Lightning refuses the trainer .*gpuu",
    "trainer.devices=none": r"Lightning refuses the trainer",
    "trainer.precision=16": r"trainer.precision '16' is unknown",
    "overwrite=maybe": r"'overwrite' is wrong: Value 'maybe' is not a valid bool",
    "seed": r"override 'seed' is no key=value",
    "seed=[": r"an override's value is no YAML",
}


def assert_refused(ended: Ended, pattern: str) -> None:
    assert (ended.code, ended.line["status"]) == (2, "wrong_use")
    assert ended.err == f"extract: {ended.line['error']}\n"
    assert ended.err.count("\n") == 1
    assert re.search(pattern, ended.err), ended.err
    assert ended.err.rstrip()[-1] in ".?"


@pytest.mark.parametrize(("override", "pattern"), REFUSED.items(), ids=REFUSED)
def test_wrong_configuration_is_refused_in_one_sentence(
    override: str, pattern: str, job_config: Path, command: Command, tmp_path: Path
) -> None:
    assert_refused(command("extract", job_config, override), pattern)
    assert not (tmp_path / "store").exists()


def test_a_method_that_is_not_linear_takes_the_axes_only(job_config: Path, command: Command, tmp_path: Path) -> None:
    overrides = ["method.name=saliency", "stack.basis=prompts", "prompts.texts=[heart]"]
    assert_refused(command("extract", job_config, *overrides), "method 'saliency' is not linear; only the axes make")
    assert not (tmp_path / "store").exists()


def test_a_refusal_discards_nothing(job_config: Path, command: Command, tmp_path: Path) -> None:
    assert command("extract", job_config, "data.limit=1").code == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "store").iterdir())
    assert_refused(command("extract", job_config, "overwrite=true", "method.sliding_window_shapes=500"), "500 px")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "store").iterdir()) == before


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (None, "does not exist; give the path of a YAML file"),
        (b"- a\n- b\n", "holds a list; it must hold keys and values"),
        (b"a: [", "is no YAML"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b"sed: 1", r"'sed' is unknown; .* Did you mean 'seed'\?"),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes | None, pattern: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    assert_refused(command("extract", path), pattern)


def test_a_launcher_that_started_more_processes_than_the_trainer_counts(
    job_config: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NTASKS": "2", "NTASKS_PER_NODE": "2", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert_refused(command("extract", job_config), "has started 2 processes and the trainer counts 1; they must agree")
    assert not (tmp_path / "store").exists()


def test_a_folder_that_holds_something_else_is_left_alone(job_config: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("years of work")
    ended = command("extract", job_config, "overwrite=true")
    assert (ended.code, ended.line["status"]) == (3, "wrong_store")
    assert "holds other files, such as 'thesis.txt'" in ended.err
    assert (tmp_path / "store" / "thesis.txt").read_text() == "years of work"


def test_a_disk_that_refuses_stops_the_job(job_config: Path, command: Command) -> None:
    ended = command("extract", job_config, f"output={job_config}/store")
    assert (ended.code, ended.line["status"]) == (4, "stopped")
    assert "could not be read or written" in ended.err
