"""What a converter tells of a dataset: one row a picture, and what is known about it, before any picture is read."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whose module imports torch, which the processes that read pictures can do without
    from mapstack.metrics.rle import EncodedMask

FRONTAL_VIEWS = ("AP", "PA", "FRONTAL")
"""What `Row.view` says of a frontal picture; anything else is another view."""

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_N_READABLE = 60
_N_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding and where it is.

    Attributes:
        label: Its class label.
        box: (row0, column0, row1, column1) as the dataset gives it [px], original-image frame; None where unknown.
        prompt: A sentence that is true of it.
        reader: Who drew the box, where the dataset tells.
    """

    label: str
    box: tuple[float, float, float, float] | None = None
    prompt: str | None = None
    reader: str | None = None


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A report that is read when its sample is written.

    Attributes:
        name: Its file, or its member in the archive.
        archive: The zip that holds it; None for a file.
    """

    name: str
    archive: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One picture of a dataset.

    Attributes:
        id: How the dataset names it.
        path: Its file.
        labels: What it shows; `uncertain` and `negative` are what the labels say of others, nothing means not told.
        uncertain: Labels of -1.
        negative: Labels of 0.
        findings: With boxes or sentences.
        masks: By label, original-image frame.
        frame: (height, width) that boxes and masks were drawn in [px]; None where the dataset does not tell.
        report: Its text, or where that is.
        split: The publisher's.
        view: "AP", "PA", "LATERAL", or as the dataset says; None where it does not.
        patient: How the dataset names the patient.
        study: How the dataset names the study.
        extra: Whatever else of it belongs into the sample's json.
    """

    id: str
    path: str
    labels: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    masks: "Mapping[str, EncodedMask]" = field(default_factory=dict)
    frame: tuple[int, int] | None = None
    report: str | ReportFile | None = None
    split: str | None = None
    view: str | None = None
    patient: str | None = None
    study: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name of its sample; see `key_of`."""
        return key_of(self.id)


@dataclass
class Listing:
    """A dataset as its tables tell it.

    Attributes:
        rows: Its pictures, in the order of its tables.
        notes: Remarks, and of how many rows each is true.
        has_views: Whether it tells the views; without them all pictures are taken as frontal.
    """

    rows: list[Row]
    notes: Counter[str] = field(default_factory=Counter)
    has_views: bool = True


def key_of(identifier: str) -> str:
    """Return the key of an identifier: itself where letters, digits, "-" and "_" suffice, and as few as a tar can hold.

    WebDataset ends a key at its first dot, and DICOM UIDs are full of them. Of another identifier the key is its
    readable part and digits of its sha256: different identifiers have different keys. The identifier itself stands in
    the sample's json as `id`.

    Example:
        >>> key_of("patient64541_study1_view1_frontal")
        'patient64541_study1_view1_frontal'
        >>> key_of("1.2.840.10008") != key_of("1-2-840-10008")
        True
        >>> key_of("1.2.840.10008")
        '1-2-840-10008-f585090a38ec2052'
    """
    if _KEY.fullmatch(identifier):
        return identifier
    readable = re.sub("[^A-Za-z0-9_]+", "-", identifier).strip("-")[-_N_READABLE:]
    digits = hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).hexdigest()[:_N_DIGITS]
    return f"{readable}-{digits}" if readable else digits


def in_folder(root: Path, name: str) -> str:
    """Return the path of a file that a table names, below its folder.

    Raises:
        ValueError: The name leads out of the folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(name)
    return str(root / path)


def unique(values: Iterable[str]) -> tuple[str, ...]:
    """Return each value once, in the order of its first coming."""
    return tuple(dict.fromkeys(values))


def without_repeats(rows: Iterable[Row], notes: Counter[str]) -> Iterator[Row]:
    """Pass on the first row of each identifier, and count the others."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            notes["rows that repeat an identifier (the first is taken)"] += 1
        else:
            seen.add(row.id)
            yield row
