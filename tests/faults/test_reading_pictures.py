"""Faults of reading pictures: each is decoded by a stated rule or refused in time, and never silently wrong."""

import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image

from mapstack.errors import ImageError, InputError
from mapstack.images import MEDCLIP, decode, from_array, prepare
from mapstack.store import Store, StoreWriter, open_store_for_writing
from tests.picture_files import encode, pixels, png_chunk, random_image, raw_png
from train_like.batch import prepare_item
from train_like.source import Failure, prepare_sample

Figure = Callable[[str], None]
Pixels = NDArray[np.uint8]
MAX_PIXELS = 50_000_000


def read_as_the_job(data: bytes, suffix: str = "png") -> Any:
    sample = {"__key__": "k", "__url__": "s.tar", suffix: data}
    return prepare_sample(sample, partial(prepare_item, preprocessing=MEDCLIP))


# --- R7: undecodable pictures ---


def with_chunk(png: bytes, chunk: bytes) -> bytes:
    """Put a chunk behind the IHDR of a PNG."""
    return png[:33] + chunk + png[33:]


def seconds_to_read(data: bytes) -> float:
    """Measure processor time, and the best of a few: what else the machine does must not count."""
    times = []
    for _ in range(5):
        started = time.process_time()
        read_as_the_job(data)
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.fault("R7")
def test_a_bad_picture_costs_no_more_than_a_good_one(figure: Figure) -> None:
    worst_s, worst_ratio, n_bad = 0.0, 0.0, 0
    for file_format in ("PNG", "JPEG"):
        good = encode(random_image("L", 512, 512), file_format)
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 255
        bad = [good[:4], good[:100], good[: len(good) // 2], good[:-20], b"", b"no picture"]
        if file_format == "PNG":
            tiny = png_chunk(b"tEXt", b"a\0") * 300_000
            bad += [bytes(flipped), good[:40] + bytes(2**22), with_chunk(good, tiny)]
        else:  # without a checksum of its own
            bad += [good[:20] + filler * 2**20 for filler in (bytes(4), b"\xff\0\xff\0", b"\xff\xfe\0\x02")]
        good_s = seconds_to_read(good)
        for data in bad:
            failure = read_as_the_job(data)
            assert isinstance(failure, Failure)
            assert (failure.key, failure.shard) == ("k", "s.tar")
            bad_s = seconds_to_read(data)
            worst_s, worst_ratio, n_bad = max(worst_s, bad_s), max(worst_ratio, bad_s / good_s), n_bad + 1
    assert worst_ratio < 5
    assert worst_s < 10 * 0.005  # ten times the limit: machines differ
    figure(
        f"{n_bad} kinds of undecodable pictures of 512 px: at most {worst_s * 1000:.1f} ms each, "
        f"{worst_ratio:.1f} times a good one"
    )


# --- R8: decompression bombs ---


def zeros_deflated(n_bytes: int) -> bytes:
    """Pack zeros as zlib would, a mebibyte at a time: to pack a gigabyte takes long."""
    packer, last = zlib.compressobj(9, wbits=-15), zlib.compressobj(9, wbits=-15)
    mebibyte = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    n, rest = divmod(n_bytes, 2**20)
    adler32 = n_bytes % 65521 << 16 | 1  # RFC 1950, 8.2, of zeros
    return b"\x78\xda" + mebibyte * n + last.compress(bytes(rest)) + last.flush() + struct.pack(">I", adler32)


def jpeg_saying(height: int, width: int, **options: object) -> bytes:
    """A small JPEG whose frame header lies about its size (ITU-T T.81, B.2.2)."""
    data = encode(random_image("RGB"), "JPEG", **options)
    at = data.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def bombs() -> dict[str, bytes]:
    row, gibibyte = b"\0" + b"\x07" * 10, zeros_deflated(2**30)
    return {
        "png": raw_png(65_535, 65_535, 8, 0, b"\xff" * 1000),
        "png just above": raw_png(7072, 7072, 8, 0, b"\xff" * 1000),
        "png 16 bits": raw_png(16_000, 16_000, 16, 6, b"\xff" * 1000),
        "png strip": raw_png(2**31 - 1, 1, 8, 0, b"\xff" * 1000),
        "png text": raw_png(10, 1, 8, 0, row, extra=png_chunk(b"zTXt", b"a\0\0" + gibibyte)),
        "png unicode text": raw_png(10, 1, 8, 0, row, extra=png_chunk(b"iTXt", b"a\0\1\0\0\0" + gibibyte)),
        "png profile": raw_png(10, 1, 8, 0, row, extra=png_chunk(b"iCCP", b"a\0\0" + gibibyte)),
        "png frames": raw_png(10, 1, 8, 0, row, extra=png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        "jpeg": jpeg_saying(65_500, 65_500),
        "jpeg just above": jpeg_saying(7072, 7072),
        "jpeg progressive": jpeg_saying(65_500, 65_500, progressive=True),
    }


READ = """
import json, re, sys, time
from pathlib import Path
from mapstack.errors import ImageError
from mapstack.formats import open_upright

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

def read(path):
    data, started = Path(path).read_bytes(), time.perf_counter()
    try:
        size = open_upright(data, 50_000_000).size
    except ImageError as error:
        size = str(error)
    return size, time.perf_counter() - started, peak_mb() - before_mb

before_mb = peak_mb()
read(sys.argv[1])  # imports what Pillow leaves until it is needed
before_mb = peak_mb()
print(json.dumps([read(path) for path in sys.argv[1:]]))
"""


def read_elsewhere(paths: list[Path]) -> list[tuple[Any, float, float]]:
    """Read pictures in a process of its own: size or refusal, seconds, and megabytes that it has grown by so far."""
    # Not `resource.getrusage`: its peak begins with that of the process that started this one.
    command = [sys.executable, "-c", READ, *map(str, paths)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True, text=True)
    answers: list[tuple[Any, float, float]] = json.loads(ended.stdout)
    return answers


@pytest.mark.fault("R8")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read as Linux tells it")
def test_bombs_are_refused_by_their_header(tmp_path: Path, figure: Figure) -> None:
    files = {"good": encode(random_image("L")), **bombs()}
    # Just below the ceiling, of the kind that needs the most memory: it is a picture, and read.
    side = int(MAX_PIXELS**0.5)
    rows = zeros_deflated(side * (1 + 4 * side))
    files["large"] = raw_png(side, side, 8, 6, b"").replace(
        png_chunk(b"IDAT", zlib.compress(b"")), png_chunk(b"IDAT", rows)
    )
    paths = [tmp_path / f"{i}" for i in range(len(files))]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    good, *refused, largest = read_elsewhere(paths)
    assert good[0] == [17, 24]
    for name, (answer, seconds, grown_mb) in zip(bombs(), refused, strict=True):
        assert isinstance(answer, str), name
        assert re.search("picture has|cannot be decoded|holds 2147483648 frames", answer), name
        assert seconds < 10 * 0.05, name  # ten times the limit: machines differ
        assert grown_mb < 512, name
    assert largest[0] == [side, side]
    assert largest[2] < 512
    figure(
        f"{len(refused)} bombs refused within {max(answer[1] for answer in refused) * 1000:.0f} ms and "
        f"{max(answer[2] for answer in refused):.0f} MB; {side} x {side} RGBA, the largest that is read: "
        f"{largest[2]:.0f} MB"
    )


# --- R9: kinds of pixels ---

HEIGHT, WIDTH = 600, 50  # higher than one strip of the conversion
TURNED: dict[int, Callable[[Pixels], Pixels]] = {  # EXIF 2.3, tag 274: where the file's row 0 and column 0 lie
    1: lambda stored: stored,  # top, left
    2: np.fliplr,  # top, right
    3: lambda stored: np.rot90(stored, 2),  # bottom, right
    4: np.flipud,  # bottom, left
    5: lambda stored: np.swapaxes(stored, 0, 1),  # left, top
    6: lambda stored: np.rot90(stored, -1),  # right, top
    7: lambda stored: np.swapaxes(np.rot90(stored, 2), 0, 1),  # right, bottom
    8: np.rot90,  # left, bottom
}


def on_black(values: Pixels) -> NDArray[np.floating[Any]]:
    composed: NDArray[np.floating[Any]] = np.round(values[..., :-1] * (values[..., -1:] / 255)).squeeze()
    return composed


def packed_png(values: Pixels, depth: int) -> bytes:
    """Write grey values of 1, 2 or 4 bits."""
    bits = np.unpackbits(values[..., None], axis=2)[..., -depth:].reshape(len(values), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    return raw_png(values.shape[1], values.shape[0], depth, 0, rows)


def exact_kinds() -> dict[str, tuple[bytes, Any]]:
    """Files, and what must be read from them, computed without Pillow."""
    rng = np.random.default_rng(0)
    grey, deep = rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8), rng.integers(0, 4096, (HEIGHT, WIDTH), np.uint16)
    image = {mode: random_image(mode, HEIGHT, WIDTH) for mode in ("L", "RGB", "LA", "RGBA")}
    stored = {mode: np.asarray(picture) for mode, picture in image.items()}
    colours = rng.integers(0, 256, (256, 3), np.uint8)
    palette = Image.fromarray(grey)
    palette.putpalette(colours.tobytes())
    black_at_9 = np.where(np.arange(256)[:, None] == 9, 0, colours)
    one_colour_black = np.where((stored["RGB"] == stored["RGB"][0, 0]).all(axis=2, keepdims=True), 0, stored["RGB"])
    kinds = {
        "L": (encode(image["L"]), stored["L"]),
        "RGB": (encode(image["RGB"]), stored["RGB"]),
        "LA": (encode(image["LA"]), on_black(stored["LA"])),
        "RGBA": (encode(image["RGBA"]), on_black(stored["RGBA"])),
        "P": (encode(palette), colours[grey]),
        "P, transparent colour": (encode(palette, transparency=9), black_at_9[grey]),
        "L, transparent grey": (encode(Image.fromarray(grey), transparency=9), np.where(grey == 9, 0, grey)),
        "RGB, transparent colour": (
            encode(image["RGB"], transparency=tuple(map(int, stored["RGB"][0, 0]))),
            one_colour_black,
        ),
        "1 bit": (packed_png(grey % 2, 1), grey % 2 * 255),
        "2 bits": (packed_png(grey % 4, 2), grey % 4 * 85),
        "4 bits": (packed_png(grey % 16, 4), grey % 16 * 17),
        "gamma": (with_chunk(encode(image["L"]), png_chunk(b"gAMA", struct.pack(">I", 10_000))), stored["L"]),
    }
    for depth in (8, 10, 12, 14, 16):
        values = (deep >> (12 - depth) if depth < 12 else deep << (depth - 12)).astype(np.uint16)
        values[0, 0] = 2**depth - 1
        expected = np.floor(values * 255.0 / (2**depth - 1) + 0.5)
        kinds[f"16 bits holding {depth}"] = (encode(Image.fromarray(values)), expected)
    for orientation, turn in TURNED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        kinds[f"orientation {orientation}"] = (encode(image["RGB"], exif=exif), turn(stored["RGB"]))
        kinds[f"16 bits, orientation {orientation}"] = (
            encode(Image.fromarray(grey.astype(np.uint16) * 257), exif=exif),
            turn(grey),
        )
    return kinds


def jpeg_kinds() -> dict[str, tuple[bytes, tuple[int, ...]]]:
    """JPEGs of one colour, and that colour: CMYK as printers mean it, 0 for no ink."""
    inks = {"white": (0, 0, 0, 0), "black": (0, 0, 0, 255), "cyan": (255, 0, 0, 0), "yellow": (0, 0, 255, 0)}
    light = {"white": (255, 255, 255), "black": (0, 0, 0), "cyan": (0, 255, 255), "yellow": (255, 255, 0)}
    kinds = {
        f"CMYK {name}": (encode(Image.new("CMYK", (WIDTH, HEIGHT), inks[name]), "JPEG"), light[name]) for name in inks
    }
    for mode, colour in (("L", (77,)), ("RGB", (200, 30, 90))):
        for is_progressive in (False, True):
            image = Image.new(mode, (WIDTH, HEIGHT), colour if mode == "RGB" else colour[0])
            jpeg = encode(image, "JPEG", progressive=is_progressive)
            kinds[f"JPEG {mode} {is_progressive}"] = (jpeg, colour)
            # Stray bytes behind the first segment, as some programs leave them.
            kinds[f"JPEG {mode} {is_progressive}, stray bytes"] = (jpeg[:20] + bytes(100) + jpeg[20:], colour)
    return kinds


def refused_kinds() -> dict[str, bytes]:
    many = {"save_all": True, "append_images": [random_image("RGB", seed=1)]}
    jpeg = encode(random_image("L"), "JPEG")
    at = jpeg.index(b"\xff\xc0")
    return {
        "16 bits RGB": raw_png(2, 1, 16, 2, b"\0" + bytes(12)),
        "16 bits LA": raw_png(2, 1, 16, 4, b"\0" + bytes(8)),
        "16 bits RGBA": raw_png(2, 1, 16, 6, b"\0" + bytes(16)),
        "frames PNG": encode(random_image("RGB"), "PNG", **many),
        "frames JPEG": encode(random_image("RGB"), "MPO", **many),
        "12 bits JPEG": jpeg[: at + 4] + b"\x0c" + jpeg[at + 5 :],
        "float": encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "32 bits": encode(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"),
    }


@pytest.mark.fault("R9")
def test_no_kind_of_pixels_is_silently_wrong(figure: Figure) -> None:
    exact, lossy, refused = exact_kinds(), jpeg_kinds(), refused_kinds()
    for name, (data, expected) in exact.items():
        np.testing.assert_array_equal(pixels(decode(data)), expected, err_msg=name)
    for name, (data, colour) in lossy.items():
        difference = pixels(decode(data)).reshape(-1, len(colour)).astype(int) - colour
        assert np.abs(difference).max() <= 2, name
    for name, data in refused.items():
        with pytest.raises(ImageError, match=r"16 bits per colour|single frame|cannot be decoded|has the format TIFF"):
            pytest.fail(f"{name} is read as {decode(data).image}")
    figure(f"{len(exact) + len(lossy)} kinds read as their rule says, {len(refused)} refused, 0 silently wrong")


# --- R10: NaN and infinity ---


@pytest.mark.fault("R10")
def test_no_picture_and_no_record_brings_nan_or_infinity(tmp_path: Path, figure: Figure) -> None:
    files = {name: data for kinds in (exact_kinds(), jpeg_kinds()) for name, (data, _) in kinds.items()}
    for name, data in files.items():
        assert prepare(decode(data), MEDCLIP).pixel_values.isfinite().all(), name
    with (
        open_store_for_writing(tmp_path / "store", {"identity": {}}) as session,
        StoreWriter(tmp_path / "store", session.run, 0) as writer,
    ):
        for bad in (np.nan, np.inf, -np.inf):
            for dtype in (np.float16, np.float32, np.float64):
                array = np.zeros((3, 4), dtype)
                array[1, 2] = bad
                with pytest.raises(ImageError, match="is no picture; it must be uint8 or uint16"):
                    from_array(array)
                with pytest.raises(InputError, match="holds NaN or infinity"):
                    writer.write("k", {"stack": array}, {})
            with pytest.raises(InputError):
                writer.write("k", {}, {"logits": [bad]})
    assert len(Store(tmp_path / "store")) == 0
    figure(f"{len(files)} kinds of pictures give finite pixels; 9 arrays and 3 texts with NaN or infinity not stored")


# --- R11: other formats under a picture's name ---


@pytest.mark.fault("R11")
def test_other_formats_are_refused_and_nothing_is_started(monkeypatch: pytest.MonkeyPatch, figure: Figure) -> None:
    image = random_image("RGB")
    files = {
        name: encode(image, name) for name in ("EPS", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "TGA", "PDF", "SGI")
    }
    files |= {
        "HTML or XML": b"<!DOCTYPE html><html><body>404</body></html>",
        "SVG": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "DOS EPS": b"\xc5\xd0\xd3\xc6" + encode(image, "EPS"),
        "PostScript": b"%!PS\n(%pipe%touch ran) (w) file",
        "empty": b"",
    }

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a program was started")

    for module, name in ((subprocess, "Popen"), (os, "system"), (EpsImagePlugin, "Ghostscript")):
        monkeypatch.setattr(module, name, refuse)
    for name, data in files.items():
        for suffix in ("png", "jpg"):
            failure = read_as_the_job(data, suffix)
            assert isinstance(failure, Failure), name
            assert "only PNG and JPEG are read, known by their content; convert it to one of them." in failure.reason
    figure(f"{len(files)} formats named .png or .jpg refused by their content, 0 programs started")
