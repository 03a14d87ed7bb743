"""One dataset to shards: read its tables, take the samples, write them, and say what came of it."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mapstack.errors import ConfigError, ShardError
from mapstack.job_configs import ShardsConfig
from mapstack.store.disk import write_atomic
from train_like.datasets.contact_sheet import FILE as CONTACT_SHEET
from train_like.datasets.contact_sheet import write_contact_sheet
from train_like.datasets.loading import Rules
from train_like.datasets.rows import Listing, Row
from train_like.datasets.selection import Selection, select
from train_like.datasets.summary import FAILURES, FILE, account, balance_table, summarise, write_summary
from train_like.datasets.writing import dataset_folder, plan, prepare_workers, read_record, writable, write_tasks
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
    n_workers = 1 if config.list_files else config.n_workers or (os.cpu_count() or 1) + 1
    prepare_workers(n_workers)
    selection = _selected(config)
    if config.list_files:
        return _list_files(config, selection)
    folder = Path(config.output)
    rules = Rules(config.dataset.check, config.dataset.accept_burned_in, config.dataset.keep_dicom)
    tasks = plan(selection.rows, rules, folder, config.name, config.n_per_shard)
    with dataset_folder(folder, config.name, tasks, overwrite=config.overwrite):
        write_tasks(tasks, n_workers)
        records = [read_record(task.record) for task in tasks]
        summary = summarise(config, selection, tasks, records)
        write_summary(folder, summary, records)
        write_contact_sheet(folder, _written(selection.rows, records), rules)
    print(f"{balance_table(summary)}\n{account(summary)}".rstrip(), file=sys.stderr)
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


def _selected(config: ShardsConfig) -> Selection:
    try:
        return select(read_listing(config), config.dataset, config.n_samples, config.seed)
    except OSError as error:
        raise ShardError(
            f"'{error.filename}' cannot be read ({error.strerror or type(error).__name__}); folders and tables of a "
            "dataset must be readable; mend their permissions, or choose another dataset.root."
        ) from None


def read_listing(config: ShardsConfig) -> Listing:
    """Read the tables of the configured dataset.

    Raises:
        ConfigError: Its folder is not named, is not there, or is none.
        ShardError: A table is missing, damaged, or lacks a column.
    """
    for key in ("root", "images"):
        path = getattr(config.dataset, key)
        if key == "root" and not path:
            raise ConfigError("dataset.root is empty; it is the folder of the dataset; set it.")
        if path and not Path(path).is_dir():
            found = "a file" if Path(path).exists() else "not there"
            raise ConfigError(f"dataset.{key} '{path}' is {found}; it is the folder of the dataset; correct the path.")
    module = import_module(f"train_like.datasets.{config.source}")
    listing: Listing = module.read(config.dataset)
    return listing


def _list_files(config: ShardsConfig, selection: Selection) -> Result:
    """Write which picture files the shards need, relative to their folder, one a line."""
    base = config.dataset.images or config.dataset.root
    names = [os.path.relpath(row.path, base) for row in selection.rows]
    path = Path(config.output) / FILE_LIST
    with writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(f"{name}\n" for name in names).encode())
    return Result(DONE, {"output": config.output, "files": str(path), "expected": len(names)})


def _written(rows: Sequence[Row], records: Iterable[Mapping[str, Any]]) -> list[Row]:
    keys = {sample["key"] for record in records for sample in record["samples"]}
    return [row for row in rows if row.key in keys]
