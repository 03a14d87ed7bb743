"""The stack of one picture as a product of two small factors, of as few terms as a stated error allows.

The maps of all texts are weighted sums of the stack's rows, and a model with few features makes rows that are nearly
sums of few maps: then `stack = u @ v`, with u [rows, rank] and v [rank, height, width]. The rank is found for each
picture, since nothing bounds it from outside: on random weights it is nearly full.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapstack.store.rounding import round_rows, rounding_energies, row_maxima

_DTYPES = (np.int8, np.float16, np.float32)
# The share of the error (squared) that rounding may take. What int8 takes shows only in its rows, so enough of them are
# looked at for it to take nearly all; float16 changes no value by more than this share of the value.
_INT8_SHARE = 0.9
_FLOAT16_ROUNDING = 2.0**-11
_PIXELS_PER_BLOCK = 4096
_TOO_LARGE = 2.0**127

Arrays = dict[str, NDArray[Any]]


def encode_within(stack: NDArray[np.float32], max_error: float) -> Arrays:
    """Return the smallest form of a stack whose error is at most the stated one.

    The forms are `u @ (scale * v)` of every rank and `scale * stack`, each with int8, float16 or float32 numbers; the
    last of them is exact.

    Args:
        stack: Finite, [rows, height, width].
        max_error: Largest root mean square error of a map, over all texts, as a share of the root mean square of the
            maps themselves: `|stack - decoded| / |stack|` in the Frobenius norm. Rounding counts, except that of
            float32.

    Returns:
        `u` [rows, rank], `v` [rank, height, width], and `scale` [rank] unless v is float32; or `stack`, and `scale`
        [rows] unless it is float32.
    """
    spectrum = _Spectrum(stack)
    allowed = max_error**2 * spectrum.total
    best = min(_low_rank_forms(stack, spectrum, max_error), key=_n_bytes, default=None)
    for dtype in (np.int8, np.float16):
        if best is not None and _n_bytes(best) <= np.dtype(dtype).itemsize * stack.size:
            return best
        rounded, scale = round_rows(stack, dtype)
        if rounding_energies(stack, rounded, scale).sum() <= allowed:
            return _arrays("stack", rounded, scale)
    return best or {"stack": stack}


class _Spectrum:
    """The singular values of a stack, squared, and its left singular vectors.

    Attributes:
        total: Sum of the squares of the stack.
        left_out: What of it each rank, from 0, leaves out [rows + 1].
        vectors: The left singular vectors, strongest first [rows, rows].
    """

    def __init__(self, stack: NDArray[np.float32]) -> None:
        rows = stack.reshape(len(stack), -1)
        gram = np.zeros((len(rows), len(rows)))
        for start in range(0, rows.shape[1], _PIXELS_PER_BLOCK):
            block = rows[:, start : start + _PIXELS_PER_BLOCK].astype(np.float64)  # squares would lose float32's digits
            gram += block @ block.T
        energies, vectors = np.linalg.eigh(gram)
        energies = np.maximum(energies, 0)  # rounding makes some of the smallest negative
        self.total = float(np.trace(gram))
        self.left_out = np.append(np.cumsum(energies)[::-1], 0.0)
        self.vectors = vectors[:, ::-1].astype(np.float32)

    def least_rank(self, allowed: float) -> int:
        """Return the smallest rank, at least 1, that leaves out no more than what is allowed."""
        return max(1, int(np.argmax(self.left_out <= allowed)))


def _low_rank_forms(stack: NDArray[np.float32], spectrum: _Spectrum, max_error: float) -> list[Arrays]:
    """Return the factors with numbers of each dtype that keep the error and take fewer bytes than its dense stack."""
    # A value of v may be as large as a column of the stack is long.
    if float(row_maxima(stack).max()) * len(stack) ** 0.5 >= _TOO_LARGE:
        return []
    allowed = max_error**2 * spectrum.total
    reserved = {np.int8: _INT8_SHARE, np.float16: (_FLOAT16_ROUNDING / max(max_error, _FLOAT16_ROUNDING)) ** 2}
    ranks = {dtype: spectrum.least_rank(allowed * (1 - reserved.get(dtype, 0.0))) for dtype in _DTYPES}
    paying = {dtype: rank for dtype, rank in ranks.items() if rank <= _largest_rank_that_pays(stack, dtype)}
    u = np.ascontiguousarray(spectrum.vectors[:, : max(paying.values(), default=0)])
    v = (u.T @ stack.reshape(len(stack), -1)).reshape(-1, *stack.shape[1:])
    forms = []
    for dtype, rank in paying.items():
        rounded, scale = round_rows(v[:rank], dtype)
        # The columns of u are orthonormal: what is left out and what is rounded away add up.
        lost = spectrum.left_out[1 : rank + 1] + np.cumsum(rounding_energies(v[:rank], rounded, scale))
        if (lost <= allowed).any():
            least = int(np.argmax(lost <= allowed)) + 1
            rounded, scale = rounded[:least], None if scale is None else scale[:least]
            forms.append({"u": np.ascontiguousarray(u[:, :least])} | _arrays("v", rounded, scale))
    return forms


def _largest_rank_that_pays(stack: NDArray[np.float32], dtype: type[np.generic]) -> int:
    itemsize = np.dtype(dtype).itemsize
    return (itemsize * stack.size - 1) // (itemsize * stack[0].size + 4 * len(stack) + 4)


def _arrays(name: str, rounded: NDArray[Any], scale: NDArray[np.float32] | None) -> Arrays:
    return {name: rounded} if scale is None else {name: rounded, "scale": scale}


def _n_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
