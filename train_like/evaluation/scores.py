"""The numbers that a map gets."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.geometry import reduce_area
from mapstack.metrics.chexlocalize import hit, segment, threshold_ious, true_positive_iou
from mapstack.metrics.faithfulness import Score, completeness_residual, deletion_curve, infidelity, insertion_curve
from mapstack.metrics.localisation import pointing_game_hit, relevance_mass_accuracy, relevance_rank_accuracy
from mapstack.metrics.similarity import mean_off_diagonal, pearson, similarity_matrix, ssim
from train_like.evaluation.cases import Region

POINTING_TOLERANCE_PX = 15
_SSIM_SIDE_PX = 112  # structural similarity on maps of half the side: a quarter of the time
_N_POINTS = 14  # of a deletion or insertion curve
_N_SQUARES = 32  # of infidelity


def pointing(attribution: Float[Tensor, "height width"], region: Region) -> dict[str, float]:
    """Say whether the peak lies in the region: CheXlocalize's hit, and the pointing game with its 15 px."""
    return {
        "hit": hit(attribution, region.mask),
        "pointing": float(pointing_game_hit(attribution, region.mask, POINTING_TOLERANCE_PX)),
    }


def overlap(attribution: Float[Tensor, "height width"], region: Region) -> dict[str, Any]:
    """Return how much of the map lies in the region, and the overlap at each threshold and by Otsu's."""
    size = (region.mask.shape[0], region.mask.shape[1])
    by_otsu = true_positive_iou(segment(attribution, size, None), region.mask)
    return {
        "mass": relevance_mass_accuracy(attribution, region.mask),
        "rank": relevance_rank_accuracy(attribution, region.mask),
        "ious": none_for_nan(threshold_ious(attribution, region.mask)),
        "iou_otsu": none_for_nan([by_otsu])[0],
    }


def none_for_nan(values: Sequence[float]) -> list[float | None]:
    """Write values as JSON can carry them."""
    return [None if value != value else round(value, 6) for value in values]


def likeness(maps: Float[Tensor, "n_prompts height width"]) -> list[list[float]]:
    """Return the correlation of each pair of maps."""
    return [[round(value, 4) for value in row] for row in similarity_matrix(maps, pearson).tolist()]


def mean_ssim(maps: Float[Tensor, "n_prompts height width"]) -> float:
    """Return the mean structural similarity between the maps of different texts."""
    return mean_off_diagonal(similarity_matrix(_reduced(maps), ssim))


def map_ssim(first: Float[Tensor, "height width"], second: Float[Tensor, "height width"]) -> float:
    """Return the structural similarity of two maps, each scaled to a largest absolute value of 1."""
    return ssim(*_reduced(torch.stack([first / first.abs().max(), second / second.abs().max()])))


def faithfulness(
    score: Score,
    pixel_values: Float[Tensor, "channels height width"],
    baseline: Float[Tensor, "channels height width"],
    attribution: Float[Tensor, "height width"],
    *,
    sha256: str,
    multiply_by_inputs: bool,
    difference: float | None,
) -> dict[str, Any]:
    """Score a map by what the model does when its pixels go or come."""
    deleted = deletion_curve(score, pixel_values, baseline, attribution, n_steps=_N_POINTS)
    inserted = insertion_curve(score, pixel_values, baseline, attribution, n_steps=_N_POINTS)
    found = {
        "deletion": deleted.auc,
        "insertion": inserted.auc,
        "deletion_curve": [round(value, 4) for value in deleted.logits.tolist()],
        "insertion_curve": [round(value, 4) for value in inserted.logits.tolist()],
        "infidelity": infidelity(
            score,
            pixel_values,
            baseline,
            attribution,
            sha256=sha256,
            multiply_by_inputs=multiply_by_inputs,
            normalize=True,
            n_perturb_samples=_N_SQUARES,
        ),
    }
    if difference is not None:
        found["completeness"] = completeness_residual(attribution, difference)
    return found


def logit_of(embed: Callable[[Tensor], Tensor], direction: Float[Tensor, " embed_dim"]) -> Score:
    """Return the function from pictures to the logit of one direction.

    It remembers what it answered: infidelity disturbs a picture in the same way for every map of it, and is half the
    cost of a picture otherwise.
    """
    known: dict[bytes, Tensor] = {}

    def score(pixel_values: Tensor) -> Tensor:
        digest = hashlib.blake2b(pixel_values.detach().cpu().numpy().tobytes()).digest()
        if digest not in known:
            with torch.no_grad():
                known[digest] = torch.nn.functional.normalize(embed(pixel_values)) @ direction
        return known[digest]

    return score


def _reduced(maps: Float[Tensor, "n height width"]) -> Float[Tensor, "n side side"]:
    side = maps.shape[-1]
    return reduce_area(maps, _SSIM_SIDE_PX if side % _SSIM_SIDE_PX == 0 else side)
