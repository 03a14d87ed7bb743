"""The pictures that are scored, and where their findings are."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mapstack.config import DataConfig
from mapstack.errors import ShardError
from mapstack.images import MEDCLIP, prepare
from mapstack.metrics.chexlocalize import enlarge, write_masks
from mapstack.metrics.rle import encode_mask
from tests.train_like.evaluation.made import box
from tests.train_like.jobs import png, write_shard
from train_like.evaluation import cases as cases_module
from train_like.evaluation.cases import Cases, read_ground_truth

SIZE = (20, 30)

WriteCases = Callable[..., Cases]


def npz(arrays: Mapping[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{label: np.asarray(array) for label, array in arrays.items()}, **options)
    return buffer.getvalue()


def sample(key: str = "a", size: tuple[int, int] = SIZE, **members: Any) -> tuple[str, dict[str, bytes]]:
    """A picture with a json and, where given, masks."""
    content = {"png": png(0, *size)}
    if "info" in members:
        content["json"] = json.dumps(members["info"]).encode()
    if "masks" in members:
        content["masks.npz"] = members["masks"]
    return key, content


@pytest.fixture
def cases(tmp_path: Path) -> WriteCases:
    def write(*samples: tuple[str, dict[str, bytes]], truth: Any = None, n: int | None = None, **more: Any) -> Cases:
        path = write_shard(tmp_path / "x-0.tar", samples)
        return Cases(DataConfig(shards=str(path)), MEDCLIP, truth, n, **more)

    return write


def masks_of(case: Any) -> dict[str, list[list[int]]]:
    return {region.label: region.mask.nonzero().tolist() for region in case.regions}


def test_masks_of_the_shard_come_before_boxes(cases: WriteCases) -> None:
    diagonal = torch.eye(20, 30, dtype=torch.bool)
    stored = {"Edema": diagonal, "Lung Lesion": np.zeros(SIZE, bool), "Cardiomegaly": np.full(SIZE, 3, np.uint8)}
    findings = [{"label": "Edema", "prompt": "Mild edema.", "box": [0, 0, 1, 1]}]
    case = cases(sample(masks=npz(stored), info={"labels": ["Edema", "Fracture"], "findings": findings})).read("a")
    assert case.key == "a"
    assert case.labels == ("Edema", "Fracture")  # a label needs no region
    assert [region.label for region in case.regions] == ["Edema", "Cardiomegaly"]  # an empty mask is none
    assert [region.sentence for region in case.regions] == ["Mild edema.", None]
    assert torch.equal(case.regions[0].mask, diagonal)
    assert case.regions[1].mask.all()


def test_boxes_are_half_open_and_those_of_one_label_are_one_region(cases: WriteCases) -> None:
    findings = [
        {"label": "Edema", "prompt": "First.", "box": [2, 3, 4, 7]},
        {"label": "Lung Lesion", "prompt": "Not located."},
        {"label": "Edema", "prompt": "Second.", "box": [10, 0, 11, 2]},
        {"label": "Cardiomegaly", "box": [19, 29, 20, 30]},
        {"label": "Fracture", "box": [5, 5, 5, 9]},
    ]
    case = cases(sample(info={"findings": findings})).read("a")
    assert masks_of(case) == {
        "Edema": (box(SIZE, 2, 3, 4, 7) | box(SIZE, 10, 0, 11, 2)).nonzero().tolist(),
        "Cardiomegaly": [[19, 29]],
    }
    assert case.labels == ("Edema", "Cardiomegaly")  # where the json names none


def test_pictures_of_which_nothing_is_known_have_no_region(cases: WriteCases) -> None:
    split = cases(sample("a", info={}), sample("b", info={"labels": ["No Finding"]}))
    assert [(case.labels, case.regions) for case in split] == [((), ()), (("No Finding",), ())]


def test_ground_truth_of_chexlocalize_replaces_that_of_the_shard(cases: WriteCases, tmp_path: Path) -> None:
    opacity, edema = box(SIZE, 1, 2, 5, 4), box(SIZE, 7, 0, 9, 30)
    write_masks(tmp_path / "one.json", {"b": {"Airspace Opacity": encode_mask(opacity), "Edema": encode_mask(edema)}})
    write_masks(
        tmp_path / "two.json", {"c": {"Edema": encode_mask(~edema)}, "elsewhere": {"Edema": encode_mask(edema)}}
    )
    truth = read_ground_truth([str(tmp_path / "one.json"), str(tmp_path / "two.json")])
    info = {"labels": ["Lung Lesion"], "findings": [{"label": "Edema", "prompt": "Edema.", "box": [0, 0, 1, 1]}]}
    split = cases(*(sample(key, info=info, masks=b"not read") for key in "abc"), truth=truth)
    assert split.keys == ("b", "c")  # in the order of the shards, known ones only
    first, second = split
    assert masks_of(first) == {"Lung Opacity": opacity.nonzero().tolist(), "Edema": edema.nonzero().tolist()}
    assert masks_of(second) == {"Edema": (~edema).nonzero().tolist()}
    assert {region.label: region.sentence for region in first.regions} == {"Lung Opacity": None, "Edema": "Edema."}
    assert first.labels == ("Lung Lesion",)
    assert read_ground_truth([]) is None


def test_the_first_pictures_are_taken_in_the_order_of_the_shards(cases: WriteCases) -> None:
    samples = [sample(key) for key in "badec"]
    assert cases(*samples, n=3).keys == ("b", "a", "d")
    assert cases(*samples).keys == cases(*samples, n=9).keys == tuple("badec")
    assert [case.key for case in cases(*samples, n=2)] == ["b", "a"]


def test_a_digest_covers_the_picture_its_findings_and_its_masks(cases: WriteCases) -> None:
    boxed = {"findings": [{"label": "Edema", "box": [0, 0, 3, 3]}]}
    masks = npz({"Edema": np.ones(SIZE, bool)})
    unlike = [sample("a", info={}), sample("b", size=(21, 30), info={}), sample("c", info=boxed)]
    split = cases(*unlike, sample("d", info={}, masks=masks), sample("e", info={}))
    digests = [split.digest(key) for key in "abcde"]
    assert len(set(digests[:4])) == 4
    assert digests[0] == digests[4]


@pytest.mark.parametrize("findings", [[{"box": [0, 0, 3, 3]}], [{"label": "Edema", "box": [0, 0, 3]}], [None], 3])
def test_findings_that_cannot_be_read_are_refused(cases: WriteCases, findings: Any) -> None:
    split = cases(sample("a", info={"findings": findings}))
    with pytest.raises(ShardError, match=r"^findings of key 'a' cannot be read; they are a list of objects with a la"):
        split.read("a")


@pytest.mark.parametrize("shape", [(30, 20), (224, 224), (20,), (20, 30, 1)])
def test_a_mask_of_another_size_is_refused(cases: WriteCases, shape: tuple[int, ...]) -> None:
    split = cases(sample("K\u00fc", masks=npz({"Edema": np.ones(shape, bool)})))
    with pytest.raises(ShardError) as refusal:
        split.read("K\u00fc")
    assert str(refusal.value) == (
        f"a mask of key 'K\\xfc' has shape {shape}, its picture (20, 30); masks lie in the original-image frame; write "
        "them in the picture's size."
    )


def damaged() -> bytes:
    """A zip whose compressed bytes are damaged, but not its directory."""
    content = bytearray(npz({"Edema": np.random.default_rng(0).random(SIZE) > 0.5}))
    content[60:70] = b"\xff" * 10
    return bytes(content)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no zip", id="no zip"),
        pytest.param(npz({"Edema": np.ones(SIZE, bool)})[:-30], id="cut"),
        pytest.param(npz({"Edema": np.array([None, {}], dtype=object)}), id="pickle"),
        pytest.param(damaged(), id="damaged"),  # zlib.error
        pytest.param(npy(np.ones(SIZE, bool)), id="an array alone"),  # TypeError
        pytest.param(archive(Edema=b"no array"), id="no array"),  # AttributeError
    ],
)
def test_masks_that_cannot_be_read_are_refused(cases: WriteCases, content: bytes) -> None:
    split = cases(sample("a", masks=content))
    with pytest.raises(ShardError) as refusal:
        split.read("a")
    assert str(refusal.value) == (
        "masks.npz of key 'a' cannot be read; it holds one boolean array a label, without pickles; write it again."
    )


def test_masks_larger_than_any_picture_are_not_unpacked(cases: WriteCases, monkeypatch: pytest.MonkeyPatch) -> None:
    split = cases(sample("a", masks=npz({"Edema": np.ones(SIZE, bool)})))
    split.read("a")
    monkeypatch.setattr(cases_module, "_MAX_MASK_BYTES", 100)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(ShardError, match=r"^masks.npz of key 'a' cannot be read;"):
        split.read("a")


def test_a_sample_that_cannot_be_read_is_not_left_out(cases: WriteCases) -> None:
    with pytest.raises(ShardError, match=r"^1 samples of shards .*x-0.tar cannot be read, the first in .*; an evaluat"):
        cases(sample("a", info={}), sample("b"))


def peak_at(row: int, column: int) -> Tensor:
    attribution = torch.zeros(224, 224)
    attribution[row, column] = 1.0
    return attribution


def test_a_map_of_a_square_picture_is_enlarged_as_the_benchmark_does(cases: WriteCases) -> None:
    case = cases(sample(size=(448, 448))).read("a")
    attribution = torch.rand(224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(case.on_picture(attribution), enlarge(attribution, (448, 448)))
    assert case.on_picture(torch.ones(224, 224)).sum() == 448**2  # values stay, and totals grow


def test_a_map_of_a_padded_picture_loses_its_padding(cases: WriteCases) -> None:
    case = cases(sample(size=(448, 224))).read("a")  # in the frame: columns 56 to 168
    on_picture = case.on_picture(peak_at(100, 60))
    assert on_picture.shape == (448, 224)
    row, column = divmod(int(on_picture.argmax()), 224)
    assert row in (200, 201)
    assert column in (8, 9)
    assert on_picture.sum() == pytest.approx(1)
    assert not case.on_picture(peak_at(100, 55)).any()
    assert not case.on_picture(peak_at(100, 168)).any()
    assert case.prepared.geometry == prepare(case.picture, MEDCLIP).geometry


def test_without_regions_no_mask_is_read(cases: WriteCases) -> None:
    info = {"findings": [{"label": "Edema", "box": [0, 0, 2, 2]}]}
    found = cases(sample(info=info, masks=b"damaged"), has_regions=False).read("a")
    assert (found.regions, found.labels) == ((), ("Edema",))


def test_brightness_is_that_of_the_picture(cases: WriteCases) -> None:
    case = cases(sample()).read("a")
    expected = np.asarray(case.picture.image) / np.float32(255)
    assert case.brightness.shape == SIZE
    assert case.brightness.numpy() == pytest.approx(expected)
