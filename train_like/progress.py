"""The progress bars: images, images/s, time left, bytes written; of `fit`, steps and the loss."""

import sys
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from train_like.data import ShardData
from train_like.source import share
from train_like.writer import StoreCallback


class ExtractionProgress(ProgressBar):
    """Counts the samples of rank 0, whose share stands for all."""

    def __init__(self, store: StoreCallback) -> None:
        super().__init__()
        self._store = store
        self._is_enabled = True
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        """Show nothing; Lightning calls it on the other ranks."""
        self._is_enabled = False

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar."""
        data: ShardData = trainer.datamodule  # type: ignore[attr-defined]
        n_samples = len(share(data.entries, trainer.global_rank, trainer.world_size))
        label = "extract" if trainer.world_size == 1 else f"extract (rank 0 of {trainer.world_size})"
        self._bar = tqdm(
            total=n_samples, desc=label, unit="image", file=sys.stderr, disable=not self._is_enabled, dynamic_ncols=True
        )

    def on_predict_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        """Advance by the samples that have become durable."""
        self._advance()

    def _advance(self) -> None:
        if self._bar is not None:
            size = self._store.record_size
            most = f"{'' if size.is_exact else 'at most '}{format_bytes(self._bar.total * size.n_bytes)}"
            self._bar.set_postfix_str(f"{format_bytes(self._store.n_bytes)} of {most} written", refresh=False)
            self._bar.update(self._store.n_seen - self._bar.n)

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the bar with the last batch in it."""
        self._advance()
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """End the bar's line, so that the reason gets its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class FitProgress(ProgressBar):
    """Counts the steps of `fit` and shows the loss."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar."""
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc="fit",
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        """Advance by one step."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {trainer.callback_metrics['loss'].item():.3f}", refresh=False)
            self._bar.update()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def format_bytes(n_bytes: float) -> str:
    """Write a size for people.

    Example:
        >>> format_bytes(51_380_224)
        '51.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
