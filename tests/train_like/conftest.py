"""Fixtures for whole runs of the job."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train_like.jobs import Ended, samples, write_shard
from train_like.cli import main

CONFIG = """
model: {{name: medclip-vit, checkpoint: {checkpoint}}}
data: {{shards: "{shards}", batch_size: 2, num_workers: 0}}
method: {{name: occlusion, sliding_window_shapes: 56, strides: 56}}
output: {output}
trainer: {{accelerator: cpu, devices: 1}}
"""


@pytest.fixture(scope="session")
def job_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven samples in two shards."""
    folder = tmp_path_factory.mktemp("job_shards")
    write_shard(folder / "a-0.tar", samples(4))
    write_shard(folder / "a-1.tar", samples(3, first=4))
    return f"{folder}/a-{{0..1}}.tar"


@pytest.fixture
def write_config(small_checkpoint: Path, tmp_path: Path) -> Callable[[str | Path], Path]:
    """Write the configuration of a quick job on some shards; its store is `tmp_path / "store"`."""

    def write(shards: str | Path) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(CONFIG.format(checkpoint=small_checkpoint, shards=shards, output=tmp_path / "store"))
        return path

    return write


@pytest.fixture
def job_config(write_config: Callable[[str | Path], Path], job_shards: str) -> Path:
    return write_config(job_shards)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(code, json.loads(out.splitlines()[-1]), out, err)

    return run


@pytest.fixture(scope="session")
def clean_store(small_checkpoint: Path, job_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the job's shards without interruption."""
    folder = tmp_path_factory.mktemp("clean")
    path = folder / "job.yaml"
    path.write_text(CONFIG.format(checkpoint=small_checkpoint, shards=job_shards, output=folder / "store"))
    assert main(["extract", str(path)]) == 0
    return folder / "store"
