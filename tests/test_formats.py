import hashlib
import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from mapstack.errors import ImageError
from mapstack.formats import read_size
from mapstack.images import decode, from_array
from tests.picture_files import encode, pixels, png_chunk, random_image, raw_png

# --- formats and modes ---


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_plain_png_is_read_as_it_is(mode):
    image = random_image(mode)
    data = encode(image)
    picture = decode(data)
    assert picture.image.mode == mode
    assert picture.size == (24, 17)
    assert picture.sha256 == hashlib.sha256(data).hexdigest()
    np.testing.assert_array_equal(pixels(picture), np.asarray(image))


@pytest.mark.parametrize(("mode", "expected"), [("L", "L"), ("RGB", "RGB"), ("CMYK", "RGB")])
def test_jpeg_is_read_as_pillow_decodes_it(mode, expected):
    data = encode(random_image(mode), "JPEG", quality=95)
    picture = decode(data)
    assert picture.image.mode == expected
    np.testing.assert_array_equal(pixels(picture), np.asarray(Image.open(io.BytesIO(data)).convert(expected)))


def test_bilevel_becomes_black_and_white():
    image = Image.fromarray(np.array([[True, False], [False, True]]))
    assert pixels(decode(encode(image))).tolist() == [[255, 0], [0, 255]]


def test_palette_becomes_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    assert pixels(decode(encode(image))).tolist() == [[[200, 100, 50], [10, 20, 30]]]


@pytest.mark.parametrize(("mode", "plain"), [("LA", "L"), ("RGBA", "RGB")])
def test_opaque_alpha_is_dropped(mode, plain):
    image = random_image(plain)
    image.putalpha(255)
    assert image.mode == mode
    np.testing.assert_array_equal(pixels(decode(encode(image))), np.asarray(random_image(plain)))


@pytest.mark.parametrize(("mode", "plain"), [("LA", "L"), ("RGBA", "RGB")])
def test_transparency_is_composited_on_black(mode, plain):
    image = random_image(mode)
    values = np.asarray(image).astype(int)
    expected = np.round(values[..., :-1] * values[..., -1:] / 255).squeeze()
    picture = decode(encode(image))
    assert picture.image.mode == plain
    np.testing.assert_array_equal(pixels(picture), expected)


def test_a_transparent_palette_entry_and_a_transparent_grey_become_black():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([1, 0])
    assert pixels(decode(encode(palette, transparency=1))).tolist() == [[[0, 0, 0], [10, 20, 30]]]
    grey = Image.fromarray(np.array([[7, 90]], np.uint8))
    assert pixels(decode(encode(grey, transparency=90))).tolist() == [[7, 0]]
    deep = Image.fromarray(np.array([[4095, 65535]], np.uint16))
    assert pixels(decode(encode(deep, transparency=65535))).tolist() == [[255, 0]]


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_sixteen_bit_grey_is_scaled_by_the_depth_of_its_brightest_pixel(depth):
    top = 2**depth - 1
    values = np.random.default_rng(depth).integers(0, top + 1, (40, 30)).astype(np.uint16)
    # One above the next lower depth is the darkest picture that still needs this one.
    for brightest in {top, top // 4 + 1 if depth > 8 else top}:
        values = np.minimum(values, brightest).astype(np.uint16)
        values[3, 4] = brightest
        expected = np.floor(values * 255.0 / top + 0.5)
        np.testing.assert_array_equal(pixels(decode(encode(Image.fromarray(values)))), expected)
        np.testing.assert_array_equal(pixels(from_array(values)), expected)


def test_sixteen_bit_colour_is_refused():
    data = raw_png(2, 1, 16, 2, b"\0" + b"\x01\x02" * 6)
    with pytest.raises(ImageError, match=r"16 bits per colour.*save it as 16-bit grey or as 8 bits"):
        decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("source", ["L", "RGB", "sixteen"])
def test_exif_orientation_is_applied(orientation, source):
    image = random_image("RGB" if source == "RGB" else "L")
    if source == "sixteen":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    expected = expected // 257 if source == "sixteen" else expected
    picture = decode(data)
    np.testing.assert_array_equal(pixels(picture), expected)
    assert picture.size == ((24, 17) if orientation < 5 else (17, 24))


def test_a_photograph_on_its_side_is_turned_upright():
    # Orientation 6: the file's first row is the right-hand side of the scene.
    exif = Image.Exif()
    exif[0x0112] = 6
    scene = np.zeros((16, 32), np.uint8)
    scene[:, 24:] = 255
    data = encode(Image.fromarray(scene).transpose(Image.Transpose.ROTATE_90), "JPEG", quality=100, exif=exif)
    np.testing.assert_array_equal(pixels(decode(data)), scene)


def test_no_metadata_survives():
    exif = Image.Exif()
    exif[0x010E] = "PATIENT"
    picture = decode(encode(random_image("L"), "JPEG", exif=exif, comment=b"PATIENT"))
    assert picture.image.info == {}
    assert not picture.image.getexif()
    assert type(picture.image) is Image.Image


# --- refusals ---


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encode(random_image("L"), "GIF"), "GIF"),
        (encode(random_image("L"), "TIFF"), "TIFF"),
        (encode(random_image("L"), "BMP"), "BMP"),
        (encode(random_image("RGB"), "EPS"), "EPS"),
        (b"\n <!DOCTYPE html><html>not found</html>", "HTML or XML"),
        (b"%PDF-1.7", "PDF"),
        (zlib.compress(encode(random_image("L")), wbits=31), "gzip"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"", "unknown"),
        (b"\0" * 5000, "unknown"),
    ],
)
def test_other_formats_are_refused_by_content(data, found):
    with pytest.raises(ImageError, match=f"has the format {found}; only PNG and JPEG are read"):
        decode(data)


@pytest.mark.parametrize(("file_format", "mode"), [("PNG", "L"), ("PNG", "RGB"), ("JPEG", "L"), ("JPEG", "RGB")])
def test_every_truncation_is_refused(file_format, mode):
    data = encode(random_image(mode), file_format)
    for end in range(len(data)):
        with pytest.raises(ImageError, match=r"cannot be decoded|has the format unknown"):
            decode(data[:end])


@pytest.mark.fault("R1")
def test_every_flipped_bit_of_a_png_is_refused(figure):
    data = encode(random_image("L"))
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(ImageError):
            decode(bytes(damaged))
    figure(f"{len(data)} bytes of a PNG without sha256, a bit flipped in each: {len(data)} refused")


def test_a_refusal_quotes_nothing_of_the_file():
    data = encode(random_image("L")).replace(b"IEND", b"JANE")
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value) == (
        f"picture (PNG, {len(data)} bytes) cannot be decoded; the file must be complete and undamaged; "
        "copy or export it again."
    )
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(("file_format", "name"), [("PNG", "PNG"), ("MPO", "JPEG")])
def test_several_frames_are_refused(file_format, name):
    data = encode(random_image("RGB"), file_format, save_all=True, append_images=[random_image("RGB", seed=1)])
    with pytest.raises(ImageError, match=rf"picture \({name}\) holds 2 frames; only a single frame is read"):
        decode(data)


@pytest.mark.parametrize(("width", "height"), [(65_535, 65_535), (7072, 7072), (20_000, 2000), (1601, 100)])
def test_a_bomb_or_an_extreme_shape_is_refused_from_its_header(width, height):
    # The pixels are rubbish, so decoding even one row would say "cannot be decoded" instead.
    data = raw_png(width, height, 8, 0, b"\xff" * 2_000_000)
    start = time.perf_counter()
    with pytest.raises(ImageError, match=f"picture has {height} x {width} pixels; at most 50000000 pixels"):
        decode(data)
    assert time.perf_counter() - start < 0.5


def test_the_ceiling_is_counted_in_pixels_and_can_be_set():
    data = encode(random_image("L", 24, 17), "JPEG")
    assert decode(data, max_pixels=24 * 17).size == (24, 17)
    with pytest.raises(ImageError, match="picture has 24 x 17 pixels; at most 407 pixels"):
        decode(data, max_pixels=407)


def test_pillows_own_limit_and_warnings_stay_away(monkeypatch):
    # Warnings are errors here, so a leaked DecompressionBombWarning would fail the test.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert decode(encode(random_image("L"))).size == (24, 17)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    assert decode(encode(random_image("L"), "JPEG")).size == (24, 17)


def test_a_warning_of_pillow_does_not_leak():
    # An animation of zero frames: Pillow warns that it will use the default image, and that is the single frame.
    rows = b"\0\x07\x09"
    data = raw_png(2, 1, 8, 0, rows, extra=png_chunk(b"acTL", struct.pack(">II", 0, 0)))
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(data))
    assert pixels(decode(data)).tolist() == [[7, 9]]


# --- the size alone ---


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_is_that_of_the_decoded_picture(mode, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    for file_format in ("PNG", "JPEG") if mode != "CMYK" else ("JPEG",):
        options = {} if orientation is None else {"exif": exif}
        data = encode(random_image(mode, 24, 17), file_format, **options)
        assert read_size(data, 50_000_000) == decode(data).size


def test_the_size_of_what_decoding_refuses_is_refused():
    for data in (
        encode(random_image("L"), "PNG", save_all=True, append_images=[random_image("L", seed=1)]),
        encode(random_image("L"), "MPO", save_all=True, append_images=[random_image("L", seed=1)]),
        raw_png(7072, 7072, 8, 0, b""),
        encode(random_image("L"))[:-1],
        encode(random_image("L"), "JPEG")[:-1],
        encode(random_image("L"), "JPEG")[:300],
        b"GIF89a",
        b"",
    ):
        with pytest.raises(ImageError):
            read_size(data, 50_000_000)
    with pytest.raises(ImageError, match="at most 407 pixels"):
        read_size(encode(random_image("L", 24, 17), "JPEG"), 407)


# --- scans of a JPEG ---


def of_many_scans(n_scans, padding=b""):
    """A progressive JPEG whose last scan is repeated: Pillow decodes it, one pass over the picture a scan."""
    data = encode(random_image("L", 64, 64), "JPEG", progressive=True)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    last = padding + data[starts[-1] : -2]
    return data[: starts[-1]] + last * (n_scans - len(starts) + 1) + data[-2:]


@pytest.mark.parametrize("n_scans", [20, 100])
def test_a_jpeg_of_some_scans_is_read(n_scans):
    data = of_many_scans(n_scans)
    assert data.count(b"\xff\xda") == n_scans
    assert decode(data).size == read_size(data, max_pixels=10_000) == (64, 64)


@pytest.mark.parametrize("padding", [b"", b"\xff\xff", b"\xff\xfe\x00\x04\xff\xd9"], ids=["bare", "filled", "hidden"])
@pytest.mark.parametrize("n_scans", [101, 3000])
def test_a_jpeg_of_countless_scans_is_refused_at_once(n_scans, padding):
    """Each scan costs a pass over all pixels. The last padding is a comment that looks like the end."""
    data = of_many_scans(n_scans, padding)
    begun = time.monotonic()
    for door in (decode, lambda data: read_size(data, max_pixels=10_000)):
        with pytest.raises(ImageError, match="more than 100 scans"):
            door(data)
    assert time.monotonic() - begun < 1


def test_what_looks_like_a_scan_inside_another_segment_is_none():
    data = encode(random_image("L", 64, 64), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 2 * 500) + b"\xff\xda" * 500
    assert decode(data[:2] + comment + data[2:]).size == (64, 64)


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xfe\x00\x02"], ids=["fill bytes", "empty comments"])
def test_filling_between_scans_is_walked_quickly(filling):
    data = of_many_scans(101, filling * 200_000)[:16_000_000]
    begun = time.monotonic()
    with pytest.raises(ImageError):
        decode(data)
    assert time.monotonic() - begun < 5
