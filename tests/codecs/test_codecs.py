"""Codecs: what each gives back, and what none of them takes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mapstack.codecs import CODECS, Encoding, decode_factors
from mapstack.errors import InputError, StoreError
from tests.codecs.decoding import restore

finite_stacks = arrays(np.float32, (3, 2, 5), elements=st.floats(-(2.0**126), 2.0**126, width=32))


def stack_of(scale: float) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((4, 8, 8)) * scale).astype(np.float32)


def encode(stack: np.ndarray, codec: str) -> dict[str, np.ndarray]:
    return Encoding(codec).encode(torch.from_numpy(stack))


def largest(stack: np.ndarray) -> np.ndarray:
    return np.abs(stack).max(axis=(1, 2), keepdims=True)


@given(finite_stacks)
def test_float32_gives_the_stack_back_bit_for_bit(stack: np.ndarray):
    assert restore(encode(stack, "float32")).tobytes() == stack.tobytes()


@settings(max_examples=200)
@given(finite_stacks)
def test_float16_rounds_each_value_to_eleven_bits_whatever_its_row(stack: np.ndarray):
    restored = restore(encode(stack, "float16")).astype(np.float64)
    # Half a unit in the last place; its digits run out 2^28 below the row's largest value, float32's at 2^-149.
    tolerance = np.maximum(np.abs(stack) * 2.0**-11, np.maximum(largest(stack) * 2.0**-38, 2.0**-150))
    assert (np.abs(restored - stack.astype(np.float64)) <= tolerance).all()


@settings(max_examples=200)
@given(finite_stacks)
def test_int8_rounds_to_half_a_step_of_its_row(stack: np.ndarray):
    encoded = encode(stack, "int8")
    restored = restore(encoded).astype(np.float64)
    step = np.maximum(largest(stack).astype(np.float64) / 127, 2.0**-126)
    assert (np.abs(restored - stack) <= step * 0.5001).all()
    assert encoded["stack"].min() >= -127


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1.0, 1e9, 1e30])
def test_small_and_large_attributions_keep_their_digits(scale: float):
    stack = stack_of(scale)
    restored = restore(encode(stack, "float16"))
    np.testing.assert_allclose(restored, stack, rtol=2.0**-11)


def test_the_float16_scale_is_a_power_of_two_and_uses_the_range():
    encoded = encode(stack_of(1e-9), "float16")
    mantissas, _ = np.frexp(encoded["scale"])
    assert (mantissas == 0.5).all()
    assert (largest(encoded["stack"]) >= 2**14).all()
    assert (largest(encoded["stack"]) <= 2**15).all()


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_a_row_of_zeros_stays_zero_with_scale_one(codec: str):
    stack = stack_of(1.0)
    stack[1] = 0
    encoded = encode(stack, codec)
    assert not restore(encoded)[1].any()
    assert codec == "float32" or encoded["scale"][1] == 1
    assert encoded["stack"].shape == stack.shape


def test_rows_are_scaled_one_by_one():
    stack = stack_of(1.0)
    stack[2] *= np.float32(1e-6)
    restored = restore(encode(stack, "int8"))
    assert np.abs(restored[2] - stack[2]).max() <= np.abs(stack[2]).max() / 253


@pytest.mark.fault("R10")
@pytest.mark.parametrize("codec", CODECS)
def test_r10_nan_and_infinity_are_refused(codec: str, figure):
    refused = [np.nan, np.inf, -np.inf, 3e38]
    for bad in refused:
        stack = stack_of(1.0)
        stack[3, 7, 7] = bad
        with pytest.raises(InputError, match=r"shape \(4, 8, 8\) holds NaN, infinity or a value beyond 1.7e38; none"):
            encode(stack, codec)
    figure(f"codec {codec}: {len(refused)} of {len(refused)} stacks with NaN, infinity or an overflow refused")


def test_unknown_names_are_refused_with_the_choice():
    with pytest.raises(
        InputError, match="codec 'float61' is unknown; choose one of float32, float16, int8, lowrank.*16"
    ):
        Encoding("float61")
    with pytest.raises(InputError, match="compress 'gzip' is unknown; choose one of none, zstd"):
        Encoding(compress="gzip")
    for error in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"it is a share of the maps, in \[0, 1\)"):
            Encoding("lowrank", error)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("stack", [np.zeros((2, 2), np.float32), np.zeros((1, 2, 2)), np.zeros((0, 2, 2), np.float32)])
def test_what_is_no_stack_is_refused(stack: np.ndarray, codec: str):
    with pytest.raises(InputError, match="cannot be encoded; a stack is float32"):
        encode(stack, codec)


WRONG_ARRAYS = {
    "nothing": {},
    "no scale": {"stack": np.zeros((2, 3, 3), np.int8)},
    "a scale too many": {"stack": np.zeros((2, 3, 3), np.float32), "scale": np.ones(2, np.float32)},
    "too few scales": {"stack": np.zeros((2, 3, 3), np.float16), "scale": np.ones(1, np.float32)},
    "scale of another dtype": {"stack": np.zeros((2, 3, 3), np.float16), "scale": np.ones(2)},
    "stack of another dtype": {"stack": np.zeros((2, 3, 3), np.int16), "scale": np.ones(2, np.float32)},
    "flat": {"stack": np.zeros(18, np.float32)},
    "u without v": {"u": np.zeros((5, 2), np.float32)},
    "ranks that differ": {"u": np.zeros((5, 2), np.float32), "v": np.zeros((3, 3, 3), np.float32)},
    "u of another dtype": {"u": np.zeros((5, 2)), "v": np.zeros((2, 3, 3), np.float32)},
    "u of another shape": {"u": np.zeros(2, np.float32), "v": np.zeros((2, 3, 3), np.float32)},
}


@pytest.mark.parametrize("wrong", WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_arrays_that_no_codec_writes_are_refused(wrong: dict[str, np.ndarray]):
    with pytest.raises(StoreError, match="are no encoded stack .*; a record holds stack, or u and v"):
        decode_factors(wrong)


def test_the_input_is_left_as_it_was():
    stack = stack_of(1.0)
    before = stack.copy()
    for codec in CODECS:
        encode(stack, codec)
    assert (stack == before).all()


@pytest.mark.parametrize("codec", CODECS)
def test_the_precision_of_the_model_is_not_that_of_the_codec(codec: str):
    """Lightning's mixed precision runs the whole step, encoding included, under autocast."""
    factors = np.random.default_rng(0).standard_normal((2, 40, 2, 1)).astype(np.float32)
    stack = (factors[0, :, 0] @ factors[1, :, 0].T)[:, :, None] + np.zeros((1, 1, 30), np.float32)  # of rank 1
    expected = encode(stack, codec)
    with torch.autocast("cpu", torch.bfloat16):
        found = encode(stack, codec)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes()


def test_what_decides_the_bytes_is_described_and_nothing_else():
    assert Encoding("int8", 0.3).describe() == {"codec": "int8", "compress": "none"}
    assert Encoding("lowrank", 0.3, "zstd").describe() == {"codec": "lowrank", "compress": "zstd", "max_error": 0.3}
