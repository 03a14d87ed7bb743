"""`extract`: input shards -> stack store."""

import importlib.metadata
import logging
import time
import warnings
from pathlib import Path

import lightning
import torch

from mapstack import __version__
from mapstack.basis import Basis
from mapstack.config import Config
from mapstack.errors import ConfigError
from mapstack.explainer import Explainer
from mapstack.models import load_model
from mapstack.readouts import TextReadout
from mapstack.stored_stack import describe_store
from train_like.data import ShardData
from train_like.errors import DONE, SOME_FAILED, StoppedError
from train_like.index import expand_shards, index_shards
from train_like.module import StackModule
from train_like.progress import ExtractionProgress
from train_like.result import Result
from train_like.writer import StoreCallback

_EXPECTED_WARNINGS = (
    "Couldn't infer the batch indices",  # keys travel in the batch
    "The 'predict_dataloader' does not have many workers",  # two workers decode faster than any model explains
    ".*is deprecated, use `isinstance",  # inside Lightning, on torch 2.15
)
_PACKAGES = ("torch", "transformers", "medclip", "captum", "lightning", "webdataset", "numpy", "pillow")


def extract(config: Config) -> Result:
    """Make the stacks of all samples of the shards.

    Raises:
        ConfigError: Keys contradict each other, or texts are needed and none are configured.
        ShardError: There are no shards, or a key comes twice.
        CheckpointError: The checkpoint is missing or damaged.
        StoreError: The store is damaged, held by another job, or of another configuration.
        StoppedError: The job stopped early.
    """
    if config.route != "auto":
        raise ConfigError(
            f"route is '{config.route}'; extract writes a stack, whose form is stack.basis; remove route or set it to "
            "auto."
        )
    index = index_shards(
        expand_shards(config.data.shards, config.data.allowed_schemes),
        duplicates=config.data.duplicates,  # type: ignore[arg-type]
    ).limited(config.data.limit)
    explainer = make_explainer(config)
    readout = make_readout(config, explainer)
    basis = _choose_basis(config, explainer, readout)
    manifest = describe_store(explainer, basis, codec=config.stack.codec, shards_digest=index.digest)
    store = StoreCallback(
        Path(config.output),
        {**manifest, "model": config.model.name, "versions": _versions()},
        None if basis is None else basis.rows.numpy(),
        index,
        overwrite=config.overwrite,
        max_bad_share=config.data.max_bad_share,
    )
    module = StackModule(explainer, basis, readout, config.stack.codec)
    started = time.perf_counter()
    is_reporter = _predict(config, module, ShardData(config.data, explainer.model.preprocessing), store)
    if store.totals is None:
        raise StoppedError("the loop ended before the account was closed; run the same command to go on.")
    totals = store.totals
    is_complete = totals.failed == 0 and totals.done == index.n_expected
    summary = {
        "output": config.output,
        "expected": totals.expected,
        "done": totals.done,
        "failed": totals.failed,
        "computed_by_rank_0": store.n_computed,
        "bytes": totals.n_bytes,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Result(DONE if is_complete else SOME_FAILED, summary, is_reporter)


def make_explainer(config: Config) -> Explainer:
    """Load the model and join it with the method."""
    model = load_model(
        config.model.name,
        config.model.checkpoint,
        prompt_padding=config.model.prompt_padding,  # type: ignore[arg-type]
    )
    if config.trainer.precision == "64-true":
        model = model.double()
    return Explainer(
        model, config.method, normalize=config.stack.normalize, map_size=config.stack.map_size, seed=config.seed
    )


def make_readout(config: Config, explainer: Explainer) -> TextReadout | None:
    """Embed the configured texts; None where there are none."""
    groups = config.prompts.groups()
    return explainer.readout(groups) if groups else None


def _choose_basis(config: Config, explainer: Explainer, readout: TextReadout | None) -> Basis | None:
    if config.stack.basis == "axes":
        return None
    if readout is None:
        raise ConfigError("stack.basis is 'prompts' and no prompts are configured; set prompts.file or prompts.texts.")
    if not explainer.method.is_linear:
        raise ConfigError(
            f"stack.basis is 'prompts' and method '{explainer.method.name}' is not linear; only the axes make its "
            "stack; set stack.basis=axes."
        )
    return Basis.of(readout.span)


def _predict(config: Config, module: StackModule, data: ShardData, store: StoreCallback) -> bool:
    """Run the loop; say whether this process is rank 0."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = lightning.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        precision=config.trainer.precision,  # type: ignore[arg-type]
        inference_mode=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[store, ExtractionProgress(store)],
    )
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            trainer.predict(module, datamodule=data, return_predictions=False)
    except RuntimeError as error:
        # torch has no class of its own for a reader that hangs or dies.
        if "DataLoader" not in str(error):
            raise
        raise StoppedError(
            f"reading the shards stopped ({error}); see data.timeout_s; the same command goes on."
        ) from None
    finally:
        store.close()
        is_reporter = trainer.is_global_zero
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return is_reporter


def _versions() -> dict[str, str]:
    return {"mapstack": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}
