"""Which rows of a dataset become samples: by split, view and presence, and then so many at random."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mapstack.dataset_configs import DatasetConfig
from mapstack.errors import ShardError
from train_like.datasets.rows import FRONTAL_VIEWS, Listing, Row, unique, without_repeats

if TYPE_CHECKING:  # as in `train_like.datasets.rows`
    from mapstack.metrics.rle import EncodedMask

_N_LOOKING = 16  # a network's file system answers many questions at once


@dataclass(frozen=True)
class Selection:
    """The rows that were taken.

    Attributes:
        rows: In the order of the dataset's tables.
        n_listed: How many the tables hold.
        left_out: How many were not taken, by reason.
        notes: Remarks, and of how many rows each is true.
    """

    rows: list[Row]
    n_listed: int
    left_out: Counter[str]
    notes: Counter[str]


def select(listing: Listing, config: DatasetConfig, n_samples: int | None, seed: int) -> Selection:
    """Take the configured rows.

    Of `n_samples` at random each row has the same chance. Which ones are taken depends on the seed and on the
    identifiers alone: a row that is added to or removed from the dataset changes no more than its own place.

    Raises:
        ShardError: Nothing is left, a split does not exist, or two rows have one key.
    """
    notes = Counter(listing.notes)
    rows = list(without_repeats(listing.rows, notes))
    n_listed = len(rows)
    left_out: Counter[str] = Counter()
    rows = _of_splits(rows, config.splits, left_out)
    rows = _of_views(rows, config.views, left_out) if listing.has_views else rows
    if config.absent == "leave_out":
        rows = _present(rows, left_out)
    if n_samples is not None and n_samples < len(rows):
        left_out["not drawn at random"] = len(rows) - n_samples
        rows = draw(rows, n_samples, seed)
    elif n_samples is not None:
        notes["samples fewer than n_samples (all are taken)"] = n_samples - len(rows)
    if not rows:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in left_out.items()) or "its tables list none"
        raise ShardError(f"no sample of the dataset is left ({reasons}); check dataset.root, splits and views.")
    rows = [_relabelled(row, config.uncertain, config.rename) for row in rows]
    _require_distinct_keys(rows)
    # Without those that are true of no row.
    return Selection(rows, n_listed, +left_out, +notes)


def draw(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """Draw rows at random; their order stays."""
    order = sorted(range(len(rows)), key=lambda index: hashlib.sha256(f"{seed} {rows[index].id}".encode()).digest())
    return [rows[index] for index in sorted(order[:n])]


def _of_splits(rows: list[Row], splits: Sequence[str] | None, left_out: Counter[str]) -> list[Row]:
    if splits is None:
        return rows
    known = {row.split for row in rows if row.split is not None}
    for split in splits:
        if split not in known:
            raise ShardError(
                f"split '{split}' is none of the dataset's ({', '.join(sorted(known)) or 'it has none'}); correct "
                "dataset.splits."
            )
    kept = [row for row in rows if row.split in splits]
    left_out["of another split"] += len(rows) - len(kept)
    return kept


def _of_views(rows: list[Row], views: str, left_out: Counter[str]) -> list[Row]:
    if views == "all":
        return rows
    kept = []
    for row in rows:
        if row.view is None:
            left_out["without a view"] += 1
        elif (row.view in FRONTAL_VIEWS) == (views == "frontal"):
            kept.append(row)
        else:
            left_out["of another view"] += 1
    return kept


def _present(rows: list[Row], left_out: Counter[str]) -> list[Row]:
    with ThreadPoolExecutor(_N_LOOKING) as pool:
        is_there = list(pool.map(lambda row: os.path.isfile(row.path), rows))
    left_out["whose file is absent"] += is_there.count(False)
    return [row for row, there in zip(rows, is_there, strict=True) if there]


def _relabelled(row: Row, uncertain: str, rename: Mapping[str, str]) -> Row:
    if uncertain == "apart" and not rename:
        return row

    def renamed(labels: Iterable[str]) -> tuple[str, ...]:
        return unique(name for name in (rename.get(label, label) for label in labels) if name)

    labels, apart, negative = row.labels, row.uncertain, row.negative
    if uncertain == "positive":
        labels, apart = (*labels, *apart), ()
    elif uncertain == "negative":
        negative, apart = (*negative, *apart), ()
    labels = renamed(labels)
    # Where two classes became one, the surer says what holds.
    apart = tuple(label for label in renamed(apart) if label not in labels)
    negative = tuple(label for label in renamed(negative) if label not in (*labels, *apart))
    findings = tuple(
        replace(each, label=rename.get(each.label, each.label))
        for each in row.findings
        if rename.get(each.label, each.label)
    )
    masks: dict[str, EncodedMask] = {}
    for label, mask in row.masks.items():
        name = rename.get(label, label)
        if name:
            masks[name] = _union(masks[name], mask, row.id) if name in masks else mask
    return replace(row, labels=labels, uncertain=apart, negative=negative, findings=findings, masks=masks)


def _union(mask: "EncodedMask", other: "EncodedMask", identifier: str) -> "EncodedMask":
    """Return the mask of two classes that became one.

    Raises:
        ShardError: They are of two sizes.
    """
    from mapstack.metrics.rle import decode_mask, encode_mask  # torch, which the selection can do without

    if mask.size != other.size:
        raise ShardError(
            f"identifier {ascii(identifier)} has masks of {mask.size} and {other.size} px, which dataset.rename makes "
            "one; the masks of a picture have one size; correct the dataset, or rename one of the two only."
        )
    return encode_mask(decode_mask(mask) | decode_mask(other))


def _require_distinct_keys(rows: Sequence[Row]) -> None:
    ids: dict[str, str] = {}
    for row in rows:
        other = ids.setdefault(row.key, row.id)
        if other != row.id:
            raise ShardError(
                f"identifiers {ascii(other)} and {ascii(row.id)} have one key; a key names one sample; rename one."
            )
