"""Rounding the rows of a stack to fewer bits, and back.

Attributions may be as small as 1e-9, where float16 has no digits left: hence a scale for each row.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_SMALLEST = torch.finfo(torch.float32).tiny
_INT8_MAX = 127
# The largest value of a row comes to lie in [2^14, 2^15): below the 65504 of float16, also after rounding.
_FLOAT16_EXPONENT = 15
_FLOAT32_BIAS, _FLOAT32_DIGITS = 127, 23
_ROWS_AT_ONCE = 16  # what is between two passes stays in the cache of a CPU
_NUMBERS_AT_ONCE = 2**20  # so do these, made float32


def row_maxima(stack: Tensor) -> Tensor:
    """Return the largest absolute value of each row [rows]; NaN where a row holds one."""
    rows = stack.reshape(len(stack), -1)
    # Neither a copy as |rows| would be, nor aminmax, which takes two and a half times as long.
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))


def round_rows(stack: Tensor, maxima: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Round a stack row by row.

    Args:
        stack: Finite, float32 [rows, height, width].
        maxima: Its `row_maxima`.
        dtype: float32, which keeps it as it is; float16, with a power of two as scale, so that the scaling itself
            rounds nothing; or int8, symmetric about zero, so that a pixel without attribution stays without.

    Returns:
        The rounded rows and their scales [rows], None for float32: the stack is `scale * rounded`, row by row.
    """
    if dtype == torch.float32:
        return stack, None
    scale = _power_of_two_above(maxima) if dtype == torch.float16 else maxima / _INT8_MAX
    scale = torch.where(maxima > 0, scale.clamp_min(_SMALLEST), torch.ones_like(maxima))
    rounded = torch.empty_like(stack, dtype=dtype)
    for rows in _row_blocks(stack):
        scaled = stack[rows] / scale[rows, None, None]
        rounded[rows] = scaled.round_() if dtype == torch.int8 else scaled
    return rounded, scale


def _power_of_two_above(maxima: Tensor) -> Tensor:
    # Put together from its bits: a power computed in floating point may be one digit off.
    exponents = torch.frexp(maxima).exponent - _FLOAT16_EXPONENT
    return ((exponents.clamp_min(1 - _FLOAT32_BIAS) + _FLOAT32_BIAS) << _FLOAT32_DIGITS).view(torch.float32)


def require_rows(rounded: Tensor, scale: Tensor | None) -> None:
    """Refuse what `round_rows` does not give.

    Raises:
        ValueError: It is something else.
    """
    if rounded.ndim != 3 or rounded.dtype not in (torch.float32, torch.float16, torch.int8):
        raise ValueError(f"rows of shape {tuple(rounded.shape)} and dtype {rounded.dtype}")
    if (scale is None) != (rounded.dtype == torch.float32):
        raise ValueError(f"{rounded.dtype} rows {'without' if scale is None else 'with'} a scale")
    if scale is not None and (scale.dtype != torch.float32 or scale.shape != rounded.shape[:1]):
        raise ValueError(f"a scale of shape {tuple(scale.shape)} and dtype {scale.dtype} for {len(rounded)} rows")


def weighted_sums(weights: Tensor, rows: Tensor) -> Tensor:
    """Return the sums of rows [batch, rows, height, width] with weights [batch, sums, rows], float32.

    Rounded rows become float32 a block of pixels at a time: a copy of the whole stack would not fit the cache, and
    take six times as long as the sum of one text.
    """
    if rows.dtype == weights.dtype:
        return torch.einsum("bnr,brhw->bnhw", weights, rows)
    pixels = rows.flatten(2)
    sums = weights.new_empty(*weights.shape[:2], pixels.shape[2])
    n_at_once = max(1, _NUMBERS_AT_ONCE // (len(rows) * rows.shape[1]))
    for start in range(0, pixels.shape[2], n_at_once):
        block = slice(start, start + n_at_once)
        sums[..., block] = weights @ pixels[..., block].to(weights.dtype)
    return sums.reshape(*weights.shape[:2], *rows.shape[2:])


def rounding_energies(stack: Tensor, rounded: Tensor, scale: Tensor | None) -> Tensor:
    """Return for each row the sum of the squares of what rounding has changed, float64 [rows]."""
    energies = to_where_doubles_are(torch.zeros(len(stack), device=stack.device)).double()
    if scale is None:
        return energies
    for rows in _row_blocks(stack):
        lost = to_where_doubles_are(stack[rows] - rounded[rows] * scale[rows, None, None])
        energies[rows] = lost.double().square_().sum(dim=(-2, -1))  # squares leave float32's range
    return energies


def to_where_doubles_are(values: Tensor) -> Tensor:
    """Return a tensor where it can be made float64: on its own device, or on the CPU where that is Apple's GPU."""
    return values.cpu() if values.device.type == "mps" else values


def _row_blocks(stack: Tensor) -> Iterator[slice]:
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(stack), _ROWS_AT_ONCE))
