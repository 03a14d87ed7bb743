import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from mapstack.errors import ConfigError, ImageError, InputError
from mapstack.images import MEDCLIP, Inputs, Preprocessing, collate, decode, from_array, prepare, read
from tests.picture_files import encode, pixels, random_image

CLIP = Preprocessing(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "crop")


# --- files ---


def test_read_takes_the_content_and_not_the_name(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(random_image("L")))
    np.testing.assert_array_equal(pixels(read(path)), np.asarray(random_image("L")))
    path.write_bytes(encode(random_image("L"), "GIF"))
    with pytest.raises(ImageError, match="has the format GIF"):
        read(str(path))


def test_read_names_the_file_it_cannot_open(tmp_path):
    with pytest.raises(ImageError, match=r"absent.png' cannot be opened \(No such file or directory\); it must be"):
        read(tmp_path / "absent.png")


# --- arrays ---


def test_from_array_keeps_bytes_and_tells_dtypes_and_shapes_apart():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    np.testing.assert_array_equal(pixels(from_array(grey)), grey)
    np.testing.assert_array_equal(pixels(from_array(colour)), colour)
    variants = [grey, grey.astype(np.uint16), grey.reshape(4, 3), grey.T, grey + 1, colour]
    assert len({from_array(variant).sha256 for variant in variants}) == len(variants)


def test_from_array_does_not_depend_on_memory_layout():
    values = np.random.default_rng(0).integers(0, 4096, (5, 7)).astype(np.uint16)
    other = np.asfortranarray(values).astype(">u2")
    assert from_array(other).sha256 == from_array(values).sha256
    np.testing.assert_array_equal(pixels(from_array(other)), pixels(from_array(values)))


def test_from_array_does_not_follow_later_changes():
    values = np.zeros((2, 2), np.uint8)
    picture = from_array(values)
    values[:] = 9
    assert not pixels(picture).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2)), r"array of dtype float64 and shape \(2, 2\) is no picture"),
        (np.zeros((2, 2), np.int16), "dtype int16"),
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros((2, 2, 4), np.uint8), r"shape \(2, 2, 4\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((0, 4), np.uint8), "picture has 0 x 4 pixels"),
        (np.zeros((1, 17), np.uint8), "16 times the shorter side"),
    ],
)
def test_from_array_refuses_what_is_no_picture(values, message):
    with pytest.raises(ImageError, match=message):
        from_array(values)


# --- preprocessing ---


def upstream_medclip(image: Image.Image) -> np.ndarray:
    # medclip 0.0.3, dataset.py, with the steps of transformers 4.23's feature extractor in their order.
    x, y = image.size
    size = max(224, x, y)
    padded = Image.new("L", (size, size), 0)
    padded.paste(image, (int((size - x) / 2), int((size - y) / 2)))
    resized = padded.resize((224, 224), resample=Image.BICUBIC)
    values = np.array(resized).astype(np.float32) * (1 / 255.0)
    mean = np.array([0.5862785803043838]).astype(values.dtype)
    std = np.array([0.27950088968644304]).astype(values.dtype)
    return ((values - mean) / std)[None]


@pytest.mark.parametrize(
    ("height", "width"),
    [(224, 224), (512, 512), (300, 400), (401, 300), (100, 200), (225, 224), (223, 224), (1, 1), (37, 222), (640, 127)],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_medclip_preprocessing_equals_upstream_exactly(height, width, mode):
    image = random_image(mode, height, width)
    prepared = prepare(decode(encode(image)), MEDCLIP)
    assert prepared.pixel_values.shape == (1, 224, 224)
    assert prepared.pixel_values.dtype == torch.float32
    assert np.abs(prepared.pixel_values.numpy() - upstream_medclip(image)).max() == 0.0


@pytest.mark.parametrize(("height", "width"), [(224, 224), (512, 300), (301, 512), (60, 100), (225, 224), (500, 333)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_clip_preprocessing_equals_transformers(height, width, mode):
    image = random_image(mode, height, width)
    expected = CLIPImageProcessor()(image, return_tensors="np")["pixel_values"][0]
    prepared = prepare(decode(encode(image)), CLIP)
    np.testing.assert_allclose(prepared.pixel_values.numpy(), expected, rtol=0, atol=1e-6)


def test_normalize_and_denormalize_are_inverse():
    pictures = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(CLIP.denormalize(CLIP.normalize(pictures)), pictures)
    black = CLIP.normalize(torch.zeros(3, 1, 1, dtype=torch.float64)).flatten()
    assert black.tolist() == pytest.approx([-m / s for m, s in zip(CLIP.mean, CLIP.std, strict=True)])


@pytest.mark.parametrize(
    "change",
    [{"image_size": 0}, {"mean": (0.5, 0.5)}, {"std": (1.0, 1.0)}, {"std": (0.0,)}, {"mean": (), "std": ()}],
)
def test_a_wrong_preprocessing_is_refused(change):
    with pytest.raises(ConfigError, match="image_size is at least 1, mean and std hold 1 or 3 values"):
        dataclasses.replace(MEDCLIP, **change)


# --- batches ---


def batch(n: int) -> Inputs:
    return collate([prepare(from_array(np.full((30, 20 + i), i, np.uint8)), MEDCLIP) for i in range(n)])


def test_collate_keeps_order_and_content():
    prepared = [prepare(from_array(np.full(shape, 9, np.uint8)), MEDCLIP) for shape in ((300, 200), (200, 300))]
    inputs = collate(prepared)
    assert len(inputs) == 2
    assert inputs.sha256 == (prepared[0].sha256, prepared[1].sha256)
    for i, picture in enumerate(prepared):
        assert torch.equal(inputs.pixel_values[i], picture.pixel_values)
    assert not inputs.content[0, 100, 0]
    assert inputs.content[0, 0, 100]
    assert inputs.content[1, 100, 0]
    assert not inputs.content[1, 0, 100]


def test_collate_refuses_nothing_and_mixtures():
    with pytest.raises(InputError, match=r"pictures of shapes \[\] make no batch"):
        collate([])
    picture = from_array(np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match=r"\(1, 224, 224\), \(3, 224, 224\)"):
        collate([prepare(picture, CLIP), prepare(picture, MEDCLIP)])


def test_inputs_are_indexed_and_iterated():
    inputs = batch(3)
    assert inputs[1:].sha256 == inputs.sha256[1:]
    assert torch.equal(inputs[1:].pixel_values, inputs.pixel_values[1:])
    assert inputs[-1].sha256 == inputs.sha256[2:]
    assert [one.sha256[0] for one in inputs] == list(inputs.sha256)
    with pytest.raises(IndexError):
        inputs[3]


def test_padded_repeats_the_last_picture():
    inputs = batch(2)
    padded = inputs.padded(4)
    assert padded.sha256 == (*inputs.sha256, inputs.sha256[1], inputs.sha256[1])
    assert torch.equal(padded.pixel_values[:2], inputs.pixel_values)
    assert torch.equal(padded.pixel_values[3], inputs.pixel_values[1])
    assert torch.equal(padded.content[3], inputs.content[1])
    assert inputs.padded(2).sha256 == inputs.sha256
    with pytest.raises(InputError, match="2 pictures cannot be padded to 1"):
        inputs.padded(1)
    with pytest.raises(InputError, match="0 pictures cannot be padded to 4"):
        inputs[:0].padded(4)


def test_inputs_move_to_a_device():
    moved = batch(1).to("meta")
    assert moved.pixel_values.device.type == "meta"
    assert moved.content.device.type == "meta"
    assert moved.sha256 == batch(1).sha256


def test_inputs_of_different_lengths_are_refused():
    inputs = batch(2)
    with pytest.raises(InputError, match="2 pixel_values, 2 content masks and 1 sha256"):
        Inputs(inputs.pixel_values, inputs.content, inputs.sha256[:1])
