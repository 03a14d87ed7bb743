"""Rounding the rows of a stack to fewer bits, and back.

Attributions may be as small as 1e-9, where float16 has no digits left: hence a scale for each row.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SMALLEST = float(np.finfo(np.float32).tiny)
_INT8_MAX = 127
# The largest value of a row comes to lie in [2^14, 2^15): below the 65504 of float16, also after rounding.
_FLOAT16_EXPONENT = 15


def row_maxima(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest absolute value of each row."""
    rows = stack.reshape(len(stack), -1)
    maxima: NDArray[np.float32] = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # no copy as |rows| would be
    return maxima


def round_rows(stack: NDArray[np.float32], dtype: DTypeLike) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Round a stack row by row.

    Args:
        stack: Finite, [rows, height, width].
        dtype: float32, which keeps it as it is; float16, with a power of two as scale, so that the scaling itself
            rounds nothing; or int8, symmetric about zero, so that a pixel without attribution stays without.

    Returns:
        The rounded rows and their scales [rows], None for float32: the stack is `scale * rounded`, row by row.
    """
    dtype = np.dtype(dtype)
    if dtype == np.float32:
        return stack, None
    maxima = row_maxima(stack)
    if dtype == np.float16:
        scale = np.ldexp(np.float32(1), np.frexp(maxima)[1] - _FLOAT16_EXPONENT)
    else:
        scale = maxima / np.float32(_INT8_MAX)
    scale = np.where(maxima > 0, np.maximum(scale, np.float32(_SMALLEST)), 1).astype(np.float32)
    rounded = np.empty(stack.shape, dtype)
    row_scaled = np.empty(stack.shape[1:], np.float32)  # one row stays in the cache: three times as fast
    for index, row in enumerate(stack):
        np.divide(row, scale[index], out=row_scaled)
        if dtype == np.int8:
            np.rint(row_scaled, out=row_scaled)
        rounded[index] = row_scaled
    return rounded, scale


def restore_rows(rounded: NDArray[Any], scale: NDArray[Any] | None) -> NDArray[np.float32]:
    """Return the float32 stack of what `round_rows` gave.

    Raises:
        ValueError: That is not what it gives.
    """
    if rounded.ndim != 3 or rounded.dtype not in (np.float32, np.float16, np.int8):
        raise ValueError(f"rows of shape {rounded.shape} and dtype {rounded.dtype}")
    if (scale is None) != (rounded.dtype == np.float32):
        raise ValueError(f"{rounded.dtype} rows {'without' if scale is None else 'with'} a scale")
    if scale is None:
        return rounded
    if scale.dtype != np.float32 or scale.shape != rounded.shape[:1]:
        raise ValueError(f"a scale of shape {scale.shape} and dtype {scale.dtype} for {len(rounded)} rows")
    stack = np.empty(rounded.shape, np.float32)
    for index, row in enumerate(rounded):
        np.multiply(row, scale[index], out=stack[index])
    return stack


def rounding_energies(
    stack: NDArray[np.float32], rounded: NDArray[Any], scale: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Return for each row the sum of the squares of what rounding has changed [rows]."""
    energies = np.zeros(len(stack))
    if scale is None:
        return energies
    for index, row in enumerate(stack):
        lost = (row - rounded[index] * scale[index]).astype(np.float64).ravel()  # squares leave float32's range
        energies[index] = np.dot(lost, lost)
    return energies
