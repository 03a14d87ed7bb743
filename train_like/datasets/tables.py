"""The CSV files of datasets: plain or gzipped, their columns checked before the first row is used."""

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from mapstack.errors import ShardError, unknown_name

MIMIC_CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The 14 classes of the CheXpert and NegBio labellers, as MIMIC-CXR-JPG and CheXpert name their columns."""


def find_file(root: Path, names: Sequence[str]) -> Path:
    """Return the first of some files that is there, gzipped or not.

    Raises:
        ShardError: None is.
    """
    for name in names:
        for path in (root / name, root / name.removesuffix(".gz"), root / f"{name}.gz"):
            if path.is_file():
                return path
    wanted = f"{names[0].removesuffix('.gz')}*"
    below = next((path.parent for deep in ("*", "*/*") for path in sorted(root.glob(f"{deep}/{wanted}"))), None)
    hint = "" if below is None else f" Folder '{below}' holds one."
    raise ShardError(
        f"folder '{root}' holds no {' and no '.join(names)}; the dataset is read in the layout of its publisher; set "
        f"dataset.root to the folder that holds it, or fetch the file.{hint}"
    )


def read_table(path: Path, required: Sequence[str]) -> Iterator[dict[str, str]]:
    """Read the rows of a CSV file; a field that a row lacks is empty.

    Args:
        path: The file, gzipped where its name ends in .gz.
        required: Columns that it must have.

    Raises:
        ShardError: The file cannot be read, is cut, or lacks a column.
    """
    try:
        with _opened(path) as file:
            # `csv.DictReader` takes three times as long, half a minute for the tables of MIMIC-CXR.
            reader = csv.reader(file)
            header = next(reader, [])
            _require_columns(path, header, required)
            blank = dict.fromkeys(header, "")
            for values in reader:
                if values:
                    row = blank | dict(zip(header, map(str.strip, values), strict=False))
                    row.pop("", None)
                    yield row
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ShardError:
    # Its text could quote a row; that of the system does not.
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return ShardError(
        f"table '{path}' cannot be read ({reason}); it must be the whole CSV file in UTF-8, and readable; fetch it "
        "again, or mend its permissions."
    )


def read_header(path: Path) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        ShardError: The file cannot be read.
    """
    try:
        with _opened(path) as file:
            return next(csv.reader(file), [])
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _require_columns(path: Path, found: Sequence[str], required: Sequence[str]) -> None:
    for name in required:
        if name not in found:
            raise ShardError(f"table '{path}' lacks a column: {unknown_name('column', name, found)}")


def ternary_labels(
    row: Mapping[str, str], classes: Sequence[str], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Sort the classes of a row of CheXpert's form into positive (1), uncertain (-1) and negative (0).

    An empty field says nothing of its class. Numbers may have decimals, as in the published files.

    Raises:
        ShardError: A field holds something else.

    Source:
        Irvin et al., "CheXpert", AAAI 2019, section 2; MIMIC-CXR-JPG 2.1.0, "Structured labels".
    """
    sorted_by_value: dict[float, list[str]] = {1.0: [], -1.0: [], 0.0: []}
    for name in classes:
        text = row.get(name, "")
        if text == "" or text.lower() == "nan":
            continue
        value = number(text)
        if value not in sorted_by_value:
            raise ShardError(
                f"table '{path}' holds {text!r} in column '{name}'; a label is 1, 0, -1 or empty; fetch the file again."
            )
        sorted_by_value[value].append(name)
    return tuple(sorted_by_value[1.0]), tuple(sorted_by_value[-1.0]), tuple(sorted_by_value[0.0])


def number(text: str) -> float:
    """Read a finite number; NaN where the text is none.

    Example:
        >>> number("-1.0"), number(""), number("inf")
        (-1.0, nan, nan)
    """
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def box_of(row: Mapping[str, str], x: str, y: str, width: str, height: str) -> tuple[float, float, float, float] | None:
    """Read a box from the columns of its corner and size; None where one of them holds no number.

    Returns:
        (row0, column0, row1, column1) [px].
    """
    left, top, n_columns, n_rows = (number(row.get(name, "")) for name in (x, y, width, height))
    return _checked((top, left, top + n_rows, left + n_columns))


def box_between(
    row: Mapping[str, str], x_min: str, y_min: str, x_max: str, y_max: str
) -> tuple[float, float, float, float] | None:
    """Read a box from the columns of its two corners; as `box_of`."""
    left, top, right, bottom = (number(row.get(name, "")) for name in (x_min, y_min, x_max, y_max))
    return _checked((top, left, bottom, right))


def _checked(box: tuple[float, float, float, float]) -> tuple[float, float, float, float] | None:
    is_box = not any(math.isnan(edge) for edge in box) and box[0] < box[2] and box[1] < box[3]
    return box if is_box else None
