"""How a dense stack is turned into the arrays of a record, and back.

A codec is one pair of functions in `CODECS`; what it stores is its own affair, so that others can be added.
Attributions may be as small as 1e-9, where float16 has no digits left: hence a scale for each row of the stack.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapstack.errors import InputError, StoreError

Arrays = dict[str, NDArray[Any]]

_STACK = "stack"
_SCALE = "scale"
_SMALLEST = float(np.finfo(np.float32).tiny)
_TOO_LARGE = 2.0**127  # rounding up something larger could decode to infinity
_INT8_MAX = 127
# The largest value of a row comes to lie in [2^14, 2^15): below the 65504 of float16, also after rounding.
_FLOAT16_EXPONENT = 15


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to store a stack.

    Attributes:
        encode: Turns a finite float32 stack [rows, height, width] into named arrays.
        decode: Turns those arrays into a float32 stack.
    """

    encode: Callable[[NDArray[np.float32]], Arrays]
    decode: Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]


def encode(stack: NDArray[Any], codec: str) -> Arrays:
    """Turn a stack into the arrays of a record.

    Args:
        stack: Attributions [rows, height, width], float32.
        codec: `float32` (exact), `float16` (about 3 decimal digits of each value, for values down to 1e-8 of the
            largest of their row), or `int8` (to 1/254 of the largest value of the row).

    Returns:
        `stack`, and for `float16` and `int8` also `scale` [rows]: the stack is `scale * stack`, row by row.

    Raises:
        InputError: The codec is unknown, or the stack has another shape or dtype, or holds NaN, infinity or a value
            beyond 1.7e38.
    """
    chosen = _codec(codec)
    if stack.ndim != 3 or stack.dtype != np.float32 or stack.size == 0:
        raise InputError(
            f"a stack of shape {stack.shape} and dtype {stack.dtype} cannot be encoded; a stack is float32 "
            "[rows, height, width], none of them 0; convert it."
        )
    if not (_row_maxima(stack) < _TOO_LARGE).all():  # false for NaN
        raise InputError(
            f"a stack of shape {stack.shape} holds NaN, infinity or a value beyond 1.7e38; none is ever stored; "
            "record the sample as failed."
        )
    return chosen.encode(stack)


def decode(arrays: Mapping[str, NDArray[Any]], codec: str) -> NDArray[np.float32]:
    """Turn the arrays of a record back into a float32 stack [rows, height, width].

    Raises:
        InputError: The codec is unknown.
        StoreError: The arrays are not those of the codec.
    """
    chosen = _codec(codec)
    try:
        return chosen.decode(arrays)
    except (KeyError, ValueError) as error:
        shapes = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
        raise StoreError(
            f"arrays {shapes} do not decode as codec '{codec}' ({error}); the manifest names the codec of every record;"
            " verify the store."
        ) from error


def _codec(name: str) -> Codec:
    if name not in CODECS:
        raise InputError(f"codec '{name}' is unknown; choose one of {', '.join(CODECS)}.")
    return CODECS[name]


def _row_maxima(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = stack.reshape(len(stack), -1)
    maxima: NDArray[np.float32] = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # no copy as |rows| would be
    return maxima


def _divide_rows(
    stack: NDArray[np.float32], scale: NDArray[np.float32], dtype: type[np.float16] | type[np.int8]
) -> Arrays:
    divided = np.empty(stack.shape, dtype)
    row_scaled = np.empty(stack.shape[1:], np.float32)  # one row stays in the cache: three times as fast
    for index, row in enumerate(stack):
        np.divide(row, scale[index], out=row_scaled)
        if dtype is np.int8:
            np.rint(row_scaled, out=row_scaled)
        divided[index] = row_scaled
    return {_STACK: divided, _SCALE: scale}


def _multiply_rows(arrays: Mapping[str, NDArray[Any]], dtype: type[np.float16] | type[np.int8]) -> NDArray[np.float32]:
    stored, scale = _stored(arrays, dtype), arrays[_SCALE]
    if scale.dtype != np.float32 or scale.shape != stored.shape[:1]:
        raise ValueError("scale is float32 [rows]")
    stack = np.empty(stored.shape, np.float32)
    for index, row in enumerate(stored):
        np.multiply(row, scale[index], out=stack[index])
    return stack


def _stored(arrays: Mapping[str, NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    stored = arrays[_STACK]
    if stored.dtype != dtype or stored.ndim != 3:
        raise ValueError(f"stack is {np.dtype(dtype)} [rows, height, width]")
    return stored


def _encode_float32(stack: NDArray[np.float32]) -> Arrays:
    return {_STACK: stack}


def _decode_float32(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    return _stored(arrays, np.float32)


def _encode_float16(stack: NDArray[np.float32]) -> Arrays:
    # A power of two, so that the scaling itself rounds nothing.
    maxima = _row_maxima(stack)
    _, exponents = np.frexp(maxima)
    scale = np.maximum(np.ldexp(np.float32(1), exponents - _FLOAT16_EXPONENT), np.float32(_SMALLEST))
    return _divide_rows(stack, np.where(maxima > 0, scale, 1).astype(np.float32), np.float16)


def _decode_float16(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    return _multiply_rows(arrays, np.float16)


def _encode_int8(stack: NDArray[np.float32]) -> Arrays:
    # Symmetric about zero, so that a pixel without attribution stays without.
    maxima = _row_maxima(stack)
    scale = np.maximum(maxima / np.float32(_INT8_MAX), np.float32(_SMALLEST))
    return _divide_rows(stack, np.where(maxima > 0, scale, 1).astype(np.float32), np.int8)


def _decode_int8(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    return _multiply_rows(arrays, np.int8)


CODECS: dict[str, Codec] = {
    "float32": Codec(_encode_float32, _decode_float32),
    "float16": Codec(_encode_float16, _decode_float16),
    "int8": Codec(_encode_int8, _decode_int8),
}
