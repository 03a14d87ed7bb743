"""DICOM files: from stored values to 8-bit grey, as a viewer shows them.

In the order of the standard (PS3.3, C.11 and C.7.6.3; PS3.4, N.2):

1. Stored values go through the Modality LUT, or through Rescale Slope and Intercept.
2. The VOI LUT is applied, or the window; of several the first, and a LUT before a window. LINEAR, LINEAR_EXACT and
   SIGMOID are read. Without either, the whole range of the bits stored is kept, as for a 16-bit PNG.
3. The output range becomes [0, 255], rounded to the nearest. Pixel Padding becomes black.
4. MONOCHROME1, or Presentation LUT Shape INVERSE, is inverted, once where both are there.

Refused: colour, several frames, files without pixels, and files whose Burned In Annotation (0028,0301) is not NO,
unless the caller accepts them: burned-in text can name a patient, and a model reads it. Patient Orientation, overlays
and a Presentation LUT Sequence are not applied. The pixels alone are kept, and none of the header.

Reading needs pydicom, and pylibjpeg for compressed files: install `mapstack[dicom]`. Those are decoders in C and C++
that trust their input more than Pillow does; `decode` therefore reads DICOM only where the caller says so.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mapstack.errors import ConfigError, ImageError, MapstackError
from mapstack.formats import check_shape

_PREAMBLE = 128
_MAGIC = b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_STRIP_ROWS = 256
_JPEG_FRAMES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class DicomRule:
    """What of DICOM is accepted.

    Attributes:
        accept_burned_in: Whether the pixels may show text: Burned In Annotation is YES, or absent.
    """

    accept_burned_in: bool = False


def is_dicom(data: bytes) -> bool:
    """Say whether a file is DICOM, by its content (PS3.10, 7.1)."""
    return data[_PREAMBLE : _PREAMBLE + len(_MAGIC)] == _MAGIC


def open_dicom(data: bytes, max_pixels: int, rule: DicomRule) -> Image.Image:
    """Decode a DICOM file by the rules at the head of this module.

    Args:
        data: The whole file.
        max_pixels: Most pixels (height x width) that are decoded.
        rule: What is accepted.

    Returns:
        Pillow image of mode "L".

    Raises:
        ImageError: The file is damaged, or refused by one of the rules.
        ConfigError: pydicom, or a decoder that the file needs, is not installed.
    """
    pydicom = _pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data))
            _check(dataset, max_pixels, rule)
            return Image.fromarray(_to_grey(dataset, _stored_values(dataset)))
    except (MapstackError, MemoryError):
        raise
    except Exception:
        # pydicom's own message may quote the header.
        raise ImageError(
            f"picture (DICOM, {len(data)} bytes) cannot be decoded; the file must be complete and undamaged; copy or "
            "export it again."
        ) from None


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise ConfigError("pydicom is not installed; DICOM files need it; install mapstack[dicom].") from None
    return pydicom


def _check(dataset: Any, max_pixels: int, rule: DicomRule) -> None:
    """Refuse, by the header alone, what the head of this module says."""
    if dataset.file_meta.TransferSyntaxUID == _DEFLATED:
        raise ImageError(
            "picture (DICOM) is deflated, which can unpack without end; it is not read; export it plainly."
        )
    if "PixelData" not in dataset:
        raise ImageError("picture (DICOM) holds no pixels; it is a report or a plan; leave it out.")
    check_shape(int(dataset.Rows), int(dataset.Columns), max_pixels)
    n_frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if n_frames > 1:
        raise ImageError(
            f"picture (DICOM) holds {n_frames} frames; only a single frame is read; save the one that is meant."
        )
    kind = str(dataset.PhotometricInterpretation)
    if int(dataset.SamplesPerPixel) != 1 or kind not in _GREY:
        raise ImageError(
            f"picture (DICOM) has the Photometric Interpretation {_known(kind)}; a radiograph is MONOCHROME1 or "
            "MONOCHROME2; leave it out."
        )
    burned_in = str(dataset.get("BurnedInAnnotation", "") or "").strip().upper()
    if burned_in != "NO" and not rule.accept_burned_in:
        raise ImageError(
            f"picture (DICOM) has the Burned In Annotation {'YES' if burned_in == 'YES' else 'absent'}; only NO says "
            "that the pixels show no text, which can name a patient; look at the picture, then set "
            "accept_burned_in=true."
        )


def _known(kind: str) -> str:
    names = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", *_GREY)
    return kind if kind in names else "unknown"


def _stored_values(dataset: Any) -> npt.NDArray[Any]:
    from pydicom.pixels import pixel_array

    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        _check_frame(dataset)
    try:
        values: npt.NDArray[Any] = pixel_array(dataset)
    except RuntimeError as error:
        if "missing dependencies" not in str(error):
            raise
        raise ConfigError(
            f"no decoder for the transfer syntax '{dataset.file_meta.TransferSyntaxUID.name}' is installed; compressed "
            "DICOM needs one; install mapstack[dicom]."
        ) from None
    if values.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise ValueError("a frame is not as large as the header says")
    return values


def _check_frame(dataset: Any) -> None:
    """Refuse a compressed frame that claims another size than the header, before a decoder takes memory for it.

    Raises:
        ValueError: It does.
    """
    from pydicom.encaps import generate_frames

    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    size = _compressed_size(frame)
    if size is not None and size != (int(dataset.Rows), int(dataset.Columns)):
        raise ValueError("a compressed frame is not as large as the header says")


def _compressed_size(frame: bytes) -> tuple[int, int] | None:
    """Read (height, width) of a JPEG, JPEG-LS or JPEG 2000 frame; None for another codec.

    Source:
        ITU-T T.81, B.2.2, and T.87, C.2.2: frame header; T.800, A.5.1: SIZ marker segment.
    """
    if frame.startswith(_JPEG2000_SIZE):
        x_end, y_end, x_start, y_start = struct.unpack_from(">4I", frame, 8)
        return y_end - y_start, x_end - x_start
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while frame[at] == 0xFF:
        kind = frame[at + 1]
        if kind in _JPEG_FRAMES:
            height, width = struct.unpack_from(">2H", frame, at + 5)
            return height, width
        at += 1 if kind == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise ValueError("a JPEG frame has no header")


def _to_grey(dataset: Any, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Apply steps 1 to 4, in strips: a picture at the ceiling of pixels would take 400 MB in float64."""
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _STRIP_ROWS):
        grey[top : top + _STRIP_ROWS] = _strip_to_grey(dataset, values[top : top + _STRIP_ROWS])
    return grey


def _strip_to_grey(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    shares = _voi(dataset, _modality(dataset, stored))
    shape = str(dataset.get("PresentationLUTShape", "") or "").upper()
    if dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE":
        shares = 1 - shares
    grey = np.floor(np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)
    padding = _is_padding(dataset, stored)
    if padding is not None:
        grey[padding] = 0
    return grey


def _modality(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Apply the Modality LUT, or slope and intercept (PS3.3, C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, dataset.ModalityLUTSequence[0], stored)
    slope, intercept = _rescale(dataset)
    return stored.astype(np.float64) * slope + intercept


def _rescale(dataset: Any) -> tuple[float, float]:
    slope, intercept = (dataset.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    return (1.0, 0.0) if slope is None or intercept is None else (float(slope), float(intercept))


def _voi(dataset: Any, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Apply the VOI LUT or the window (PS3.3, C.11.2), and give shares of the output range.

    pydicom's own functions do the same but for two cases: a LUT of 8-bit entries wraps beyond the 256th, and a
    negative slope turns a window round.
    """
    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        return _look_up(dataset, item, values) / (2.0 ** int(item.LUTDescriptor[2]) - 1)
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        low, high = _modality_range(dataset)
        return (values - low) / (high - low)
    function = str(dataset.get("VOILUTFunction", "") or "LINEAR").upper()
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError("a window has no width")
    if function == "LINEAR":
        if width == 1:
            return (values > centre - 0.5).astype(np.float64)
        return (values - (centre - 0.5)) / (width - 1) + 0.5
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    raise ValueError("a VOI LUT function is unknown")


def _first(value: Any) -> float | None:
    """Return the first of several alternative views."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float | str) else value[0])


def _modality_range(dataset: Any) -> tuple[float, float]:
    """Return the least and greatest value that can come out of step 1: the bits stored decide, not this picture."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = int(dataset.BitsStored)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0.0, 2.0**bits - 1)
    slope, intercept = _rescale(dataset)
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    return low, high


def _look_up(dataset: Any, item: Any, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Apply a table; values before its first entry and behind its last take these (PS3.3, C.11.1.1.1)."""
    n_entries, first, bits = (int(value) for value in item.LUTDescriptor)
    n_entries = n_entries or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        is_packed = bits == 8 and len(data) < 2 * n_entries
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(data, "u1" if is_packed else f"{order}u2", n_entries)
    else:
        table = np.asarray(data)[:n_entries]
    index = np.clip(np.floor(values + 0.5).astype(np.int64) - first, 0, n_entries - 1)
    return table[index].astype(np.float64)


def _is_padding(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Say which pixels the device left empty (PS3.3, C.7.5.1.1.2); None where the file does not tell."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit", value)
    padding: npt.NDArray[np.bool_] = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return padding
