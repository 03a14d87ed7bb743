"""Does the map point at the annotated region: the pointing game, relevance mass and rank, overlap."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.checks import check_boolean, check_not_empty, check_region, check_same_shape
from mapstack.metrics.segmentation import above


def pointing_game_hit(
    attribution: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"], tolerance_px: int = 0
) -> bool:
    """Say whether the strongest pixel lies inside the annotated region.

    The hit rate of a method, in [0, 1], higher is better, is the share of hits. Of several maxima the first in
    row-major order counts.

    Args:
        attribution: Signed scores [logit], any frame.
        mask: True inside the region, same frame.
        tolerance_px: How far outside the region still counts, from pixel centre to pixel centre [px].

    Raises:
        InputError: No pixel of the mask is True, the shapes differ, the map is not finite, or the tolerance is
            negative.

    Source:
        Zhang et al., "Top-down neural attention by excitation backprop", IJCV 2018, who allow 15 px. Deviation: none
        is allowed by default, since a nodule is smaller than that.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [-2.0, 0.0]])
        >>> pointing_game_hit(scores, mask=scores > 0.5)
        True
        >>> pointing_game_hit(scores, mask=scores < 0)  # the sign matters
        False
        >>> pointing_game_hit(scores, mask=scores < 0, tolerance_px=2)
        True
    """
    check_region(attribution, mask)
    if tolerance_px < 0:
        raise InputError(f"tolerance_px is {tolerance_px}; a distance is 0 or more; give 0 or 15 px.")
    row, column = divmod(int(torch.argmax(attribution)), attribution.shape[1])
    if tolerance_px == 0:
        return bool(mask[row, column])
    rows, columns = mask.nonzero(as_tuple=True)
    squared = (rows - row) ** 2 + (columns - column) ** 2
    return int(squared.min()) <= tolerance_px**2


def relevance_mass_accuracy(attribution: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """Return the share of the positive attribution that lies inside the annotated region.

    In [0, 1], higher is better; a flat positive map gets the region's share of the frame. Negative scores count as
    zero; a map without a positive score has no mass anywhere and gets 0.

    Args:
        attribution: Signed scores [logit], any frame.
        mask: True inside the region, same frame.

    Raises:
        InputError: No pixel of the mask is True, the shapes differ, or the map is not finite.

    Source:
        Arras, Osman, Samek, "CLEVR-XAI: a benchmark dataset for the ground truth evaluation of neural network
        explanations", Information Fusion 2022; of the poolings over channels that they compare, the positive part of
        the sum.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0], [-5.0, 0.0]])
        >>> relevance_mass_accuracy(scores, mask=scores == 3)
        0.75
        >>> relevance_mass_accuracy(scores, mask=scores < 0)
        0.0
    """
    check_region(attribution, mask)
    positive = attribution.clamp(min=0).double()
    total = positive.sum()
    return float(positive[mask].sum() / total) if total > 0 else 0.0


def relevance_rank_accuracy(attribution: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """Return the share of the K strongest pixels inside the annotated region, K being the size of the region.

    In [0, 1], higher is better; chance, and a flat map, get the region's share of the frame. The positive part is
    ranked: all scores of zero or less are equal. Where equal scores straddle rank K, each fills the places that are
    left by the same share, so that no corner of the frame is favoured.

    Args:
        attribution: Signed scores [logit], any frame.
        mask: True inside the region, same frame.

    Raises:
        InputError: No pixel of the mask is True, the shapes differ, or the map is not finite.

    Source:
        Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 2022, on the positive part. Deviation: the shares of equal
        scores, where sorting would leave them to chance.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5], [0.7, -2.0]])
        >>> relevance_rank_accuracy(scores, mask=torch.tensor([[True, True], [False, False]]))
        0.5
        >>> relevance_rank_accuracy(scores, mask=scores < 0)
        0.0
    """
    check_region(attribution, mask)
    positive = attribution.clamp(min=0)
    n_wanted = int(mask.sum())
    cut = positive.flatten().topk(n_wanted).values[-1]
    stronger, equal = positive > cut, positive == cut
    share = (n_wanted - int(stronger.sum())) / int(equal.sum())
    return (int((stronger & mask).sum()) + share * int((equal & mask).sum())) / n_wanted


def iou(predicted: Bool[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """Return the intersection of two regions over their union.

    In [0, 1], higher is better. An empty prediction gets 0.

    Args:
        predicted: True where the finding is said to be, any frame.
        mask: True inside the annotated region, same frame.

    Raises:
        InputError: No pixel of the mask is True, the shapes differ, or one is not boolean.

    Source:
        Jaccard, "The distribution of the flora in the alpine zone", New Phytologist 1912.

    Example:
        >>> iou(torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]]))
        0.3333333333333333
    """
    check_boolean(predicted, "predicted")
    check_boolean(mask)
    check_same_shape(predicted, mask, ("predicted", "mask"))
    check_not_empty(mask)
    return int((predicted & mask).sum()) / int((predicted | mask).sum())


def iou_at_threshold(
    attribution: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"], threshold: float
) -> float:
    """Return the overlap of the annotated region with the pixels above a threshold.

    In [0, 1], higher is better.

    Args:
        attribution: Signed scores [logit], any frame.
        mask: True inside the region, same frame.
        threshold: In [0, 1] between the map's own minimum and maximum; a pixel must exceed it.

    Raises:
        InputError: No pixel of the mask is True, the shapes differ, the map is not finite, or the threshold is out of
            range.

    Source:
        Saporta et al., "Benchmarking saliency methods for chest X-ray interpretation", Nature Machine Intelligence
        2022, for the scaling.

    Example:
        >>> scores = torch.tensor([[0.0, 4.0], [3.0, 1.0]])
        >>> iou_at_threshold(scores, mask=scores > 2, threshold=0.5)
        1.0
        >>> iou_at_threshold(-scores, mask=scores > 2, threshold=0.5)  # the sign matters
        0.0
    """
    check_region(attribution, mask)
    return iou(above(attribution, threshold), mask)
