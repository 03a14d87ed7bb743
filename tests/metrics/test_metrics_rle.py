import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.rle import EncodedMask, decode_mask, encode_mask


def encode_by_loop(mask: Tensor) -> str:
    """maskApi.c's two functions, pixel by pixel and bit by bit."""
    height, width = mask.shape
    counts, last, run = [], False, 0
    for column in range(width):
        for row in range(height):
            if bool(mask[row, column]) != last:
                counts.append(run)
                last, run = not last, 0
            run += 1
    counts.append(run)
    text = ""
    for index, count in enumerate(counts):
        x = count - counts[index - 2] if index > 2 else count
        while True:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr(48 + (c | 0x20 if more else c))
            if not more:
                break
    return text


@pytest.mark.parametrize(
    ("size", "counts"),
    [((2320, 2828), "PVWX6"), ((2022, 2021), "nefl3")],  # the empty masks of CheXlocalize's sample
)
def test_empty_masks_of_the_benchmark(size: tuple[int, int], counts: str) -> None:
    mask = decode_mask(EncodedMask(size, counts))
    assert mask.shape == size
    assert not mask.any()
    assert encode_mask(mask).counts == counts


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        ([[0, 0], [0, 0]], "4"),
        ([[1, 1], [1, 1]], "04"),  # the first run is of False
        ([[1, 0], [0, 0]], "013"),
        ([[0, 1], [0, 0]], "211"),  # down the columns
        ([[0, 0], [1, 0]], "112"),
        ([[0, 1, 0, 1]], "1110"),  # from the fourth run on: the difference from the one two before
        ([[0, 0, 0, 1, 1, 0, 1]], "321O"),  # 1 - 2 = -1 is the group 11111
        ([[0] * 16], "`0"),  # 16 needs a second group, or it would read as -16
        ([[0] * 40], "X1"),  # 8 + 32, then 1
    ],
)
def test_strings_made_by_hand(rows: list[list[int]], counts: str) -> None:
    mask = torch.tensor(rows, dtype=torch.bool)
    assert encode_mask(mask) == EncodedMask((len(rows), len(rows[0])), counts)
    assert torch.equal(decode_mask(EncodedMask((len(rows), len(rows[0])), counts)), mask)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**31), st.floats(0, 1))
def test_round_trip_and_second_implementation(height: int, width: int, seed: int, share: float) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share
    encoded = encode_mask(mask)
    assert encoded.counts == encode_by_loop(mask)
    assert torch.equal(decode_mask(encoded), mask)


@pytest.mark.parametrize(
    ("size", "counts", "sentence"),
    [
        ((2, 2), "3", "holds 1 runs that do not add up to its pixels"),
        ((2, 2), "05", "holds 2 runs that do not add up"),
        ((2, 2), "", "holds 0 runs that do not add up"),
        ((2, 2), "5O", "holds 2 runs that do not add up"),  # 5 - 1 = 4, but no run is negative
        ((2, 2), "P", "ends inside a run; its string was cut"),
        ((2, 2), "1 3", "is broken after 1 runs"),
        ((2, 2), "1p", "is broken after 1 runs"),
        ((2, 2), "o" * 30, "is broken after 0 runs"),
        ((10**6, 10**6), "4", "claims 1000000 x 1000000 px; a mask has 1 to 50000000 pixels"),
        ((0, 4), "0", "claims 0 x 4 px"),
    ],
)
def test_broken_strings_are_refused_before_anything_is_allocated(
    size: tuple[int, int], counts: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        decode_mask(EncodedMask(size, counts))
