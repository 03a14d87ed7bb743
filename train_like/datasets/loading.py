"""From a row to a sample: the picture's bytes, looked at and described, with boxes and masks in its frame."""

import io
import math
import os
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from mapstack.errors import ImageError, InputError
from mapstack.formats import open_upright, read_size
from train_like.datasets.rows import Finding, ReportFile, Row
from train_like.tarshards import Sample
from train_like.tarwalk import MAX_MEMBER_BYTES

MAX_PIXELS = 50_000_000
_MAX_DICOM_BYTES = 4 * MAX_MEMBER_BYTES  # 16 bits a pixel and several overlays
_MAX_REPORT_BYTES = 2**18
_PNG_LEVEL = 1  # noise hardly shrinks, and the higher levels take several times as long


@dataclass(frozen=True)
class Rules:
    """How pictures are read; see `mapstack.dataset_configs.DatasetConfig`.

    Attributes:
        check: "header" or "decode".
        accept_burned_in: Whether DICOM files may show text.
        keep_dicom: Whether they are stored as they are.
    """

    check: str = "header"
    accept_burned_in: bool = False
    keep_dicom: bool = False


@dataclass(frozen=True)
class Loaded:
    """One sample, and what was found on the way.

    Attributes:
        sample: As it is stored.
        size: (height, width) of its picture [px].
        notes: Remarks.
    """

    sample: Sample
    size: tuple[int, int]
    notes: list[str] = field(default_factory=list)


def load_sample(row: Row, rules: Rules) -> Loaded:
    """Read the picture of a row and write down what is known about it.

    Raises:
        ImageError: The file is absent, unreadable, too large or refused; or its frame is not that of the annotations.
    """
    notes: list[str] = []
    image, suffix, size = _read_picture(row.path, rules)
    if row.frame is not None and row.frame != size:
        raise ImageError(
            f"annotations were drawn on {row.frame[0]} x {row.frame[1]} px, the file has {size[0]} x {size[1]}; boxes "
            "lie in the original-image frame; give the original files."
        )
    info: dict[str, Any] = {"id": row.id, "labels": list(row.labels), **dict(row.extra)}
    told: dict[str, Any] = {name: list(getattr(row, name)) for name in ("uncertain", "negative")}
    told |= {name: getattr(row, name) for name in ("split", "view", "patient", "study")}
    told |= {
        "findings": [_describe(finding, size, notes) for finding in row.findings],
        "report": _read_report(row.report, notes),
    }
    info |= {name: value for name, value in told.items() if value}
    return Loaded(Sample(row.key, image, suffix, info, _decode_masks(row, size)), size, notes)


def _read_picture(path: str, rules: Rules) -> tuple[bytes, str, tuple[int, int]]:
    data = _read_file(path)
    if data[128:132] == b"DICM":
        return _read_dicom(data, rules)
    if len(data) > MAX_MEMBER_BYTES:
        raise ImageError(f"file has {len(data)} bytes; a picture in a shard has at most {MAX_MEMBER_BYTES}; reduce it.")
    size = read_size(data, MAX_PIXELS)
    if rules.check == "decode":
        open_upright(data, MAX_PIXELS)
    return data, "png" if data.startswith(b"\x89PNG") else "jpg", size


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_DICOM_BYTES:
                raise ImageError(f"file has more than {_MAX_DICOM_BYTES} bytes; no picture does; check it.")
            data = file.read()
    except FileNotFoundError:
        raise ImageError("file is absent; the table lists it; fetch it, or set dataset.absent=leave_out.") from None
    except OSError as error:
        raise ImageError(f"file cannot be read ({error.strerror}); it must be a readable file; mend it.") from None
    if not data:
        raise ImageError("file is empty; a download may have broken off; fetch it again.")
    return data


def _read_dicom(data: bytes, rules: Rules) -> tuple[bytes, str, tuple[int, int]]:
    from mapstack.dicom import DicomRule, open_dicom  # pydicom is imported only where there are DICOM files

    image = open_dicom(data, MAX_PIXELS, DicomRule(accept_burned_in=rules.accept_burned_in))
    size = (image.height, image.width)
    if rules.keep_dicom:
        if len(data) > MAX_MEMBER_BYTES:
            raise ImageError(
                f"DICOM file has {len(data)} bytes; a member of a shard has at most {MAX_MEMBER_BYTES}; set "
                "dataset.keep_dicom=false."
            )
        return data, "dcm", size
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue(), "png", size


def _describe(finding: Finding, size: tuple[int, int], notes: list[str]) -> dict[str, Any]:
    described: dict[str, Any] = {"label": finding.label}
    if finding.prompt:
        described["prompt"] = finding.prompt
    if finding.reader:
        described["reader"] = finding.reader
    if finding.box is not None:
        box = whole_pixels(finding.box, size)
        if box is None:
            notes.append("boxes that lie outside their picture (left out)")
        else:
            described["box"] = list(box)
    return described


def whole_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Round a box outwards to whole pixels and cut it to its picture; None where nothing of it is left.

    Args:
        box: (row0, column0, row1, column1) [px].
        size: (height, width) of the picture [px].

    Example:
        >>> whole_pixels((1.2, -3.0, 4.1, 7.0), (10, 5))
        (1, 0, 5, 5)
    """
    height, width = size
    row0, column0 = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    row1, column1 = min(math.ceil(box[2]), height), min(math.ceil(box[3]), width)
    return (row0, column0, row1, column1) if row0 < row1 and column0 < column1 else None


def _decode_masks(row: Row, size: tuple[int, int]) -> dict[str, Any]:
    if not row.masks:
        return {}
    from mapstack.metrics.rle import decode_mask  # needs torch, whose import takes seconds

    masks: dict[str, np.ndarray] = {}
    for label, encoded in row.masks.items():
        if encoded.size != size:
            raise ImageError(
                f"a mask was drawn on {encoded.size[0]} x {encoded.size[1]} px, the file has {size[0]} x {size[1]}; "
                "masks lie in the original-image frame; give the original files."
            )
        try:
            mask = decode_mask(encoded).numpy()
        except InputError as error:
            raise ImageError(str(error)) from None
        if mask.any():
            masks[label] = mask
    return masks


def _read_report(report: str | ReportFile | None, notes: list[str]) -> str | None:
    if report is None or isinstance(report, str):
        return report
    try:
        raw = _member(report) if report.archive else _file(report.name)
    except (OSError, KeyError, zipfile.BadZipFile):
        notes.append("samples whose report is absent (they have none)")
        return None
    if len(raw) > _MAX_REPORT_BYTES:
        notes.append("samples whose report is longer than 256 KiB (they have none)")
        return None
    return raw.decode("utf-8", "replace").strip()


def _file(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read(_MAX_REPORT_BYTES + 1)


def _member(report: ReportFile) -> bytes:
    with _archive(str(report.archive)).open(report.name) as file:
        return file.read(_MAX_REPORT_BYTES + 1)


@lru_cache(maxsize=2)
def _archive(path: str) -> zipfile.ZipFile:
    """Open an archive once a process: its directory lists each of the 227,835 reports."""
    return zipfile.ZipFile(path)


def thumbnail(sample: Sample, side: int) -> tuple[Image.Image, float]:
    """Decode the picture of a sample and make it small.

    Returns:
        An RGB image that fits into a square of that side, and by how much it was reduced.
    """
    if sample.suffix == "dcm":
        from mapstack.dicom import DicomRule, open_dicom

        image = open_dicom(sample.image, MAX_PIXELS, DicomRule(accept_burned_in=True))
    else:
        image = open_upright(sample.image, MAX_PIXELS)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR).convert("RGB"), scale
