import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.chexlocalize import (
    MIMIC_LABELS,
    PATHOLOGIES,
    THRESHOLDS,
    best_threshold,
    enlarge,
    hit,
    read_masks,
    read_polygons,
    segment,
    threshold_ious,
    true_positive_iou,
    tune_threshold,
    write_masks,
)
from mapstack.metrics.rle import EncodedMask, decode_mask, encode_mask

IMAGE_ID = "patient00001_study1_view1_frontal"
PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "mimic_cxr.yaml"


def box(size: tuple[int, int], row0: int, column0: int, row1: int, column1: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[row0:row1, column0:column1] = True
    return mask


def bump(size: tuple[int, int], row: float, column: float, width: float = 2.0) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))


def enlarged_by_loop(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel centres at halves, borders repeated."""
    answer = np.empty(size)
    for row, column in np.ndindex(size):
        y = min(max((row + 0.5) * scores.shape[0] / size[0] - 0.5, 0), scores.shape[0] - 1)
        x = min(max((column + 0.5) * scores.shape[1] / size[1] - 0.5, 0), scores.shape[1] - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, scores.shape[0] - 1), min(left + 1, scores.shape[1] - 1)
        upper = scores[top, left] * (1 - x + left) + scores[top, right] * (x - left)
        lower = scores[bottom, left] * (1 - x + left) + scores[bottom, right] * (x - left)
        answer[row, column] = upper * (1 - y + top) + lower * (y - top)
    return answer


def test_names_are_those_of_the_class_labels() -> None:
    labels = {entry["label"] for entry in yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))["classes"]}
    assert len(PATHOLOGIES) == 10
    assert set(MIMIC_LABELS.values()) < labels
    assert MIMIC_LABELS["Airspace Opacity"] == "Lung Opacity"
    assert [name for name, label in MIMIC_LABELS.items() if name != label] == ["Airspace Opacity"]


def test_masks_are_written_as_the_benchmarks_scripts_read_them(tmp_path: Path) -> None:
    edema = box((5, 4), 1, 2, 4, 3)
    write_masks(tmp_path / "truth.json", {IMAGE_ID: {"Edema": encode_mask(edema)}})
    record = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    assert list(record[IMAGE_ID]) == list(PATHOLOGIES)
    assert record[IMAGE_ID]["Edema"] == {"size": [5, 4], "counts": ";36"}  # 11 False, 3 True, 6 False
    assert record[IMAGE_ID]["Cardiomegaly"] == {"size": [5, 4], "counts": "d0"}  # 20 False

    masks = read_masks(tmp_path / "truth.json")[IMAGE_ID]
    assert torch.equal(decode_mask(masks["Edema"]), edema)
    assert not any(decode_mask(masks[name]).any() for name in PATHOLOGIES if name != "Edema")


def test_polygons_are_drawn_with_their_outline(tmp_path: Path) -> None:
    entry = {
        "img_size": [8, 10],
        "Edema": [[[1, 2], [4, 2], [4, 6], [1, 6]], [[8.0, 0.0], [9.0, 0.0], [9.0, 1.0], [8.0, 1.0]]],
    }
    (tmp_path / "annotations.json").write_text(json.dumps({IMAGE_ID: entry}), encoding="utf-8")
    masks = read_polygons(tmp_path / "annotations.json")[IMAGE_ID]
    assert tuple(masks) == PATHOLOGIES
    # x is the column, y the row, and both ends belong to the region.
    assert torch.equal(decode_mask(masks["Edema"]), box((8, 10), 2, 1, 7, 5) | box((8, 10), 0, 8, 2, 10))
    assert not decode_mask(masks["Pneumothorax"]).any()


@pytest.mark.parametrize("size", [(9, 14), (3, 5), (20, 7)])
def test_enlarging_equals_the_loop(size: tuple[int, int]) -> None:
    scores = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert enlarge(scores, size).numpy() == pytest.approx(enlarged_by_loop(scores.numpy(), size))


def test_a_hit_is_told_on_the_enlarged_map() -> None:
    scores = torch.zeros(4, 4)
    scores[1, 2] = 1  # the strongest of 8 x 8 are rows 2 and 3, columns 4 and 5, all equal: (2, 4) comes first
    assert hit(scores, box((8, 8), 2, 4, 3, 5)) == 1
    assert hit(scores, box((8, 8), 3, 5, 4, 6)) == 0
    assert math.isnan(hit(scores, torch.zeros(8, 8, dtype=torch.bool)))


def test_overlap_counts_where_both_hold_something() -> None:
    region = box((6, 6), 0, 0, 2, 3)
    assert true_positive_iou(region, box((6, 6), 1, 0, 3, 3)) == 3 / 9
    empty = torch.zeros(6, 6, dtype=torch.bool)
    assert math.isnan(true_positive_iou(empty, region))
    assert math.isnan(true_positive_iou(region, empty))
    assert true_positive_iou(region, box((6, 6), 5, 5, 6, 6)) == 0


def test_segments_by_threshold_and_by_otsu() -> None:
    scores = torch.full((6, 6), -2.0)
    scores[1:5, 1:5] = 2.0
    scores[2, 2] = 0.0  # scaled: exactly 0.5
    square = box((6, 6), 1, 1, 5, 5)
    with_hole = square & ~box((6, 6), 2, 2, 3, 3)
    assert torch.equal(segment(scores, (6, 6), 0.5), with_hole)  # strictly greater, holes stay
    assert torch.equal(segment(scores, (6, 6), 0.4), square)
    assert torch.equal(segment(scores, (6, 6), None), square)  # holes are filled


@pytest.mark.parametrize("seed", range(3))
def test_tuning_equals_the_loop(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    pictures = []
    for _ in range(6):
        row, column = (torch.rand(2, generator=source) * 16).tolist()
        truth = bump((16, 16), row, column) > 0.2 + 0.6 * torch.rand((), generator=source)
        pictures.append((bump((16, 16), row, column, 3) + 0.1 * torch.rand(16, 16, generator=source), truth))
    pictures.append((torch.rand(16, 16, generator=source), torch.zeros(16, 16, dtype=torch.bool)))  # left out
    pictures.append((torch.ones(16, 16), box((16, 16), 0, 0, 4, 4)))  # a constant map: left out

    means = []
    for threshold in np.arange(0.2, 0.8, 0.1):  # as upstream writes it; rounding gives it seven values
        overlaps = []
        for scores, truth in pictures[:6]:
            scaled = (scores - scores.min()) / (scores.max() - scores.min())
            predicted = scaled > round(float(threshold), 1)
            overlaps.append(float((predicted & truth).sum() / (predicted | truth).sum()))
        means.append(np.mean(overlaps))
    assert len(means) == len(THRESHOLDS)
    assert tune_threshold(iter(pictures)) == THRESHOLDS[int(np.argmax(means))]


def test_of_equal_thresholds_the_first_is_chosen() -> None:
    truth = box((4, 4), 1, 1, 3, 3)
    assert tune_threshold([(truth.float(), truth)]) == 0.2
    with pytest.raises(InputError, match="none of 1 validation pictures can be scored"):
        tune_threshold([(truth.float(), torch.zeros(4, 4, dtype=torch.bool))])
    with pytest.raises(InputError, match="none of 0 validation pictures"):
        tune_threshold([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_overlaps_in_one_pass_equal_one_region_after_the_other(seed: int, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(seed)
    scores = torch.randn(9, 7, generator=source, dtype=dtype)
    truth = torch.rand(20, 30, generator=source) < 0.3
    expected = [true_positive_iou(segment(scores, (20, 30), threshold), truth) for threshold in THRESHOLDS]
    assert threshold_ious(scores, truth) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pixel_that_equals_a_threshold_does_not_exceed_it(dtype: torch.dtype) -> None:
    levels = torch.tensor([[0.0, *THRESHOLDS, 1.0]], dtype=dtype)  # scaled already
    truth = torch.tensor([[False] * 4 + [True] * 5])  # the last five, from 0.5 on
    n_above = torch.tensor([7, 6, 5, 4, 3, 2, 1])  # 1.0, and each threshold above
    expected = [min(n, 5) / max(n, 5) for n in n_above.tolist()]
    assert threshold_ious(levels, truth) == pytest.approx(expected)
    assert [int((segment(levels, (1, 9), threshold)).sum()) for threshold in THRESHOLDS] == n_above.tolist()


def test_overlaps_of_what_cannot_be_scored() -> None:
    empty, corner = torch.zeros(6, 6, dtype=torch.bool), box((6, 6), 0, 0, 1, 1)
    assert all(math.isnan(share) for share in threshold_ious(bump((6, 6), 3, 3), empty))
    assert all(math.isnan(share) for share in threshold_ious(torch.ones(6, 6), corner))  # no region is predicted
    away = threshold_ious(bump((6, 6), 5, 5, 1), corner)
    assert away == [0.0] * 7


@pytest.mark.parametrize(
    ("rows", "threshold"),
    [
        ([[0.0] * 6 + [1.0]], 0.8),
        ([[0.5] * 7], 0.2),  # of equals the first
        ([[0.1, 0.6, 0.0] + [0.0] * 4, [0.5, 0.1, 0.4] + [0.0] * 4], 0.3),
        # NaN is left out at its own threshold: means of 0.2 and 0.9.
        ([[0.3, 0.9] + [0.0] * 5, [0.1, math.nan] + [0.0] * 5, [math.nan] * 7], 0.3),
    ],
)
def test_the_threshold_of_the_greatest_mean(rows: list[list[float]], threshold: float) -> None:
    assert best_threshold(rows) == threshold


@pytest.mark.parametrize("rows", [[], [[math.nan] * 7], [[0.5] * 6 + [math.nan]]])
def test_a_threshold_at_which_nothing_can_be_scored_is_refused(rows: list[list[float]]) -> None:
    with pytest.raises(InputError, match=f"none of {len(rows)} validation pictures can be scored; it needs one with"):
        best_threshold(rows)


def mask_record(**changes: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {name: {"size": [2, 2], "counts": "4"} for name in PATHOLOGIES}
    return {key: value for key, value in {**empty, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"cannot be read \(JSONDecodeError\)"),
        ("[1]", "is no JSON of CheXlocalize; it maps image ids to pathologies"),
        ('{"a": 1}', "is no JSON of CheXlocalize"),
        (mask_record(Edema=None), "picture 0 has no mask for Edema; each picture has all ten"),
        (mask_record(**{"Lung Opacity": {}}), "pathology 'Lung Opacity' is unknown; choose one of Enlarged"),
        (mask_record(Edema={"size": [2, 2]}), r"picture 0 holds a mask without size \[height, width\] and counts"),
        (mask_record(Edema={"size": [2], "counts": "4"}), "picture 0 holds a mask without size"),
        (mask_record(Edema={"size": [10**6, 10**6], "counts": "4"}), "picture 0 holds a mask without size"),
        (mask_record(Edema="4"), "picture 0 holds a mask without size"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: Any, sentence: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(content if isinstance(content, str) else json.dumps({IMAGE_ID: content}), encoding="utf-8")
    with pytest.raises(InputError, match=sentence) as refusal:
        read_masks(path)
    assert IMAGE_ID not in str(refusal.value)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"Edema": []}, "picture 0 holds polygons that cannot be drawn"),
        ({"img_size": [4, 4], "Edema": [[[1, 1]]]}, "picture 0 holds polygons that cannot be drawn"),
        ({"img_size": [4, 4], "Edema": [[[1, 1, 1], [2, 2, 2]]]}, "picture 0 holds polygons that cannot be drawn"),
        ({"img_size": [4, 4], "Edema": [[["a", 1], [2, 2]]]}, "picture 0 holds polygons that cannot be drawn"),
        ({"img_size": [10**6, 10**6]}, "picture 0 holds polygons that cannot be drawn"),
        ({"img_size": [4, 4], "Oedema": []}, "pathology 'Oedema' is unknown; .* Did you mean 'Edema'?"),
    ],
)
def test_polygons_that_cannot_be_drawn_are_refused(tmp_path: Path, entry: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({IMAGE_ID: entry}), encoding="utf-8")
    with pytest.raises(InputError, match=sentence):
        read_polygons(path)


def test_masks_of_two_sizes_or_none_are_not_written(tmp_path: Path) -> None:
    both = {"Edema": EncodedMask((2, 2), "4"), "Cardiomegaly": EncodedMask((1, 4), "4")}
    for masks, n_sizes in ((both, 2), ({}, 0)):
        with pytest.raises(InputError, match=f"picture 0 has masks of {n_sizes} sizes"):
            write_masks(tmp_path / "truth.json", {IMAGE_ID: masks})
    assert not (tmp_path / "truth.json").exists()
    with pytest.raises(InputError, match=r"cannot be read \(FileNotFoundError\)"):
        read_masks(tmp_path / "truth.json")


@pytest.mark.usefixtures("plain_types")
def test_maps_and_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="holds 4 values that are NaN"):
        hit(torch.full((2, 2), torch.nan), box((4, 4), 0, 0, 1, 1))
    with pytest.raises(InputError, match="is no mask"):
        hit(torch.rand(2, 2), torch.ones(4, 4))
    with pytest.raises(InputError, match=r"predicted of shape \(2, 2\) does not fit mask of shape \(4, 4\)"):
        true_positive_iou(box((2, 2), 0, 0, 1, 1), box((4, 4), 0, 0, 1, 1))
    with pytest.raises(InputError, match="is no mask"):
        threshold_ious(torch.rand(4, 4), torch.ones(4, 4))
    with pytest.raises(InputError, match="holds 1 values that are NaN"):
        threshold_ious(torch.tensor([[torch.nan, 1.0]]), box((1, 2), 0, 0, 1, 1))
