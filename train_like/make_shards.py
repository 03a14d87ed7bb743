"""`shards`: datasets in. The synthetic X-rays, so far."""

import sys
from pathlib import Path

from tqdm import tqdm

from mapstack.job_configs import ShardsConfig
from train_like.errors import DONE
from train_like.result import Result
from train_like.tarshards import phantom_samples, write_shards


def make_shards(config: ShardsConfig) -> Result:
    """Write the samples of a source as WebDataset shards."""
    samples = phantom_samples(config.n_samples, seed=config.seed, size=config.size)
    shown = tqdm(samples, total=config.n_samples, desc="shards", unit="image", file=sys.stderr)
    paths = write_shards(shown, Path(config.output), config.name, config.n_per_shard)
    return Result(DONE, {"output": config.output, "samples": config.n_samples, "shards": [str(p) for p in paths]})
