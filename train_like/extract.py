"""`extract`: input shards -> stack store."""

import importlib.metadata
import logging
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from mapstack import __version__
from mapstack.config import Config, TrainerConfig
from mapstack.errors import ConfigError
from mapstack.explainer import Explainer
from mapstack.geometry import reduce_area
from mapstack.methods import Occlusion
from mapstack.models import in_precision, load_model, read_fingerprint
from mapstack.prompts import digest_groups
from mapstack.readouts import TextReadout
from mapstack.store.disk import disk_errors
from mapstack.store.layout import MANIFEST
from mapstack.store.lock import refuse_if_held
from mapstack.store.manifest import read_manifest, require_same_identity
from mapstack.store.session import digest_basis
from mapstack.stored_stack import describe_store
from train_like.bases import choose_basis
from train_like.data import ShardData
from train_like.errors import DONE, SOME_FAILED, StoppedError, TerminatedError
from train_like.index import expand_shards, index_shards, outline_shards
from train_like.module import StackModule
from train_like.progress import ExtractionProgress
from train_like.result import Result
from train_like.size import estimate_record
from train_like.texts import tell_truncated
from train_like.writer import StoreCallback

_EXPECTED_WARNINGS = (
    "Couldn't infer the batch indices",  # keys travel in the batch
    "The 'predict_dataloader' does not have many workers",  # two workers decode faster than any model explains
    ".*is deprecated, use `isinstance",  # inside Lightning, on torch 2.15
)
_OUTLINE = "shards_outline"  # in the manifest: what is known of the shards before they are walked
# Ranks that Lightning starts index the shards once more, while the first one waits: half an hour is its own patience.
_PATIENCE = timedelta(days=1)
_PACKAGES = ("torch", "transformers", "medclip", "captum", "lightning", "webdataset", "numpy", "pillow")


def extract(config: Config) -> Result:
    """Make the stacks of all samples of the shards.

    Raises:
        ConfigError: Keys contradict each other, or texts are needed and none are configured.
        ShardError: There are no shards, or a key comes twice.
        CheckpointError: The checkpoint is missing or damaged.
        StoreError: The store is damaged, held by another job, or of another configuration.
        StoppedError: A shard gives nothing any more, or the job stopped early.
    """
    if config.route != "auto":
        raise ConfigError(
            f"route is '{config.route}'; extract writes a stack, whose form is stack.basis; remove route or set it to "
            "auto."
        )
    # From the quick to the slow: settings and the lock, names and sizes, the model with the texts, all samples.
    _refuse_other_settings(config)
    _refuse_held_store(config)
    shards = expand_shards(config.data.shards, config.data.allowed_schemes)
    outline = outline_shards(shards)
    _refuse_other_store(config, {_OUTLINE: outline})
    if _stored_identity(config):
        # Hashing weights takes a fifth of the time in which a model is built from them.
        _refuse_other_store(config, {"weights": read_fingerprint(config.model.name, config.model.checkpoint)})
    explainer = make_explainer(config)
    readout = make_readout(config, explainer)
    basis = choose_basis(config, explainer, readout)
    rows = None if basis is None else basis.rows.numpy()
    _require_form(explainer)
    manifest = describe_store(explainer, basis, encoding=config.stack.encoding, shards_digest="", readout=readout)
    # Before shards are walked, which takes longer than to load a model. Other weights have another basis, too.
    _refuse_other_store(config, {name: value for name, value in manifest["identity"].items() if name != "shards"})
    _refuse_other_store(config, {"basis_sha256": digest_basis(rows)})
    index = index_shards(
        shards,
        duplicates=config.data.duplicates,  # type: ignore[arg-type]
        timeout_s=config.data.timeout_s,
    ).limited(config.data.limit)
    manifest["identity"]["shards"] = index.digest
    _refuse_other_store(config, manifest["identity"])
    store = StoreCallback(
        Path(config.output),
        {**manifest, _OUTLINE: outline, "model": config.model.name, "versions": _versions()},
        rows,
        index,
        estimate_record(manifest, n_texts=0 if readout is None else readout.n_rows),
        overwrite=config.overwrite,
        max_bad_share=config.data.max_bad_share,
    )
    module = StackModule(explainer, basis, readout, config.stack.encoding)
    started = time.perf_counter()
    trainer = make_trainer(config.trainer, [store, ExtractionProgress(store)])
    if readout is not None and trainer.is_global_zero:
        tell_truncated(readout.groups, explainer.model.text)
    _predict(trainer, module, ShardData(config.data, explainer.model.preprocessing), store)
    if store.totals is None:
        raise StoppedError("the loop ended before the account was closed; run the same command to go on.")
    totals = store.totals
    is_complete = totals.failed == 0 and totals.done == totals.expected
    summary = {
        "output": config.output,
        "expected": totals.expected,
        "done": totals.done,
        "failed": totals.failed,
        "computed_by_rank_0": store.n_computed,
        "bytes": totals.n_bytes,
        "bytes_estimated": store.n_bytes_estimated,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Result(DONE if is_complete else SOME_FAILED, summary, trainer.is_global_zero)


def _refuse_other_settings(config: Config) -> None:
    """Refuse what the configuration alone says, before shards are walked and a model is loaded, which can take long.

    Raises:
        ConfigError: The prompt file is missing or damaged.
        StoreError: The store was written with other settings or texts.
    """
    stored = _stored_identity(config)
    if not stored:
        return
    groups = config.prompts.groups()
    settings = {
        "method": config.method.describe(),
        "seed": config.seed,
        "basis": config.stack.basis,
        "precision": config.trainer.precision,
        "prompts": digest_groups(groups) if groups else None,
        "prompts_padding": config.model.prompt_padding if groups else None,
    }
    # Whether the next three are as configured is decided by method and basis, which are compared above.
    if stored.get("form") == "dense":
        settings |= config.stack.encoding.describe()
        if config.stack.map_size is not None:
            settings["map_size"] = config.stack.map_size
    if stored.get("normalize") != "both":
        settings["normalize"] = config.stack.normalize
    _refuse_other_store(config, settings)


def _refuse_held_store(config: Config) -> None:
    """Refuse a store that another job writes; whoever starts at the same moment is refused when the store is opened.

    Every rank asks: those of its own job cannot have opened the store, which they do together, once all are there.

    Raises:
        StoreError: A process holds it; the message says which.
        StoreDiskError: The disk refuses.
    """
    folder = Path(config.output)
    with disk_errors(folder):
        refuse_if_held(folder)


def _refuse_other_store(config: Config, identity: Mapping[str, Any]) -> None:
    """Refuse a store of another identity before any rank is started; the store itself looks again, under its lock.

    Args:
        config: Names the store.
        identity: As much of it as is known.

    Raises:
        StoreError: The store was written with another one.
    """
    stored = _stored_identity(config)
    # A store may say nothing of the outline.
    if stored and (_OUTLINE in stored or _OUTLINE not in identity):
        theirs = {name: stored[name] for name in identity if name in stored}
        require_same_identity(Path(config.output), theirs, identity)


def _stored_identity(config: Config) -> dict[str, Any]:
    """Return what names the store that this run would go on with: its identity and more; empty where there is none."""
    folder = Path(config.output)
    with disk_errors(folder):
        if config.overwrite or not (folder / MANIFEST).is_file():
            return {}
        manifest = read_manifest(folder)
    beside = {name: manifest[name] for name in ("basis_sha256", _OUTLINE) if name in manifest}
    return {**manifest["identity"], **beside}


def make_explainer(config: Config) -> Explainer:
    """Load the model and join it with the method."""
    model = load_model(
        config.model.name,
        config.model.checkpoint,
        prompt_padding=config.model.prompt_padding,  # type: ignore[arg-type]
    )
    return Explainer(
        in_precision(model, config.trainer.precision),
        config.method,
        normalize=config.stack.normalize,
        map_size=config.stack.map_size,
        seed=config.seed,
    )


def on_accelerator(explainer: Explainer, config: TrainerConfig) -> Explainer:
    """Move the model to the GPU that the trainer would take, where it is used without one; return the explainer."""
    if torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda"):
        explainer.model.to("cuda")
    return explainer


def make_readout(config: Config, explainer: Explainer) -> TextReadout | None:
    """Embed the configured texts; None where there are none."""
    groups = config.prompts.groups()
    return explainer.readout(groups) if groups else None


def _require_form(explainer: Explainer) -> None:
    """Refuse a form that does not fit the model here, where no store is opened yet, and none discarded.

    Raises:
        InputError: The windows do not fit the model-input frame, or `map_size` does not divide it.
    """
    image_size = explainer.model.preprocessing.image_size
    if isinstance(explainer.method, Occlusion):
        explainer.method.windows(image_size)
    reduce_area(torch.zeros(image_size, image_size), explainer.frame_size)


def make_trainer(config: TrainerConfig, callbacks: Sequence[lightning.Callback]) -> lightning.Trainer:
    """Build the trainer of the loop.

    Raises:
        ConfigError: Lightning refuses a value, or the launcher has started another number of processes.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        trainer = lightning.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            # Precision is the model's own: Lightning's mixed one would round sums and residuals as well, and its
            # double one rebuilds every batch, which ours does not stand.
            precision="32-true",
            inference_mode=False,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=list(callbacks),
        )
    # Lightning has no class of its own for what it refuses.
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"Lightning refuses the trainer ({reason}); correct trainer.* or the launcher.") from None
    _require_all_processes(trainer.num_devices * trainer.num_nodes)
    if isinstance(trainer.strategy, DDPStrategy):
        # The strategy is Lightning's own choice, which to name one would take away.
        trainer.strategy._timeout = _PATIENCE
    return trainer


def _require_all_processes(n_counted: int) -> None:
    """Refuse a trainer that does not count the processes of its launcher: each would take itself for the only one."""
    launchers = (TorchElasticEnvironment, SLURMEnvironment)  # in Lightning's order: torchrun may run inside SLURM
    n_started = next((launcher().world_size() for launcher in launchers if launcher.detect()), n_counted)
    if n_started != n_counted:
        raise ConfigError(
            f"the launcher has started {n_started} processes and the trainer counts {n_counted}; they must agree; set "
            "trainer.devices to the processes of a node, and trainer.num_nodes."
        )


def _predict(trainer: lightning.Trainer, module: StackModule, data: ShardData, store: StoreCallback) -> None:
    """Run the loop.

    Raises:
        StoppedError: A reader hangs or has died, or Ctrl-C came.
        TerminatedError: SIGTERM came.
    """
    store.local_ranks.begin()
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            trainer.predict(module, datamodule=data, return_predictions=False)
    except BaseException as error:
        # Nothing in the loop would tell them that this rank is gone.
        store.local_ranks.take_over(trainer.strategy.launcher)
        store.local_ranks.send(signal.SIGTERM)
        explained = _explain_end(error, store)
        if explained is error:
            raise
        raise explained from None
    finally:
        try:
            store.close()
        finally:
            # Before this rank waits for others: one that waits for it is told so by its sockets.
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            store.local_ranks.end()


def _explain_end(error: BaseException, store: StoreCallback) -> BaseException:
    """Return what an error of the loop means for the job; the error itself where it says so already."""
    # torch has no class of its own for a reader that hangs or dies; one that dies while it hands a batch over breaks
    # the socket between.
    is_from_torch = isinstance(error, RuntimeError) and "DataLoader" in str(error)
    is_from_reader = is_from_torch or isinstance(error, ConnectionError | EOFError)
    if store.is_terminated and (is_from_reader or isinstance(error, StoppedError)):
        # SLURM sends it to the readers and to the other ranks, too.
        return TerminatedError("SIGTERM came; every committed record is kept; run the same command to go on.")
    if is_from_reader:
        reason = str(error) or type(error).__name__
        return StoppedError(f"reading the shards stopped ({reason}); see data.timeout_s; the same command goes on.")
    if isinstance(error, SystemExit):  # what Lightning makes of KeyboardInterrupt
        return StoppedError("Ctrl-C came; every committed record is kept; run the same command to go on.")
    return error


def _versions() -> dict[str, str]:
    return {"mapstack": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}
