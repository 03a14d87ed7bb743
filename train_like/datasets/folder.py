"""A folder of pictures, with a CSV file of your own or without one.

With a table, `dataset.columns` says what its columns mean: `path` is needed; `id`, `labels` (several in one field,
divided by `dataset.separator`), `report`, `split`, `view` and `patient` describe the picture. A row a box has `x`, `y`,
`width`, `height`, or `x_min`, `y_min`, `x_max`, `y_max` [px], with the box's `label` and `prompt`; rows of one picture
are joined. Without a table every PNG, JPEG and DICOM file below the folder is a sample that nothing is known about.

Source:
    `dataset.columns`: the table is the user's.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mapstack.dataset_configs import DatasetConfig
from mapstack.errors import ConfigError, ShardError, unknown_name
from train_like.datasets.rows import Finding, Listing, Row, in_folder, unique
from train_like.datasets.tables import box_between, box_of, read_header, read_table

_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_CORNER_AND_SIZE = ("x", "y", "width", "height")
_TWO_CORNERS = ("x_min", "y_min", "x_max", "y_max")


def read(config: DatasetConfig) -> Listing:
    """List the pictures of a folder.

    Raises:
        ConfigError: `columns` does not name the table's paths, names a part of a box only, or a column that the table
            lacks.
        ShardError: The table cannot be read, lacks a column, or names a file outside the folder.
    """
    root = Path(config.images or config.root)
    if config.table is None:
        if config.columns:
            raise ConfigError("dataset.columns is set and dataset.table is not; columns are those of a table; name it.")
        return Listing([Row(_without_suffix(name), str(root / name)) for name in _walk(root)], has_views=False)
    table = Path(config.table)
    config = replace(config, columns={meaning: name for meaning, name in config.columns.items() if name})
    _require_columns(config.columns)
    _require_named(config.columns, table)
    notes: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    for fields in read_table(table, list(config.columns.values())):
        told = {meaning: fields[name] for meaning, name in config.columns.items()}
        row = _row(told, root, config, notes)
        known = rows.get(row.id)
        rows[row.id] = row if known is None else _joined(known, row, notes)
    return Listing(list(rows.values()), notes, has_views="view" in config.columns)


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(_SUFFIXES):
                yield os.path.relpath(os.path.join(folder, name), root)


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _SUFFIXES else name


def _require_columns(columns: Mapping[str, str]) -> None:
    if "path" not in columns:
        raise ConfigError("dataset.columns names no path; the table must say where each picture is; name its column.")
    for form in (_CORNER_AND_SIZE, _TWO_CORNERS):
        given = [meaning for meaning in form if meaning in columns]
        if given and len(given) != len(form):
            raise ConfigError(
                f"dataset.columns names {', '.join(given)} of a box; a box has {', '.join(form)}; name all four."
            )


def _require_named(columns: Mapping[str, str], table: Path) -> None:
    header = read_header(table)
    for meaning, name in columns.items():
        if name not in header:
            raise ConfigError(
                f"dataset.columns.{meaning} is '{name}', which table '{table}' lacks: "
                f"{unknown_name('column', name, header)} Or leave it out: dataset.columns.{meaning}=''."
            )


def _row(told: Mapping[str, str], root: Path, config: DatasetConfig, notes: Counter[str]) -> Row:
    try:
        path = in_folder(root, told["path"])
    except ValueError:
        raise ShardError(
            f"table '{config.table}' names a picture outside dataset.root; paths are relative to it; correct the table."
        ) from None
    labels = unique(label.strip() for label in told.get("labels", "").split(config.separator) if label.strip())
    label = told.get("label") or (labels[0] if len(labels) == 1 else "")
    findings: tuple[Finding, ...] = ()
    if _has_box_columns(config.columns) or "prompt" in config.columns:
        box = box_of(told, *_CORNER_AND_SIZE) or box_between(told, *_TWO_CORNERS)
        if label and (box is not None or told.get("prompt")):
            findings = (Finding(label, box, told.get("prompt") or None),)
        elif box is not None:
            notes["boxes without a label (left out)"] += 1
    return Row(
        id=told.get("id") or _without_suffix(told["path"]),
        path=path,
        labels=unique([*labels, *(finding.label for finding in findings)]),
        findings=findings,
        report=told.get("report") or None,
        split=told.get("split") or None,
        view=told.get("view") or None,
        patient=told.get("patient") or None,
    )


def _has_box_columns(columns: Mapping[str, str]) -> bool:
    return "x" in columns or "x_min" in columns


def _joined(known: Row, row: Row, notes: Counter[str]) -> Row:
    """Join two rows of one picture."""
    if row.path != known.path:
        raise ShardError(
            f"identifier {ascii(row.id)} names two files in the table; it names one picture; give each its own."
        )
    if row == known:
        notes["rows that repeat another (joined)"] += 1
        return known
    findings = tuple(dict.fromkeys([*known.findings, *row.findings]))
    return replace(known, labels=unique([*known.labels, *row.labels]), findings=findings)
