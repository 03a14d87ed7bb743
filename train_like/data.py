"""The shards as a LightningDataModule."""

from collections.abc import Sequence
from functools import partial

import lightning
import torch
import webdataset as wds

from mapstack.config import DataConfig
from mapstack.images import Preprocessing
from train_like.batch import Batch, collate_items, prepare_item
from train_like.index import Entry
from train_like.source import sample_pipeline


class ShardData(lightning.LightningDataModule):
    """Gives each rank its share of the samples that are still to do.

    Args:
        config: How shards are read.
        preprocessing: How pictures are prepared.

    Attributes:
        entries: The samples to do, the same on all ranks; set before the loop begins.
    """

    def __init__(self, config: DataConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.entries: Sequence[Entry] = ()
        self._config = config
        self._preprocessing = preprocessing

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch; Lightning's own way rebuilds dataclasses and refuses frozen ones."""
        return batch.to(device)

    def predict_dataloader(self) -> wds.WebLoader:
        """Build the WebDataset pipeline of this rank."""
        if self.trainer is None:
            raise RuntimeError("the loader belongs to a trainer, which knows the rank; pass the data module to one.")
        return sample_pipeline(
            self.entries,
            prepare=partial(
                prepare_item,
                preprocessing=self._preprocessing,
                accept_burned_in=self._config.accept_burned_in,
            ),
            collate=partial(collate_items, batch_size=self._config.batch_size),
            batch_size=self._config.batch_size,
            num_workers=self._config.num_workers,
            timeout_s=self._config.timeout_s,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
