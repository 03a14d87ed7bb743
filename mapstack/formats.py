"""What a picture file may be, and how each kind becomes 8-bit grey or RGB.

A file is read by these rules, the same offline and online:

- Only PNG and JPEG, known by their first bytes and never by a name; any other format is refused. DICOM is read by
  `mapstack.dicom`, where the caller allows it.
- The header is read first: too many pixels, or an extreme shape, is refused before a pixel is decoded.
- A truncated or damaged file is refused. So is one with several frames (animated PNG, multi-picture JPEG): which
  frame is the radiograph would be a guess.
- A JPEG of more than 100 scans is refused: each of them costs a pass over all pixels, and a few bytes make one.
- The EXIF orientation is applied. Colour profiles and gamma are not.
- 1-bit, grey and grey-with-alpha become grey; palette, RGB, RGBA and CMYK become RGB by Pillow's plain conversion.
- Transparency is composited on black, which leaves an opaque picture as it is.
- 16-bit grey is scaled linearly: from [0, 2^d - 1], where d is the least of 8, 10, 12, 14, 16 bits that holds the
  brightest pixel, to [0, 255], rounded to the nearest. So a 12-bit radiograph stored in 16 bits is neither black nor
  clipped. 16-bit colour is refused, since Pillow would cut it to its upper 8 bits.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, PngImagePlugin

from mapstack.errors import ImageError, MapstackError

_OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    # The plugins themselves, not `Image.open`: it warns or raises by a limit of its own before ours is asked.
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = ((_PNG_SIGNATURE, "PNG"), (b"\xff\xd8\xff", "JPEG"))
_REFUSED_SIGNATURES = (
    (b"GIF8", "GIF"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"RIFF", "WebP"),
    (b"%PDF", "PDF"),
    (b"\x1f\x8b", "gzip"),
    (b"<", "HTML or XML"),
)
MAX_SIDE_PX = 16_384
_MAX_ASPECT = 16
_BIT_DEPTHS = (8, 10, 12, 14, 16)
_STRIP_PX = 256
# What Pillow walks in Python. Real files have some tens of segments, and chunks of several kilobytes.
_MAX_PARTS = 4096
_MIN_CHUNK_BYTES = 1024
_MAX_SCANS = 100  # an encoder makes 10 of a progressive picture in colour
_START_OF_SCAN = 0xDA
_MARKERS_WITH_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE)) - {0xC8}
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXTENSIONS = frozenset((0xE1, 0xE2))  # where EXIF and the list of several pictures are
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
_END_OF_IMAGE = b"\xff\xd9"
# Not a byte that a scan holds, nor one of the restarts inside it.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_STRAY_BYTES = 65_536  # that may stand behind the end of a JPEG


def open_upright(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a PNG or JPEG file by the rules at the head of this module.

    Returns:
        Pillow image of mode "L" or "RGB", upright, without metadata.

    Raises:
        ImageError: The bytes are no PNG or JPEG, or are refused by one of the rules.
    """
    file_format = _format_of(data)
    with _parsing(data, file_format):
        image = _open(data, file_format, max_pixels)
        image.load()
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
        image = _to_grey_or_rgb(image)
    return image if turn is None else image.transpose(turn)


def read_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Read (height, width) of the upright picture, by the same rules, without decoding a pixel.

    Raises:
        ImageError: The bytes are no PNG or JPEG, are refused by one of the rules, or end early.
    """
    file_format = _format_of(data)
    with _parsing(data, file_format):
        if file_format == "JPEG" and data.rfind(_END_OF_IMAGE, -_STRAY_BYTES) < 0:
            raise ValueError("a JPEG has no end")
        size = None
        if file_format == "JPEG":
            _check_scans(data)
            size = _plain_jpeg_size(data)
        if size is not None:
            check_shape(*size, max_pixels)
            return size
        image = _open(data, file_format, max_pixels)
        # Pillow decodes a PNG to look for EXIF behind its pixels.
        has_exif = file_format == "JPEG" or b"eXIf" in data or b"Raw profile type" in data
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1)) if has_exif else None
    return (image.width, image.height) if turn in _SIDEWAYS else (image.height, image.width)


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read the size of a JPEG that has neither EXIF nor several pictures, several times faster than Pillow.

    Source:
        ITU-T T.81, B.2.2: frame header.
    """
    size = None
    for at in _segments(data):
        kind = data[at + 1]
        if kind in _EXTENSIONS:
            return None
        if kind in _FRAMES:
            size = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            if data[at + 4] != 8 or data[at + 9] not in (1, 3, 4):
                return None
    return size


def _open(data: bytes, file_format: str, max_pixels: int) -> Image.Image:
    """Read the header and refuse by it."""
    if file_format == "PNG":
        _check_chunks(data)
    else:
        _check_markers(data)
        _check_scans(data)
    image = _OPENERS[file_format](io.BytesIO(data))
    check_shape(image.height, image.width, max_pixels)
    _check_kind(image, data, file_format)
    return image


def _format_of(data: bytes) -> str:
    """Name the format by the first bytes, or refuse it."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")
    found = next((name for signature, name in _REFUSED_SIGNATURES if head.startswith(signature)), "unknown")
    if data[128:132] == b"DICM":
        found = "DICOM"
    raise ImageError(
        f"picture of {len(data)} bytes has the format {found}; only PNG and JPEG are read, known by their content; "
        "convert it to one of them."
    )


@contextmanager
def _parsing(data: bytes, file_format: str) -> Iterator[None]:
    """Turn whatever Pillow raises on broken bytes into one sentence, and keep its warnings to ourselves."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MapstackError, MemoryError):
        raise
    except Exception:
        # Pillow's own message may quote the file, so it is not chained.
        raise ImageError(
            f"picture ({file_format}, {len(data)} bytes) cannot be decoded; the file must be complete and undamaged; "
            "copy or export it again."
        ) from None


def check_shape(height: int, width: int, max_pixels: int) -> None:
    """Refuse a picture that would not fit in memory, decoded, padded to a square or resized by its shorter edge."""
    long, short = max(height, width), min(height, width)
    if short < 1 or height * width > max_pixels or long > MAX_SIDE_PX or long > _MAX_ASPECT * short:
        raise ImageError(
            f"picture has {height} x {width} pixels; at most {max_pixels} pixels, {MAX_SIDE_PX} on the longer side "
            f"and {_MAX_ASPECT} times the shorter side are read, and at least one; reduce or crop it first."
        )


def _check_kind(image: Image.Image, data: bytes, file_format: str) -> None:
    """Refuse several frames and 16-bit colour, for the reasons at the head of this module."""
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1:
        raise ImageError(
            f"picture ({file_format}) holds {n_frames} frames; only a single frame is read; save the one that is meant."
        )
    # A PNG opens with its signature and IHDR, whose bit depth and colour type stand at these bytes (PNG, 11.2.1).
    bit_depth, colour_type = data[24], data[25]
    if file_format == "PNG" and bit_depth == 16 and colour_type != 0:
        raise ImageError(
            "picture (PNG) has 16 bits per colour or an alpha channel of 16 bits; 16 bits are read for plain grey "
            "only; save it as 16-bit grey or as 8 bits."
        )


def _check_chunks(data: bytes) -> None:
    """Refuse a PNG with a wrong checksum or a missing end, of which Pillow alone says nothing, or of countless chunks.

    Raises:
        ValueError: A checksum is wrong, or the chunks are many and tiny.
        struct.error: The file ends early.
    """
    view, at = memoryview(data), len(_PNG_SIGNATURE)
    for _ in range(_MAX_PARTS + len(data) // _MIN_CHUNK_BYTES):
        length, kind = struct.unpack_from(">I4s", view, at)
        (checksum,) = struct.unpack_from(">I", view, at + 8 + length)
        if zlib.crc32(view[at + 4 : at + 8 + length]) != checksum:
            raise ValueError("a PNG chunk does not match its checksum")
        if kind == b"IEND":
            return
        at += 12 + length
    raise ValueError("a PNG has too many chunks")


def _check_markers(data: bytes) -> None:
    """Refuse a JPEG whose scan does not begin soon, for which Pillow alone would look byte by byte to the end.

    Raises:
        ValueError: Too many segments and stray bytes come before the scan.
        IndexError: The file ends before the scan.
    """
    for _ in _segments(data):
        pass


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG of countless scans: a file of a megabyte may hold thousands, and keep a core busy for hours.

    Raises:
        ImageError: It has too many.
        ValueError: Too many segments stand between its scans.

    Source:
        ITU-T T.81, B.1.1.2 and B.1.1.5: inside a scan no 0xFF but those of restarts is followed by anything but zero.
    """
    if data.count(bytes((0xFF, _START_OF_SCAN))) <= _MAX_SCANS:
        return  # those inside other segments counted too: a thumbnail has one
    n_scans, at = 0, 2
    for _ in range(_MAX_PARTS):
        found = _MARKER.search(data, at)
        if found is None or found[1] == _END_OF_IMAGE[1:]:
            return
        kind, at = found[1][0], found.end()
        n_scans += kind == _START_OF_SCAN
        if n_scans > _MAX_SCANS:
            raise ImageError(
                f"picture (JPEG, {len(data)} bytes) has more than {_MAX_SCANS} scans; each costs a pass over all "
                f"pixels, and no more than {_MAX_SCANS} are read; save it again as a plain JPEG."
            )
        at += int.from_bytes(data[at : at + 2], "big") if kind in _MARKERS_WITH_LENGTH else 0
    raise ValueError("a JPEG has too much between its scans")


def _segments(data: bytes) -> Iterator[int]:
    """Say where each marker before the scan stands.

    Raises:
        ValueError: Too many segments and stray bytes come before the scan.
        IndexError: The file ends before the scan.

    Source:
        ITU-T T.81, B.1.1: a marker is 0xFF and its kind, after any number of further 0xFF.
    """
    at = 2
    for _ in range(_MAX_PARTS):
        prefix, kind = data[at], data[at + 1]
        if prefix != 0xFF or kind == 0xFF:
            at += 1
        elif kind == _START_OF_SCAN:
            return
        else:
            yield at
            at += 2 + (int.from_bytes(data[at + 2 : at + 4], "big") if kind in _MARKERS_WITH_LENGTH else 0)
    raise ValueError("a JPEG has too much before its scan")


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode "L" or "RGB" by the rules at the head of this module, leaving the file's metadata behind."""
    if image.mode in ("I", "I;16"):
        values = np.array(image).astype(np.uint16)
        values[values == image.info.get("transparency", -1)] = 0
        return Image.fromarray(to_eight_bits(values))
    mode, with_alpha = ("L", "LA") if image.mode in ("1", "L", "LA") else ("RGB", "RGBA")
    plain = Image.new(mode, image.size)
    # In strips: at the ceiling of pixels each further copy of the whole would take 200 MB.
    for top in range(0, image.height, _STRIP_PX):
        box = (0, top, image.width, min(top + _STRIP_PX, image.height))
        strip = image.crop(box)
        if image.has_transparency_data:
            layered = strip.convert(with_alpha)
            plain.paste(layered.convert(mode), box, mask=layered.getchannel("A"))
        else:
            plain.paste(strip.convert(mode), box)
    return plain


def to_eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale uint16 to uint8 by the brightest pixel's bit depth; uint8 stays."""
    if values.dtype == np.uint8:
        return values
    brightest = int(values.max())
    top = next(2**depth - 1 for depth in _BIT_DEPTHS if brightest < 2**depth)
    table = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    scaled: npt.NDArray[np.uint8] = table[values]
    return scaled
