"""How a dense stack is turned into the arrays of a record, and back.

The arrays of a record say by their names and dtypes how they are decoded; a store of one codec may hold several forms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mapstack.codecs.lowrank import encode_within
from mapstack.codecs.rounding import require_rows, round_rows, row_maxima
from mapstack.errors import InputError, StoreError, unknown_name
from mapstack.store.compression import COMPRESSIONS

Arrays = dict[str, NDArray[Any]]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
CODECS = (*_DTYPES, "lowrank")
_PARTS = ("stack", "u", "v", "scale")
_TOO_LARGE = 2.0**127  # rounding up something larger could decode to infinity


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a store keeps its stacks.

    Attributes:
        codec: `float32` (exact), `float16` (about 3 decimal digits of each value, for values down to 1e-8 of the
            largest of their row), `int8` (to 1/254 of the largest value of the row), or `lowrank`, the smallest form
            of each stack, of few terms or dense, whose error is at most `max_error`.
        max_error: For `lowrank`, the largest root mean square error of a map, over all texts, as a share of the root
            mean square of the maps, in [0, 1).
        compress: `none`, or `zstd` for every array of a record, which is the store's part: see `StoreWriter`.

    Raises:
        InputError: A name is unknown, or the error is out of range.
    """

    codec: str = "lowrank"
    max_error: float = 0.01
    compress: str = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for key, value, choices in (("codec", self.codec, CODECS), ("compress", self.compress, COMPRESSIONS)):
            if value not in choices:
                raise InputError(unknown_name(key, value, choices))
        if not 0 <= self.max_error < 1:
            raise InputError(f"max_error is {self.max_error}; it is a share of the maps, in [0, 1); correct it.")

    def describe(self) -> dict[str, Any]:
        """Return what decides the bytes of a record, for the identity of a store."""
        error = {"max_error": self.max_error} if self.codec == "lowrank" else {}
        return {"codec": self.codec, "compress": self.compress, **error}

    def encode(self, stack: Tensor) -> Arrays:
        """Turn a stack into the arrays of a record, on the device where it lies.

        Args:
            stack: Attributions [rows, height, width], float32.

        Returns:
            `stack`, and unless that is float32 `scale` [rows]: the stack is `scale * stack`, row by row. Or `u`
            [rows, rank], `v` [rank, height, width], and unless that is float32 `scale` [rank]: the stack is
            `u @ (scale * v)`.

        Raises:
            InputError: The stack has another shape or dtype, or holds NaN, infinity or a value beyond 1.7e38.
        """
        if stack.ndim != 3 or stack.dtype != torch.float32 or stack.numel() == 0:
            raise InputError(
                f"a stack of shape {tuple(stack.shape)} and dtype {stack.dtype} cannot be encoded; a stack is float32 "
                "[rows, height, width], none of them 0; convert it."
            )
        maxima = row_maxima(stack)
        if not (maxima < _TOO_LARGE).all():  # false for NaN
            raise InputError(
                f"a stack of shape {tuple(stack.shape)} holds NaN, infinity or a value beyond 1.7e38; none is ever "
                "stored; record the sample as failed."
            )
        with torch.autocast(stack.device.type, enabled=False):  # the job's precision is the model's, not this sum's
            parts = self._encode(stack, maxima)
        return {name: part.cpu().numpy() for name, part in parts.items()}

    def _encode(self, stack: Tensor, maxima: Tensor) -> dict[str, Tensor]:
        if self.codec == "lowrank":
            return encode_within(stack, maxima, self.max_error)
        rounded, scale = round_rows(stack, maxima, _DTYPES[self.codec])
        return {"stack": rounded} if scale is None else {"stack": rounded, "scale": scale}


def decode_factors(arrays: Mapping[str, NDArray[Any]]) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Read the arrays of a record without multiplying them out, and without a copy.

    Returns:
        `u` [rows, rank], or None where the stack is dense; the maps that it mixes [rank, height, width], or the rows of
        the stack, as they are kept; and what each of these is multiplied by, None for 1. On the CPU.

    Raises:
        StoreError: The arrays are not those of a stack.
    """
    try:
        parts = {name: torch.from_numpy(arrays[name]) for name in _PARTS if name in arrays}
        u, scale = parts.get("u"), parts.get("scale")
        rounded = parts["stack" if u is None else "v"]
        require_rows(rounded, scale)
        if u is not None and (u.dtype != torch.float32 or u.shape[1:] != rounded.shape[:1]):
            raise ValueError(f"u of shape {tuple(u.shape)} and dtype {u.dtype} for {len(rounded)} maps")
    except (KeyError, ValueError, TypeError) as error:
        shapes = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
        raise StoreError(
            f"arrays {shapes} are no encoded stack ({error}); a record holds stack, or u and v, and scale unless they "
            "are float32; verify the store."
        ) from error
    return u, rounded, scale
