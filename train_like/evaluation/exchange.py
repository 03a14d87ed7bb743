"""CheXlocalize's files: the ground truth that was used, and the regions that the best setting's maps predict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapstack.metrics.chexlocalize import MIMIC_LABELS, write_masks
from mapstack.metrics.rle import EncodedMask, encode_mask
from train_like.evaluation.cases import Cases

_PATHOLOGY = {label: name for name, label in MIMIC_LABELS.items()}


def write_exchange(test: Cases, localised: Mapping[str, Any], folder: Path) -> None:
    """Write gt_segmentations.json and pred_segmentations.json for the test pictures with a finding of CheXlocalize's.

    A pathology that a picture does not have is empty in both: the benchmark scores those that it has.
    """
    truth: dict[str, dict[str, EncodedMask]] = {}
    predicted: dict[str, dict[str, EncodedMask]] = {}
    for case in test:
        masks = {
            _PATHOLOGY[region.label]: encode_mask(region.mask) for region in case.regions if region.label in _PATHOLOGY
        }
        if masks:
            truth[case.key] = masks
            regions = localised[case.key]["predicted"]
            predicted[case.key] = {
                name: EncodedMask(masks[name].size, regions[label])
                for label, name in _PATHOLOGY.items()
                if name in masks and label in regions
            } or {name: encode_mask(case.brightness < 0) for name in masks}
    folder.mkdir(exist_ok=True)
    write_masks(folder / "gt_segmentations.json", truth)
    write_masks(folder / "pred_segmentations.json", predicted)
