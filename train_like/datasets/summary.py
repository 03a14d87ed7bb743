"""dataset.json: what the shards of a dataset hold, what was left out and why, and how the labels are balanced."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median_low
from typing import Any

from mapstack.job_configs import ShardsConfig
from mapstack.store.disk import write_atomic
from train_like.datasets.selection import Selection
from train_like.datasets.writing import Task

FILE = "dataset.json"
FAILURES = "failed.jsonl"


def summarise(
    config: ShardsConfig, selection: Selection, tasks: Sequence[Task], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Sum up the records of all shards; nothing in it depends on when or how often the command ran."""
    labels: dict[str, Counter[str]] = {}
    counts = {name: Counter[str]() for name in ("split", "view", "patient", "study")}
    notes, failures, totals = Counter(selection.notes), Counter[str](), Counter[str]()
    sizes: list[tuple[int, int]] = []
    shards = []
    for task, record in zip(tasks, records, strict=True):
        for sample in record["samples"]:
            _count_labels(sample, labels)
            for name, counter in counts.items():
                counter.update([sample[name]] if name in sample else [])
            sizes.append(tuple(sample["size"]))
            totals.update(bytes=sample["bytes"], reports=sample["has_report"], boxes=len(sample["boxes"]))
        failures.update(each["reason"] for each in record["failed"])
        notes.update(record["notes"])
        if record["samples"]:
            shards.append({"name": task.shard.name, "samples": len(record["samples"]), "bytes": record["bytes"]})
    return {
        "source": config.source,
        "terms": config.dataset.terms,
        "settings": {**asdict(config.dataset), "n_samples": config.n_samples, "seed": config.seed},
        "listed": selection.n_listed,
        "left_out": dict(sorted(selection.left_out.items())),
        "samples": len(sizes),
        "failed": sum(failures.values()),
        "failures": dict(sorted(failures.items())),
        "notes": dict(sorted(notes.items())),
        "patients": len(counts["patient"]),
        "studies": len(counts["study"]),
        "splits": dict(sorted(counts["split"].items())),
        "views": dict(sorted(counts["view"].items())),
        "labels": {name: _with_share(counter, len(sizes)) for name, counter in sorted(labels.items())},
        "reports": totals["reports"],
        "boxes": totals["boxes"],
        "picture_bytes": totals["bytes"],
        "height_px": _spread([height for height, _ in sizes]),
        "width_px": _spread([width for _, width in sizes]),
        "shards": shards,
    }


def _count_labels(sample: Mapping[str, Any], labels: dict[str, Counter[str]]) -> None:
    for kind, name in (("positive", "labels"), ("uncertain", "uncertain"), ("negative", "negative")):
        for label in sample.get(name, ()):
            labels.setdefault(label, Counter())[kind] += 1
    for kind in ("boxes", "masks"):
        for label in sample[kind]:
            labels.setdefault(label, Counter())[kind] += 1


def _with_share(counter: Counter[str], n: int) -> dict[str, float]:
    counts = {kind: counter[kind] for kind in ("positive", "uncertain", "negative", "boxes", "masks")}
    return {**counts, "positive_share": round(counter["positive"] / n, 4)}


def _spread(values: Sequence[int]) -> dict[str, int]:
    return {"least": min(values), "median": median_low(values), "most": max(values)} if values else {}


def write_summary(folder: Path, summary: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
    """Write dataset.json, and failed.jsonl with a line for each sample that could not be written."""
    failed = [each for record in records for each in record["failed"]]
    lines = "".join(json.dumps(each, sort_keys=True) + "\n" for each in failed)
    write_atomic(folder / FAILURES, lines.encode())
    write_atomic(folder / FILE, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())


def balance_table(summary: Mapping[str, Any]) -> str:
    """Write the balance of the labels for people.

    Example:
        >>> counts = {"positive": 1, "uncertain": 0, "negative": 3, "positive_share": 0.25}
        >>> print(balance_table({"samples": 4, "labels": {"Edema": counts}}))
        4 samples   positive           uncertain  negative
        Edema              1   25.0 %          0         3
    """
    width = max((len(name) for name in (*summary["labels"], f"{summary['samples']} samples")), default=0)
    lines = [f"{summary['samples']} samples".ljust(width) + "   positive           uncertain  negative"]
    for name, counts in summary["labels"].items():
        share = f"{100 * counts['positive_share']:.1f} %"
        lines.append(
            f"{name:{width}} {counts['positive']:10} {share:>8} {counts['uncertain']:10} {counts['negative']:9}"
        )
    return "\n".join(lines)


def account(summary: Mapping[str, Any]) -> str:
    """Write for people what was left out, what failed and what was remarked, a line each; "" where nothing was.

    Example:
        >>> print(account({"left_out": {"of another view": 8}, "failures": {}, "notes": {}}))
        left out: 8 of another view
    """
    kinds = (("left out", "left_out"), ("failed", "failures"), ("note", "notes"))
    return "\n".join(f"{kind}: {n} {reason}" for kind, name in kinds for reason, n in summary[name].items())
