"""DICOM: the standard's rules, against closed forms, against pydicom's own functions, and against the same PNG."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless  # noqa: E402

from mapstack.dicom import DicomRule, is_dicom  # noqa: E402
from mapstack.errors import ConfigError, ImageError  # noqa: E402
from mapstack.explainer import Explainer  # noqa: E402
from mapstack.images import MEDCLIP, Picture, decode, prepare, read  # noqa: E402
from mapstack.methods import IntegratedGradients  # noqa: E402
from mapstack.models import EmbeddingModel  # noqa: E402
from mapstack.phantom import phantom  # noqa: E402
from mapstack.prompts import text_groups  # noqa: E402
from tests.dicom_files import as_bytes, dataset, dicom, lookup_table  # noqa: E402
from tests.picture_files import encode, pixels  # noqa: E402
from tests.train_like.jobs import encode_png, write_shard  # noqa: E402
from train_like.batch import prepare_item  # noqa: E402
from train_like.index import index_shards  # noqa: E402
from train_like.source import check_sample, read_entry  # noqa: E402

STRICT = DicomRule()


def opened(data: bytes, **rule: bool) -> NDArray[np.uint8]:
    return pixels(decode(data, dicom=DicomRule(**rule)))


def ramp(bits: int = 12, dtype: type = np.uint16) -> NDArray[Any]:
    """Every value of so many bits, in 64 columns."""
    return np.arange(2**bits).astype(dtype).reshape(-1, 64)


# --- the rules, by closed forms ---


@pytest.mark.fault("R13")
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_without_a_window_the_bits_stored_become_the_range(bits: int) -> None:
    values = ramp(bits, np.uint8 if bits == 8 else np.uint16)
    values = values[:: max(1, len(values) // 64)]
    expected = np.floor(values / (2**bits - 1) * 255 + 0.5)
    np.testing.assert_array_equal(opened(dicom(values, bits)), expected)


@pytest.mark.fault("R13")
@pytest.mark.parametrize(
    ("kind", "shape", "is_inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_monochrome1_is_inverted_once(kind: str, shape: str | None, is_inverted: bool) -> None:
    values = np.array([[0, 255], [10, 200]], np.uint8)
    found = opened(dicom(values, PhotometricInterpretation=kind, PresentationLUTShape=shape))
    np.testing.assert_array_equal(found, 255 - values if is_inverted else values)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype", "expected"),
    [(1, -1000, np.uint16, 2), (2, 10, np.int16, 2), (None, None, np.int16, 2), (-1, 0, np.uint16, 1)],
)
def test_rescaling_keeps_the_whole_range(slope: Any, intercept: Any, dtype: type, expected: int) -> None:
    low, high = (-2048, 2047) if dtype == np.int16 else (0, 4095)
    values = np.array([[low, high]], dtype)
    found = opened(dicom(values, 12, RescaleSlope=slope, RescaleIntercept=intercept))
    assert found.tolist() == ([[0, 255]] if expected == 2 else [[255, 0]])


def test_a_lut_is_looked_up_and_clamped_at_its_ends() -> None:
    table = np.array([0, 100, 200, 255])
    sequence = lookup_table(table, first=10, bits=8)
    found = opened(dicom(np.array([[0, 10, 11, 12, 13, 4000]], np.uint16), 12, VOILUTSequence=sequence))
    assert found.tolist() == [[0, 0, 100, 200, 255, 255]]


def test_a_lut_of_8_bit_entries_does_not_wrap_beyond_the_256th() -> None:
    table = np.arange(4096) // 16
    values = ramp(12)
    found = opened(dicom(values, 12, VOILUTSequence=lookup_table(table, 0, 8)))
    np.testing.assert_array_equal(found, values // 16)


def test_a_lut_goes_before_a_window_and_of_several_windows_the_first_counts() -> None:
    values = np.array([[0, 1000, 2000, 4095]], np.uint16)
    table = lookup_table(np.full(4096, 51), 0, 8)
    both = dicom(values, 12, VOILUTSequence=table, WindowCenter=1000, WindowWidth=500)
    assert opened(both).tolist() == [[51, 51, 51, 51]]
    several = dicom(values, 12, WindowCenter=[1000, 3000], WindowWidth=[501, 100])
    assert opened(several).tolist() == opened(dicom(values, 12, WindowCenter=1000, WindowWidth=501)).tolist()
    assert opened(several).tolist() == [[0, 128, 255, 255]]


def test_a_modality_lut_goes_before_the_window() -> None:
    table = lookup_table(4095 - np.arange(4096), 0, 12)
    values = ramp(12)
    found = opened(dicom(values, 12, ModalityLUTSequence=table))
    np.testing.assert_array_equal(found, np.floor((4095 - values) / 4095 * 255 + 0.5))


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(kind: str) -> None:
    values = np.array([[4000, 4000, 100], [4001, 7, 4002]], np.uint16)
    elements = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4001, "PhotometricInterpretation": kind}
    found = opened(dicom(values, 12, **elements))
    assert found[0, 0] == found[0, 1] == found[1, 0] == 0
    assert found[0, 2] == (6 if kind == "MONOCHROME2" else 249)


# --- against pydicom's own functions ---


@pytest.mark.fault("R13")
def test_windows_agree_with_pydicoms(campaign: Callable[[int, int], int], figure: Callable[[str], None]) -> None:
    numbers = np.random.default_rng(0)
    n, worst = campaign(60, 2000), 0
    for _ in range(n):
        is_signed = bool(numbers.integers(2))
        low = -2048 if is_signed else 0
        elements: dict[str, object] = {
            "WindowCenter": round(float(numbers.uniform(low, low + 4096)), 2),
            "WindowWidth": round(float(np.exp(numbers.uniform(0, 8.5))), 2),
            "VOILUTFunction": [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"][numbers.integers(4)],
        }
        if numbers.integers(2):
            elements |= {"RescaleSlope": round(float(numbers.uniform(0.2, 3)), 2), "RescaleIntercept": -7}
        values = np.arange(low, low + 4096).reshape(64, 64).astype(np.int16 if is_signed else np.uint16)
        made = dataset(values, 12, **elements)
        with np.errstate(over="ignore"):
            theirs = apply_voi_lut(apply_modality_lut(values, made), made)
        slope, intercept = float(elements.get("RescaleSlope", 1)), float(elements.get("RescaleIntercept", 0))
        start, end = low * slope + intercept, (low + 4095) * slope + intercept
        expected = np.floor((theirs - start) / (end - start) * 255 + 0.5)
        worst = max(worst, int(np.abs(opened(as_bytes(made)) - expected).max()))
    assert worst <= 1  # a tie may round either way
    figure(f"{n} windows of 4 functions, signed and rescaled: at most {worst} grey level from pydicom's own")


# --- the same picture as PNG ---


def maps_of(model: EmbeddingModel, picture: Picture) -> torch.Tensor:
    explainer = Explainer(model, IntegratedGradients(n_steps=4), map_size=56)
    groups = text_groups(
        prompt_set=None,
        texts=["pleural effusion", "normal chest"],
        use="labels",
        ensemble="none",
        classes=None,
        against=None,
    )
    (answer,) = explainer.explain([prepare(picture, model.preprocessing)], groups)
    return torch.as_tensor(answer.maps)


@pytest.mark.fault("R13")
@pytest.mark.parametrize(("bits", "kind"), [(12, "MONOCHROME2"), (16, "MONOCHROME1"), (16, "MONOCHROME2")])
def test_a_phantom_gives_the_same_map_as_its_png(
    bits: int, kind: str, small_model: EmbeddingModel, figure: Callable[[str], None]
) -> None:
    film = phantom(seed=7, size=256).pixels
    levels = film + np.random.default_rng(0).uniform(-0.7, 0.7, film.shape)  # the PNG has lost what is between levels
    deep = np.floor(levels.clip(0, 255) / 255 * (2**bits - 1) + 0.5).astype(np.uint16)
    stored = 2**bits - 1 - deep if kind == "MONOCHROME1" else deep
    from_dicom = decode(dicom(stored.astype(np.uint16), bits, PhotometricInterpretation=kind), dicom=STRICT)
    from_png = decode(encode_png(film))
    grey = np.abs(pixels(from_dicom).astype(int) - pixels(from_png).astype(int)).max()
    assert grey == 1
    brighter = decode(encode_png(np.minimum(film, 254) + 1))
    effect = (maps_of(small_model, brighter) - maps_of(small_model, from_png)).abs().max()
    difference = (maps_of(small_model, from_dicom) - maps_of(small_model, from_png)).abs().max()
    assert 0 < difference <= effect
    figure(f"{bits}-bit {kind} phantom: grey levels {grey} off its PNG, map {difference / effect:.3f} of one level's")


def test_the_job_reads_dicom_members_as_the_same_png(tmp_path: Path) -> None:
    film = phantom(seed=3, size=224).pixels
    deep = dicom(film.astype(np.uint16) * 257, 16, BurnedInAnnotation=None)
    items = {}
    for suffix, data in {"dcm": deep, "png": encode_png(film)}.items():
        shard = write_shard(tmp_path / f"{suffix}.tar", [("1.2.840.7", {suffix: data, "json": b"{}"})])
        (entry,) = index_shards([str(shard)]).entries
        sample = check_sample(read_entry(entry))
        items[suffix] = prepare_item(sample, MEDCLIP, accept_burned_in=True)
        if suffix == "dcm":
            with pytest.raises(ImageError, match="has the Burned In Annotation absent"):
                prepare_item(sample, MEDCLIP)
    assert items["dcm"].key == items["png"].key == "1.2.840.7"
    assert torch.equal(items["dcm"].prepared.pixel_values, items["png"].prepared.pixel_values)


# --- refusals ---


@pytest.mark.fault("R13")
@pytest.mark.parametrize(("value", "said"), [("YES", "YES"), (None, "absent"), ("", "absent")])
def test_burned_in_text_is_refused_unless_accepted(value: str | None, said: str) -> None:
    values = np.array([[0, 255]], np.uint8)
    data = dicom(values, BurnedInAnnotation=value)
    with pytest.raises(ImageError, match=f"has the Burned In Annotation {said}; only NO says"):
        opened(data)
    np.testing.assert_array_equal(opened(data, accept_burned_in=True), values)


def test_what_is_no_radiograph_is_refused() -> None:
    grey = np.zeros((4, 4), np.uint8)
    with pytest.raises(ImageError, match="holds 2 frames; only a single frame is read"):
        opened(dicom(np.zeros((8, 4), np.uint8), Rows=4, NumberOfFrames=2))
    colour = dicom(np.zeros((4, 12), np.uint8), Columns=4, SamplesPerPixel=3, PhotometricInterpretation="RGB")
    with pytest.raises(ImageError, match="has the Photometric Interpretation RGB; a radiograph is MONOCHROME1"):
        opened(colour)
    empty = dataset(grey)
    del empty.PixelData
    with pytest.raises(ImageError, match="holds no pixels"):
        opened(as_bytes(empty))
    with pytest.raises(ImageError, match="cannot be decoded"):
        opened(dicom(grey, WindowCenter=1, WindowWidth=0))


def test_size_is_refused_from_the_header() -> None:
    data = dicom(np.zeros((2, 2), np.uint8), Rows=9000, Columns=9000)
    with pytest.raises(ImageError, match="picture has 9000 x 9000 pixels; at most 50000000 pixels"):
        opened(data)


def test_a_deflated_file_is_refused() -> None:
    made = dataset(np.zeros((64, 64), np.uint8))
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    with pytest.raises(ImageError, match="is deflated, which can unpack without end"):
        opened(as_bytes(made))


def test_every_cut_is_refused_and_nothing_of_the_header_is_told() -> None:
    data = dicom(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for end in range(len(data)):
        with pytest.raises(ImageError) as caught:
            opened(data[:end])
        assert "anary" not in str(caught.value)
        assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_dicom_is_read_only_where_the_caller_says_so(tmp_path: Path) -> None:
    values = np.array([[3, 200]], np.uint8)
    data = dicom(values)
    assert is_dicom(data)
    assert not is_dicom(encode(Image.fromarray(values)))
    with pytest.raises(ImageError, match="has the format DICOM; only PNG and JPEG are read"):
        decode(data)
    path = tmp_path / "x.dcm"
    path.write_bytes(data)
    np.testing.assert_array_equal(pixels(read(path)), values)
    with pytest.raises(ImageError, match="has the format DICOM"):
        read(path, dicom=None)


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(np.zeros((2, 2), np.uint8))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r"pydicom is not installed; .* install mapstack\[dicom\]"):
        opened(data)


# --- compressed files ---


def film_16() -> NDArray[np.uint16]:
    return (phantom(seed=1, size=224).pixels.astype(np.uint16) * 257) >> 4


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_files_give_the_plain_files_pixels(syntax: str) -> None:
    made = dataset(film_16(), 12)
    plain = opened(as_bytes(made))
    made.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(opened(as_bytes(made)), plain)


def jpeg_file(size: tuple[int, int], said: tuple[int, int]) -> bytes:
    image = Image.fromarray(np.full(size, 77, np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg")
    made = dataset(np.zeros(said, np.uint8))
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate([buffer.getvalue()])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return as_bytes(made)


def test_a_jpeg_frame_is_read_and_one_of_another_size_refused_before_it_is_decoded() -> None:
    assert (opened(jpeg_file((16, 24), (16, 24))) == 77).all()
    with pytest.raises(ImageError, match="cannot be decoded"):
        opened(jpeg_file((4000, 4000), (16, 24)))


def test_a_jpeg2000_frame_that_claims_another_size_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = dataset(film_16(), 12)
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    data = bytearray(as_bytes(made))
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = b"\x00\x01\x00\x00" * 2  # 65,536 x 65,536
    decoded: list[object] = []
    monkeypatch.setattr("pydicom.pixels.pixel_array", decoded.append)
    with pytest.raises(ImageError, match="cannot be decoded"):
        opened(bytes(data))
    assert decoded == []
