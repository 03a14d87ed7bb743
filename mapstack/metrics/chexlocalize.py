"""CheXlocalize, the localisation benchmark that radiology users know: its files and its scores, by its exact rules.

Its maps come as pickles. They are neither read, since a pickle runs code, nor written: give the maps as tensors.

Source:
    Saporta et al., "Benchmarking saliency methods for chest X-ray interpretation", Nature Machine Intelligence 2022;
    eval.py, tune_heatmap_threshold.py and annotation_to_segmentation.py of rajpurkarlab/cheXlocalize.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from mapstack.errors import InputError, unknown_name
from mapstack.metrics.checks import check_boolean, check_map, check_same_shape
from mapstack.metrics.localisation import iou, pointing_game_hit
from mapstack.metrics.rle import MAX_PIXELS, EncodedMask, encode_mask
from mapstack.metrics.segmentation import above, otsu_mask, unit_scaled

PATHOLOGIES = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Airspace Opacity",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Support Devices",
)
"""The ten findings, as its files name them."""

MIMIC_LABELS = {name: "Lung Opacity" if name == "Airspace Opacity" else name for name in PATHOLOGIES}
"""From its names to the class labels of MIMIC-CXR; one differs."""

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""What a threshold is chosen from, on validation pictures."""

GroundTruth = dict[str, dict[str, EncodedMask]]
"""By image id, such as `patient64541_study1_view1_frontal`, then by pathology; all ten, empty where absent."""


def read_masks(path: str | os.PathLike[str]) -> GroundTruth:
    """Read a file of masks: the ground truth, or predicted regions in the same form.

    The masks stay encoded, since those of 600 pictures would fill 40 GB; `decode_mask` restores one.

    Raises:
        InputError: The file is no such JSON, names an unknown pathology, or a picture lacks one of the ten.
    """
    images = _read_json(path)
    return {image_id: _masks_of(entry, number) for number, (image_id, entry) in enumerate(images.items())}


def write_masks(path: str | os.PathLike[str], masks: Mapping[str, Mapping[str, EncodedMask]]) -> None:
    """Write masks as CheXlocalize's own scripts read them; a pathology that is not given is written as empty.

    Args:
        path: The JSON file.
        masks: By image id, then by pathology; at least one a picture, for its size; original-image frame.

    Raises:
        InputError: A pathology is unknown, or a picture has no mask or masks of two sizes.
    """
    complete = {image_id: _completed(entry, number) for number, (image_id, entry) in enumerate(masks.items())}
    records = {
        image_id: {name: {"size": list(mask.size), "counts": mask.counts} for name, mask in entry.items()}
        for image_id, entry in complete.items()
    }
    Path(path).write_text(json.dumps(records) + "\n", encoding="utf-8")


def read_polygons(path: str | os.PathLike[str]) -> GroundTruth:
    """Read a file of polygons, `{image_id: {"img_size": [height, width], pathology: [[[x, y], ...], ...]}}`.

    Each polygon is drawn filled, with its outline; a pathology that is not named is empty.

    Raises:
        InputError: The file is no such JSON, or names an unknown pathology.

    Source:
        `create_mask` in annotation_to_segmentation.py, by the same calls of Pillow.
    """
    images = _read_json(path)
    return {image_id: _drawn(entry, number) for number, (image_id, entry) in enumerate(images.items())}


def enlarge(attribution: Float[Tensor, "map_height map_width"], size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Bring a map to the size of the original picture, bilinearly.

    Args:
        attribution: Signed scores [logit] over the whole picture and nothing else, at any resolution. A map of a
            padded model-input frame goes through `Geometry.to_original` first.
        size: (height, width) of the original picture [px].

    Raises:
        InputError: The map is not finite.
    """
    check_map(attribution)
    if tuple(attribution.shape) == size:
        return attribution
    return torch.nn.functional.interpolate(attribution[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def hit(attribution: Float[Tensor, "map_height map_width"], mask: Bool[Tensor, "height width"]) -> float:
    """Say whether the single maximum of the enlarged map, the first in row-major order, lies inside the mask.

    The hit rate is the mean over pictures, NaN left out; in [0, 1], higher is better.

    Args:
        attribution: Signed scores [logit]; see `enlarge`.
        mask: The ground truth, original-image frame.

    Returns:
        1 or 0; NaN where the picture does not have the pathology.

    Raises:
        InputError: The map is not finite, or the mask is not boolean.

    Source:
        `get_hit_rates` in eval.py.

    Example:
        >>> truth = torch.tensor([[True, False], [False, False]])
        >>> hit(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), truth)  # of two maxima the first
        1.0
        >>> hit(torch.tensor([[-2.0, 1.0], [1.0, 2.0]]), truth)
        0.0
    """
    check_boolean(mask)
    enlarged = enlarge(attribution, (mask.shape[0], mask.shape[1]))
    return float(pointing_game_hit(enlarged, mask)) if mask.any() else math.nan


def segment(
    attribution: Float[Tensor, "map_height map_width"], size: tuple[int, int], threshold: float | None
) -> Bool[Tensor, "height width"]:
    """Make a region of a map, on the original picture.

    Args:
        attribution: Signed scores [logit]; see `enlarge`.
        size: (height, width) of the original picture [px].
        threshold: One of `THRESHOLDS`, which the map, scaled to [0, 1] by its own minimum and maximum, must exceed;
            None for Otsu's rule on 8 bits with the outer contours filled.

    Raises:
        InputError: The map is not finite, or the threshold is out of range.

    Source:
        `cam_to_segmentation` in heatmap_to_segmentation.py; see `mapstack.metrics.segmentation`.
    """
    enlarged = enlarge(attribution, size)
    return otsu_mask(enlarged) if threshold is None else above(enlarged, threshold)


def true_positive_iou(predicted: Bool[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """Return the overlap of a predicted region with the ground truth, where both hold something.

    mIoU is the mean over pictures, NaN left out; in [0, 1], higher is better. It does not punish a region predicted
    on a picture without the pathology, nor an empty prediction: that is the benchmark's default.

    Args:
        predicted: What `segment` made, original-image frame.
        mask: The ground truth, same frame.

    Returns:
        The overlap; NaN where one of the two is empty.

    Raises:
        InputError: The shapes differ, or one is not boolean.

    Source:
        `calculate_iou` in eval.py with `true_pos_only`, its default.
    """
    check_boolean(predicted, "predicted")
    check_boolean(mask)
    check_same_shape(predicted, mask, ("predicted", "mask"))
    return iou(predicted, mask) if predicted.any() and mask.any() else math.nan


def tune_threshold(
    pictures: Iterable[tuple[Float[Tensor, "map_height map_width"], Bool[Tensor, "height width"]]],
) -> float:
    """Choose the threshold of one pathology on validation pictures: the first of the greatest mIoU.

    Args:
        pictures: Map and ground truth of each; taken one by one, so that they need not all be in memory.

    Returns:
        One of `THRESHOLDS`.

    Raises:
        InputError: No picture has both the pathology and a map that is not constant.

    Source:
        `tune_threshold` in tune_heatmap_threshold.py.
    """
    return best_threshold([threshold_ious(attribution, mask) for attribution, mask in pictures])


def best_threshold(rows: Sequence[Sequence[float]]) -> float:
    """Choose from what `threshold_ious` gave for each validation picture; see `tune_threshold`.

    Raises:
        InputError: At some threshold no picture can be scored.

    Example:
        >>> best_threshold([[0.1, 0.5, 0.5, 0.2, 0.0, 0.0, 0.0]])
        0.3
    """
    means = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(THRESHOLDS)).nanmean(dim=0)
    if means.isnan().any():
        raise InputError(
            f"none of {len(rows)} validation pictures can be scored; it needs one with the pathology and a map "
            "that is not constant; give more validation pictures."
        )
    return THRESHOLDS[int(means.argmax())]


def threshold_ious(
    attribution: Float[Tensor, "map_height map_width"], mask: Bool[Tensor, "height width"]
) -> list[float]:
    """Return `true_positive_iou` of the region above each of `THRESHOLDS`, in one pass over the map.

    Args:
        attribution: Signed scores [logit]; see `enlarge`.
        mask: The ground truth, original-image frame.

    Raises:
        InputError: The map is not finite, or the mask is not boolean.
    """
    check_boolean(mask)
    scaled = unit_scaled(enlarge(attribution, (mask.shape[0], mask.shape[1])))
    if not mask.any():
        return [math.nan] * len(THRESHOLDS)
    # How many thresholds each pixel exceeds; a pixel counts for all up to its own.
    passed = torch.bucketize(scaled, torch.tensor(THRESHOLDS, dtype=scaled.dtype, device=scaled.device))
    predicted, inside = (_exceeding(levels) for levels in (passed.flatten(), passed[mask]))
    union = predicted + int(mask.sum()) - inside
    shares = torch.where(predicted > 0, inside.double() / union, torch.nan)
    return [float(share) for share in shares]


def _exceeding(levels: Int[Tensor, " pixels"]) -> Int[Tensor, " thresholds"]:
    counts = torch.bincount(levels, minlength=len(THRESHOLDS) + 1)
    return counts.flip(0).cumsum(0).flip(0)[1:]


def _read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        images = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"file '{os.fspath(path)}' cannot be read ({type(error).__name__}); it must be one of CheXlocalize's JSON "
            "files; check the path."
        ) from None
    if not isinstance(images, dict) or not all(isinstance(entry, dict) for entry in images.values()):
        raise InputError(
            f"file '{os.fspath(path)}' is no JSON of CheXlocalize; it maps image ids to pathologies; check the path."
        )
    return images


def _check_names(names: Iterable[str], number: int) -> None:
    for name in names:
        if name not in PATHOLOGIES:
            raise InputError(f"picture {number}: {unknown_name('pathology', name, PATHOLOGIES)}")


def _masks_of(entry: Mapping[str, Any], number: int) -> dict[str, EncodedMask]:
    _check_names(entry, number)
    missing = [name for name in PATHOLOGIES if name not in entry]
    if missing:
        raise InputError(
            f"picture {number} has no mask for {', '.join(missing)}; each picture has all ten, an empty one where the "
            "pathology is absent; fetch the file again, or write it with `write_masks`."
        )
    try:
        return {name: EncodedMask(_size(entry[name]["size"]), str(entry[name]["counts"])) for name in PATHOLOGIES}
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"picture {number} holds a mask without size [height, width] and counts; a mask has both; fetch the file "
            "again."
        ) from None


def _completed(entry: Mapping[str, EncodedMask], number: int) -> dict[str, EncodedMask]:
    _check_names(entry, number)
    sizes = {mask.size for mask in entry.values()}
    if len(sizes) != 1:
        raise InputError(
            f"picture {number} has masks of {len(sizes)} sizes; all masks of a picture have its size, and at least one "
            "is needed to know it; give them in the original-image frame."
        )
    empty = encode_mask(torch.zeros(sizes.pop(), dtype=torch.bool))
    return {name: entry.get(name, empty) for name in PATHOLOGIES}


def _drawn(entry: Mapping[str, Any], number: int) -> dict[str, EncodedMask]:
    _check_names((name for name in entry if name != "img_size"), number)
    try:
        size = _size(entry["img_size"])
        return {name: encode_mask(_draw(entry.get(name, []), size)) for name in PATHOLOGIES}
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(
            f"picture {number} holds polygons that cannot be drawn; it has img_size [height, width] and, for each "
            "pathology, lists of two or more [x, y]; fetch the file again."
        ) from None


def _draw(polygons: Any, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    height, width = size
    picture = Image.new("1", (width, height))
    for polygon in polygons:
        ImageDraw.Draw(picture).polygon([(x, y) for x, y in polygon], outline=1, fill=1)
    return torch.from_numpy(np.array(picture))


def _size(values: Any) -> tuple[int, int]:
    height, width = (int(side) for side in values)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} px is no picture.")
    return height, width
