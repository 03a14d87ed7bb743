"""`shards`: synthetic X-rays, or a dataset on disk."""

import sys
from pathlib import Path

from tqdm import tqdm

from mapstack.errors import ConfigError
from mapstack.job_configs import ShardsConfig
from train_like.datasets.convert import convert
from train_like.errors import DONE
from train_like.result import Result
from train_like.tarshards import phantom_samples, write_shards

_N_PHANTOMS = 16


def make_shards(config: ShardsConfig) -> Result:
    """Write the samples of a source as WebDataset shards.

    Raises:
        ConfigError: A key is missing, or belongs to datasets only.
        ShardError: The dataset is not laid out as its publisher does, or the folder holds other shards.
        StoppedError: The disk is full, or a reading process died.
    """
    return _write_phantoms(config) if config.source == "phantom" else convert(config)


def _write_phantoms(config: ShardsConfig) -> Result:
    if config.dataset.root or config.list_files:
        raise ConfigError("source is 'phantom', which has no files; set source to the dataset, or leave its keys out.")
    n_samples = config.n_samples or _N_PHANTOMS
    samples = phantom_samples(n_samples, seed=config.seed, size=config.size)
    shown = tqdm(samples, total=n_samples, desc="shards", unit="image", file=sys.stderr)
    paths = write_shards(shown, Path(config.output), config.name, config.n_per_shard)
    return Result(DONE, {"output": config.output, "samples": n_samples, "shards": [str(p) for p in paths]})
