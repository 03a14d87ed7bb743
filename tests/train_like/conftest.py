"""Fixtures for whole runs of the job."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mapstack.models import EmbeddingModel, load_model
from mapstack.models.medclip import save_random_medclip
from tests.toys import SMALL_TEXT, SMALL_VISION, VOCABULARY
from tests.train_like.jobs import Ended, samples, write_shard
from train_like.cli import main

QUICK_VISION = {**SMALL_VISION, "patch_size": 32, "depths": [1], "num_heads": [2]}

CONFIG = """
model: {{name: medclip-vit, checkpoint: {checkpoint}}}
data: {{shards: "{shards}", batch_size: 2, num_workers: 0}}
method: {{name: occlusion, sliding_window_shapes: 56, strides: 56}}
output: {output}
trainer: {{accelerator: cpu, devices: 1}}
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine two threads wait for each other far longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_checkpoint(folder: Path, seed: int) -> Path:
    sizes = {"vision": QUICK_VISION, "text": SMALL_TEXT}
    save_random_medclip(folder, tower="vit", sizes=sizes, vocabulary=VOCABULARY, seed=seed)
    return folder


@pytest.fixture(scope="session")
def job_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model so small that a job is over in a second."""
    return save_checkpoint(tmp_path_factory.mktemp("job_checkpoint"), seed=0)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("other_checkpoint"), seed=1)


@pytest.fixture(scope="session")
def job_model(job_checkpoint: Path) -> EmbeddingModel:
    return load_model("medclip-vit", job_checkpoint)


@pytest.fixture(scope="session")
def job_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven samples in two shards."""
    folder = tmp_path_factory.mktemp("job_shards")
    write_shard(folder / "a-0.tar", samples(4))
    write_shard(folder / "a-1.tar", samples(3, first=4))
    return f"{folder}/a-{{0..1}}.tar"


@pytest.fixture
def write_config(job_checkpoint: Path, tmp_path: Path) -> Callable[[str | Path], Path]:
    """Write the configuration of a quick job on some shards; its store is `tmp_path / "store"`."""

    def write(shards: str | Path) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(CONFIG.format(checkpoint=job_checkpoint, shards=shards, output=tmp_path / "store"))
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
def clean_store(job_checkpoint: Path, job_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the job's shards without interruption."""
    folder = tmp_path_factory.mktemp("clean")
    path = folder / "job.yaml"
    path.write_text(CONFIG.format(checkpoint=job_checkpoint, shards=job_shards, output=folder / "store"))
    assert main(["extract", str(path)]) == 0
    return folder / "store"
