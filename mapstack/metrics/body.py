"""How much of a map lies where there is no patient."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.checks import check_region


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
