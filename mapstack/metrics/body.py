"""How much of a map lies where there is no patient."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.checks import check_region
from mapstack.metrics.segmentation import otsu_mask


def share_outside_body(attribution: Float[Tensor, "height width"], body: Bool[Tensor, "height width"]) -> float:
    """Return the share of the absolute attribution that lies outside the body.

    In [0, 1], lower is better: nothing outside the body is a finding. A flat map gets the background's share of the
    frame.

    Args:
        attribution: Signed scores [logit], any frame.
        body: True on the patient, same frame.

    Raises:
        InputError: No pixel of the body is True, the shapes differ, or the map is not finite or zero everywhere.

    Source:
        The complement of relevance mass (Arras et al., "CLEVR-XAI", Information Fusion 2022) with the absolute value,
        since a score against the finding is as wrong there as one for it.

    Example:
        >>> scores = torch.tensor([[3.0, -1.0]])
        >>> share_outside_body(scores, body=scores > 0)
        0.25
    """
    check_region(attribution, body)
    strength = torch.abs(attribution.double())
    total = strength.sum()
    if total == 0:
        raise InputError(
            f"attribution of shape {tuple(attribution.shape)} is zero everywhere; a share needs something to divide; "
            "leave out empty maps."
        )
    return float(strength[~body].sum() / total)


def body_mask(picture: Float[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Tell the patient from the air around: what is brighter than Otsu's threshold, with all that it encloses.

    The lungs are as dark as the air, but chest wall, shoulders and abdomen enclose them. It is a rough outline, good
    enough to tell attribution that lies beside the patient; on a film cropped inside the chest everything is patient.

    Args:
        picture: Brightness [0, 1], any frame, air black.

    Raises:
        InputError: The picture is not finite.

    Example:
        >>> trunk = torch.zeros(6, 8)
        >>> trunk[1:, 2:6] = 0.8
        >>> trunk[3, 4] = 0.1  # a lung
        >>> body_mask(trunk)[3].int().tolist()
        [0, 0, 1, 1, 1, 1, 0, 0]
    """
    return otsu_mask(picture)
