"""Maps that look at no model: what every method has to beat.

A method whose numbers do not exceed theirs has shown nothing.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.checks import check_boolean, check_map, check_same_shape
from mapstack.randomness import generator

_SPREAD = 0.25


def random_map(height: int, width: int, *, sha256: str, seed: int = 0) -> Float[Tensor, "height width"]:
    """Draw every pixel from a normal distribution: what chance scores.

    Args:
        height: Of the frame [px].
        width: Of the frame [px].
        sha256: Of the picture's bytes, so that the same picture gets the same map.
        seed: Of the run.
    """
    return torch.randn(height, width, generator=generator(seed, sha256, "reference/random"))


def centre_prior(height: int, width: int) -> Float[Tensor, "height width"]:
    """Return a Gaussian around the centre of the frame, of a quarter of its sides: what knowing the framing scores.

    Args:
        height: Of the frame [px].
        width: Of the frame [px].

    Returns:
        Scores in (0, 1], the greatest at the centre.

    Source:
        Judd, Durand, Torralba, "A benchmark of computational models of saliency to predict human fixations", MIT
        2012, whose best simple model is a centred Gaussian stretched to the frame.

    Example:
        >>> prior = centre_prior(3, 5)
        >>> divmod(prior.argmax().item(), 5)
        (1, 2)
    """
    by_row, by_column = (_gaussian(n_pixels) for n_pixels in (height, width))
    return by_row[:, None] * by_column[None, :]


def sobel_edges(picture: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """Return the strength of the picture's own edges: what drawing its outlines scores.

    Args:
        picture: Brightness [0, 1], any frame; it is repeated beyond its borders, which are thus no edges.

    Returns:
        The length of the brightness gradient, 0 or more; same frame.

    Raises:
        InputError: The picture is not finite.

    Source:
        Sobel's 3 x 3 operator (1968), divided by 8, so that a ramp of one a pixel gets 1. Adebayo et al., "Sanity
        checks for saliency maps", NeurIPS 2018, show how well an edge detector passes for an explanation.

    Example:
        >>> step = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(4, 1)
        >>> sobel_edges(step)[0].tolist()
        [0.0, 0.5, 0.5, 0.0]
    """
    check_map(picture, "picture")
    framed = torch.nn.functional.pad(picture[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    # Differences first, so that where the picture is flat they are exactly zero.
    across, down = framed[:, 2:] - framed[:, :-2], framed[2:] - framed[:-2]
    across = across[:-2] + 2 * across[1:-1] + across[2:]
    down = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    return torch.hypot(across, down) / 8


def mean_mask(masks: Iterable[Bool[Tensor, "height width"]]) -> Float[Tensor, "height width"]:
    """Return how often each pixel lies inside the finding: what knowing the label alone scores.

    Args:
        masks: Of one label on training or validation pictures, never on those that are scored; all in one frame.
            They are taken one by one, so that they need not all be in memory.

    Returns:
        Shares in [0, 1].

    Raises:
        InputError: There is no mask, one is not boolean, or their shapes differ.

    Example:
        >>> mean_mask([torch.tensor([[True, False]]), torch.tensor([[True, True]])]).tolist()
        [[1.0, 0.5]]
    """
    total: Tensor | None = None
    n_masks = 0
    for mask in masks:
        check_boolean(mask)
        if total is None:
            total = torch.zeros(mask.shape, device=mask.device)
        check_same_shape(mask, total, ("mask", "the masks before it"))
        total += mask
        n_masks += 1
    if total is None:
        raise InputError(
            "0 masks were given; a mean needs at least one; leave out labels that the split does not hold."
        )
    return total / n_masks


def _gaussian(n_pixels: int) -> Float[Tensor, " n_pixels"]:
    centres = (torch.arange(n_pixels) + 0.5) / n_pixels - 0.5
    return torch.exp(-(centres**2) / (2 * _SPREAD**2))
