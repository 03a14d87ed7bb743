"""One map from those of several methods."""

import torch
from jaxtyping import Float
from torch import Tensor


def aggregate(maps: Float[Tensor, "n_maps *batch height width"]) -> Float[Tensor, "*batch height width"]:
    """Return the mean of what several maps say for a text, each as shares of its sum.

    Methods are blind in different places: integrated gradients from black give a black pixel nothing, and windows of
    occlusion lie beside a thin line as often as on it. What speaks against the text is left out (as in Grad-CAM), and
    each map has the same say, whatever its unit.

    Args:
        maps: Signed maps of one text by different methods. One that is nowhere positive has no say.

    Returns:
        Shares per pixel, at least 0: a score for where, not a part of the logit.

    Source:
        Rieger, Hansen, "Aggregating explanation methods for stable and robust explainability", 2019 (AGG-Mean).
    """
    positive = maps.clamp(min=0)
    sums = positive.sum(dim=(-2, -1), keepdim=True)
    return (positive / sums.clamp(min=torch.finfo(sums.dtype).tiny)).mean(dim=0)
