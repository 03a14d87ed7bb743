"""Maps that look at no model, which every method is compared with."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.metrics.reference_maps import centre_prior, mean_mask, random_map, sobel_edges
from train_like.evaluation.cases import Case

REFERENCES = ("random", "centre prior", "Sobel edges", "mean mask of the label")
"""Methods that look at no model."""

_MASK_SIDE_PX = 224


def reference_maps(
    case: Case, label: str, mean_masks: Mapping[str, Float[Tensor, "height width"]], seed: int
) -> dict[str, Float[Tensor, "height width"]]:
    """Return the maps that look at no model, original-image frame; no mean mask for a label that has none."""
    height, width = case.picture.size
    maps = {
        "random": random_map(height, width, sha256=case.prepared.sha256, seed=seed),
        "centre prior": centre_prior(height, width),
        "Sobel edges": sobel_edges(case.brightness),
    }
    if label in mean_masks:
        resized = torch.nn.functional.interpolate(mean_masks[label][None, None], (height, width), mode="bilinear")
        maps["mean mask of the label"] = resized[0, 0]
    return maps


def frame_references(case: Case, seed: int) -> dict[str, Float[Tensor, "height width"]]:
    """Return the reference maps that need no label, model-input frame."""
    brightness = frame_brightness(case)
    height, width = brightness.shape
    return {
        "random": random_map(height, width, sha256=case.prepared.sha256, seed=seed),
        "centre prior": centre_prior(height, width),
        "Sobel edges": sobel_edges(brightness),
    }


def mean_masks_of(cases: Iterable[Case]) -> dict[str, Float[Tensor, "height width"]]:
    """Return the mean mask of each label; pictures of all shapes are brought to one square."""
    masks: dict[str, list[Bool[Tensor, "height width"]]] = {}
    for case in cases:
        for region in case.regions:
            side = (_MASK_SIDE_PX, _MASK_SIDE_PX)
            resized = torch.nn.functional.interpolate(region.mask[None, None].float(), side, mode="nearest-exact")
            masks.setdefault(region.label, []).append(resized[0, 0] > 0)
    return {label: mean_mask(each) for label, each in masks.items()}


def frame_brightness(case: Case) -> Float[Tensor, "height width"]:
    """Return the grey values [0, 1] of the model-input frame."""
    values = case.prepared.pixel_values.mean(dim=0)
    return (values - values.min()) / (values.max() - values.min())
