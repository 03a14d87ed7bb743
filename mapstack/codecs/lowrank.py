"""The stack of one picture as a product of two small factors, of as few terms as a stated error allows.

The maps of all texts are weighted sums of the stack's rows, and a model with few features makes rows that are nearly
sums of few maps: then `stack = u @ v`, with u [rows, rank] and v [rank, height, width]. The rank is found for each
picture, since nothing bounds it from outside: on random weights it is nearly full.
"""

import torch
from torch import Tensor

from mapstack.codecs.rounding import round_rows, rounding_energies, row_maxima, to_where_doubles_are

_DTYPES = (torch.int8, torch.float16, torch.float32)
# The share of the error (squared) that rounding may take. What int8 takes shows only in its rows, so enough of them are
# looked at for it to take nearly all; float16 changes no value by more than this share of the value.
_INT8_SHARE = 0.9
_FLOAT16_ROUNDING = 2.0**-11
_PIXELS_PER_BLOCK = 4096
_TOO_LARGE = 2.0**127

Parts = dict[str, Tensor]


def encode_within(stack: Tensor, maxima: Tensor, max_error: float) -> Parts:
    """Return the smallest form of a stack whose error is at most the stated one.

    The forms are `u @ (scale * v)` of every rank and `scale * stack`, each with int8, float16 or float32 numbers; the
    last of them is exact.

    Args:
        stack: Finite, float32 [rows, height, width].
        maxima: Its `row_maxima`.
        max_error: Largest root mean square error of a map, over all texts, as a share of the root mean square of the
            maps themselves: `|stack - decoded| / |stack|` in the Frobenius norm. Rounding counts, except that of
            float32.

    Returns:
        `u` [rows, rank], `v` [rank, height, width], and `scale` [rank] unless v is float32; or `stack`, and `scale`
        [rows] unless it is float32. On the device of the stack.
    """
    spectrum = _Spectrum(stack)
    allowed = max_error**2 * spectrum.total
    best = min(_low_rank_forms(stack, maxima, spectrum, max_error), key=_n_bytes, default=None)
    for dtype in (torch.int8, torch.float16):
        if best is not None and _n_bytes(best) <= dtype.itemsize * stack.numel():
            return best
        rounded, scale = round_rows(stack, maxima, dtype)
        if float(rounding_energies(stack, rounded, scale).sum()) <= allowed:
            return _parts("stack", rounded, scale)
    return best or {"stack": stack}


class _Spectrum:
    """The singular values of a stack, squared, and its left singular vectors.

    Attributes:
        total: Sum of the squares of the stack.
        left_out: What of it each rank, from 0, leaves out, on the CPU [rows + 1].
        vectors: The left singular vectors, strongest first [rows, rows].
    """

    def __init__(self, stack: Tensor) -> None:
        rows = to_where_doubles_are(stack.reshape(len(stack), -1))
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
        for start in range(0, rows.shape[1], _PIXELS_PER_BLOCK):
            wide = rows[:, start : start + _PIXELS_PER_BLOCK].double()  # squares would lose float32's digits
            gram.addmm_(wide, wide.T)
        energies, vectors = torch.linalg.eigh(gram)
        energies = energies.clamp_min(0).cpu()  # rounding makes some of the smallest negative
        self.total = float(gram.trace())
        self.left_out = torch.cat([energies.cumsum(0).flip(0), energies.new_zeros(1)])
        self.vectors = vectors.flip(1).float().to(stack.device)

    def least_rank(self, allowed: float) -> int:
        """Return the smallest rank, at least 1, that leaves out no more than what is allowed."""
        return max(1, _first(self.left_out <= allowed))


def _low_rank_forms(stack: Tensor, maxima: Tensor, spectrum: _Spectrum, max_error: float) -> list[Parts]:
    """Return the factors with numbers of each dtype that keep the error and take fewer bytes than its dense stack."""
    # A value of v may be as large as a column of the stack is long.
    if float(maxima.max()) * len(stack) ** 0.5 >= _TOO_LARGE:
        return []
    allowed = max_error**2 * spectrum.total
    reserved = {torch.int8: _INT8_SHARE, torch.float16: (_FLOAT16_ROUNDING / max(max_error, _FLOAT16_ROUNDING)) ** 2}
    ranks = {dtype: spectrum.least_rank(allowed * (1 - reserved.get(dtype, 0.0))) for dtype in _DTYPES}
    paying = {dtype: rank for dtype, rank in ranks.items() if rank <= _largest_rank_that_pays(stack, dtype)}
    if not paying:
        return []
    u = spectrum.vectors[:, : max(paying.values())].contiguous()
    v = (u.T @ stack.reshape(len(stack), -1)).reshape(-1, *stack.shape[1:])
    v_maxima = row_maxima(v)
    forms = []
    for dtype, rank in paying.items():
        rounded, scale = round_rows(v[:rank], v_maxima[:rank], dtype)
        # The columns of u are orthonormal: what is left out and what is rounded away add up.
        rounded_away = rounding_energies(v[:rank], rounded, scale).cumsum(0).cpu()
        is_kept = spectrum.left_out[1 : rank + 1] + rounded_away <= allowed
        if is_kept.any():
            least = _first(is_kept) + 1
            scale = None if scale is None else scale[:least]
            forms.append({"u": u[:, :least].contiguous()} | _parts("v", rounded[:least], scale))
    return forms


def _largest_rank_that_pays(stack: Tensor, dtype: torch.dtype) -> int:
    return (dtype.itemsize * stack.numel() - 1) // (dtype.itemsize * stack[0].numel() + 4 * len(stack) + 4)


def _first(is_true: Tensor) -> int:
    """Return the index of the first True, 0 where there is none."""
    return int(is_true.int().argmax())


def _parts(name: str, rounded: Tensor, scale: Tensor | None) -> Parts:
    return {name: rounded} if scale is None else {name: rounded, "scale": scale}


def _n_bytes(parts: Parts) -> int:
    return sum(part.nbytes for part in parts.values())
