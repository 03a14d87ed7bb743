"""What every metric refuses before it scores: maps that are no maps, and masks that do not fit."""

import torch
from torch import Tensor

from mapstack.errors import InputError


def check_map(values: Tensor, name: str = "attribution") -> None:
    """Refuse what is no finite map.

    Raises:
        InputError: It is not a floating-point (height, width), holds no pixel, or holds NaN or infinity.
    """
    if values.ndim != 2 or values.numel() == 0 or not values.is_floating_point():
        raise InputError(
            f"{name} of shape {tuple(values.shape)} and {values.dtype} is no map; a map is floating-point, (height, "
            "width), with at least one pixel; give one map at a time."
        )
    # One pass: the sum of what holds NaN or infinity is never finite. That of large numbers may not be, either.
    n_wrong = 0 if values.sum().isfinite() else int((~values.isfinite()).sum())
    if n_wrong:
        raise InputError(
            f"{name} of shape {tuple(values.shape)} holds {n_wrong} values that are NaN or infinite; a map is finite "
            "everywhere; find out where they come from."
        )


def check_same_shape(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Refuse two tensors that cannot lie in the same frame.

    Raises:
        InputError: Their shapes differ.
    """
    if first.shape != second.shape:
        raise InputError(
            f"{names[0]} of shape {tuple(first.shape)} does not fit {names[1]} of shape {tuple(second.shape)}; both "
            "must lie in the same frame; bring one to the frame of the other."
        )


def check_boolean(mask: Tensor, name: str = "mask") -> None:
    """Refuse a mask that is not boolean, such as one of 0 and 255.

    Raises:
        InputError: It is not a boolean (height, width).
    """
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise InputError(
            f"{name} of shape {tuple(mask.shape)} and {mask.dtype} is no mask; a mask is boolean, (height, width); "
            "compare it with a number first."
        )


def check_region(attribution: Tensor, mask: Tensor) -> None:
    """Refuse a pair of map and annotated region that cannot be scored.

    Raises:
        InputError: One of them is malformed, their shapes differ, or no pixel of the mask is True.
    """
    check_map(attribution)
    check_boolean(mask)
    check_same_shape(mask, attribution, ("mask", "attribution"))
    check_not_empty(mask)


def check_not_empty(mask: Tensor) -> None:
    """Refuse a mask without a region.

    Raises:
        InputError: No pixel is True.
    """
    if not mask.any():
        raise InputError(
            f"mask of shape {tuple(mask.shape)} has no True pixel; the metric needs an annotated region; leave out "
            "pictures without one."
        )
