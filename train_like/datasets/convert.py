"""One dataset to shards: read its tables, take the samples, write them, and say what came of it."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from mapstack.errors import ConfigError
from mapstack.job_configs import ShardsConfig
from mapstack.store.disk import write_atomic
from train_like.datasets.contact_sheet import FILE as CONTACT_SHEET
from train_like.datasets.contact_sheet import write_contact_sheet
from train_like.datasets.loading import Rules
from train_like.datasets.rows import Listing, Row
from train_like.datasets.selection import Selection, select
from train_like.datasets.summary import FAILURES, FILE, balance_table, summarise, write_summary
from train_like.datasets.writing import Task, dataset_folder, plan, read_record, write_tasks
from train_like.errors import DONE, SOME_FAILED
from train_like.result import Result

FILE_LIST = "files.txt"


def convert(config: ShardsConfig) -> Result:
    """Write the samples of a dataset as shards, with dataset.json, failed.jsonl and contact_sheet.png beside them.

    Raises:
        ConfigError: A key is missing.
        ShardError: The dataset is not laid out as its publisher does, or the folder holds other shards.
        StoppedError: The disk is full, or a reading process died.
    """
    selection = select(read_listing(config), config.dataset, config.n_samples, config.seed)
    if config.list_files:
        return _list_files(config, selection)
    folder = Path(config.output)
    rules = Rules(config.dataset.check, config.dataset.accept_burned_in, config.dataset.keep_dicom)
    tasks = plan(selection.rows, rules, folder, config.name, config.n_per_shard)
    with dataset_folder(folder, config.name, tasks, overwrite=config.overwrite):
        write_tasks(tasks, config.n_workers or (os.cpu_count() or 1) + 1)
        summary = summarise(config, selection, tasks)
        write_summary(folder, summary, tasks)
        write_contact_sheet(folder, _written(selection.rows, tasks), rules)
    print(balance_table(summary), file=sys.stderr)
    return Result(
        SOME_FAILED if summary["failed"] else DONE,
        {
            "output": config.output,
            "shards": f"{folder / config.name}-*.tar",
            "n_shards": len(summary["shards"]),
            "expected": len(selection.rows),
            "samples": summary["samples"],
            "failed": summary["failed"],
            "failures": str(folder / FAILURES),
            "dataset": str(folder / FILE),
            "contact_sheet": str(folder / CONTACT_SHEET),
        },
    )


def read_listing(config: ShardsConfig) -> Listing:
    """Read the tables of the configured dataset.

    Raises:
        ConfigError: Its folder is not named, or is none.
        ShardError: A table is missing, damaged, or lacks a column.
    """
    for key in ("root", "images"):
        path = getattr(config.dataset, key)
        if (key == "root" and not path) or (path and not Path(path).is_dir()):
            raise ConfigError(f"dataset.{key} is '{path or ''}'; it is the folder of a dataset; set it to one.")
    module = import_module(f"train_like.datasets.{config.source}")
    listing: Listing = module.read(config.dataset)
    return listing


def _list_files(config: ShardsConfig, selection: Selection) -> Result:
    """Write which picture files the shards need, relative to their folder, one a line."""
    base = config.dataset.images or config.dataset.root
    names = [os.path.relpath(row.path, base) for row in selection.rows]
    path = Path(config.output) / FILE_LIST
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{name}\n" for name in names).encode())
    return Result(DONE, {"output": config.output, "files": str(path), "expected": len(names)})


def _written(rows: Sequence[Row], tasks: Sequence[Task]) -> list[Row]:
    keys = {sample["key"] for task in tasks for sample in read_record(task.record)["samples"]}
    return [row for row in rows if row.key in keys]
