"""The job with a model that costs nothing: full-size stacks (512 x 224 x 224) that were drawn beforehand.

Shards, Lightning's predict loop, the store's callback and the store are the job's own.
"""

import io
import json
import logging
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.setting import CHECKPOINT, describe_machine
from mapstack.codecs import Encoding
from mapstack.config import DataConfig, TrainerConfig
from mapstack.explainer import Explainer
from mapstack.images import MEDCLIP
from mapstack.methods import Attribution, Method
from mapstack.models import EmbeddingModel, load_text_tower
from mapstack.stored_stack import describe_store
from train_like.data import ShardData
from train_like.extract import make_trainer
from train_like.index import expand_shards, index_shards
from train_like.module import StackModule
from train_like.progress import ExtractionProgress
from train_like.size import estimate_record
from train_like.writer import StoreCallback

ROWS, SIDE, BATCH_SIZE = 512, 224, 4
LOW_RANK = 26  # of the demo model's stacks at the default tolerance (benchmarks/store_size.py)

Figures = dict[str, Any]


class ReadyModel(EmbeddingModel):
    """Embeds every picture alike; its texts are the demo model's."""

    preprocessing = MEDCLIP
    embed_dim = ROWS

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ROWS), requires_grad=False)
        self.text = load_text_tower("medclip-vit", CHECKPOINT, prompt_padding="none")

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """Return one embedding for all."""
        return self.weight.expand(len(pixel_values), -1)


class ReadyStacks(Method):
    """Answers with attributions that were drawn beforehand, after so many seconds [s] in which the CPU is free."""

    name = "gradient"
    one_stack_serves_both = True

    def __init__(self, seconds: float, rank: int = ROWS) -> None:
        self._seconds = seconds
        self._rank = rank

    def describe(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}

    def _attribute(self, model: EmbeddingModel, inputs: Any, readout: Any, *, seed: int, check: Any) -> Attribution:
        time.sleep(self._seconds)
        return Attribution(ready_values(self._rank), model.embed_images(inputs.pixel_values))


@cache
def ready_model() -> ReadyModel:
    """Build the model once."""
    return ReadyModel()


@cache
def ready_values(rank: int = ROWS) -> Tensor:
    """Draw one batch of stacks, as small as attributions are, and of so many independent rows."""
    source = torch.Generator().manual_seed(0)
    values = torch.randn(BATCH_SIZE, rank, SIDE, SIDE, generator=source) * 1e-6
    if rank == ROWS:
        return values
    return torch.einsum("dr,brhw->bdhw", torch.randn(ROWS, rank, generator=source), values)


def rank_for(codec: str) -> int:
    """Return the rank of the stacks that a codec is measured on: for lowrank, that of a trained model's."""
    return LOW_RANK if codec == "lowrank" else ROWS


class Clock(lightning.Callback):
    """Notes when the first batch has been read: workers start before that."""

    started = 0.0

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        """Start with the first batch."""
        if batch_idx == 0:
            self.started = time.perf_counter()


@dataclass(frozen=True)
class Loop:
    """One run of the job.

    Args:
        seconds: From the first batch to the closed store [s].
        n_bytes: Of its parts.
    """

    seconds: float
    n_bytes: int

    @property
    def mb_per_s(self) -> float:
        """Throughput [MB/s]."""
        return self.n_bytes / self.seconds / 1e6


def write_shard(path: Path, n: int, side: int = SIDE, suffix: str = "png") -> Path:
    """Write n pictures as a shard."""
    picture = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).resize((side, side)).save(picture, "jpeg" if suffix == "jpg" else suffix)
    with tarfile.open(path, "w") as tar:
        for index in range(n):
            member = tarfile.TarInfo(f"{index:06d}.{suffix}")
            member.size = picture.getbuffer().nbytes
            picture.seek(0)
            tar.addfile(member, picture)
    return path


def run_job(folder: Path, shard: Path, codec: str, seconds_per_batch: float = 0.0) -> Loop:
    """Fill a store with stacks that were drawn beforehand."""
    method = ReadyStacks(seconds_per_batch, rank_for(codec))
    return run_loop(folder, shard, Explainer(ready_model(), method), Encoding(codec))


def run_loop(folder: Path, shard: Path, explainer: Explainer, encoding: Encoding) -> Loop:
    """Fill a store, by the job's own loop."""
    index = index_shards(expand_shards(str(shard)))
    manifest = describe_store(explainer, None, encoding=encoding, shards_digest=index.digest)
    size = estimate_record(manifest, n_texts=0)
    store = StoreCallback(folder, manifest, None, index, size, overwrite=False, max_bad_share=0.0)
    data = ShardData(DataConfig(str(shard), batch_size=BATCH_SIZE, num_workers=1, timeout_s=600), MEDCLIP)
    clock = Clock()
    progress = ExtractionProgress(store)
    progress.disable()
    trainer = make_trainer(TrainerConfig("cpu", 1), [store, clock, progress])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = StackModule(explainer, None, None, encoding)
        trainer.predict(module, datamodule=data, return_predictions=False)
    seconds = time.perf_counter() - clock.started
    return Loop(seconds, sum(part.stat().st_size for part in folder.glob("part-*.tar")))


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Give a folder that is removed again."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="pipeline-") as path:
        yield Path(path)


def time_step(step: Callable[[], Any]) -> tuple[float, float]:
    """Return wall and CPU time [s]."""
    wall, cpu = time.perf_counter(), time.thread_time()
    step()
    return time.perf_counter() - wall, time.thread_time() - cpu


def answer(
    arguments: list[str], usage: str | None, questions: Mapping[str, Callable[[Path, int, int], Figures]]
) -> int:
    """Ask the questions that the command line wants, and end with all figures as one JSON line."""
    options = dict(argument.split("=", 1) for argument in arguments[1:])
    asked = options.get("only", ",".join(questions)).split(",")
    if not arguments or "=" in arguments[0] or not set(asked) <= set(questions):
        print(usage)
        return 2
    n, rounds = int(options.get("n", 24)), int(options.get("rounds", 3))
    logging.getLogger("lightning").setLevel(logging.ERROR)
    figures = {name: questions[name](Path(arguments[0]), n, rounds) for name in asked}
    print(json.dumps({"n": n, "rounds": rounds, "machine": describe_machine(), **figures}))
    return 0
