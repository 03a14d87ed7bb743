"""Maps of rounded rows: the same as of rows that were made float32 at once, whatever the size of the picture."""

import pytest
import torch

from mapstack.codecs import Encoding, decode_factors, rounding, weighted_sums
from mapstack.stack import Stack


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_NUMBERS_AT_ONCE", 7 * 2048)


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
@pytest.mark.parametrize("side", [1, 45, 46, 100])  # one pixel; just below, just above one block; the last one uneven
def test_rounded_rows_are_summed_as_the_rows_that_they_stand_for(codec: str, side: int) -> None:
    numbers = torch.Generator().manual_seed(0)
    made = 1e-9 * torch.randn(7, side, side, generator=numbers)
    directions = torch.randn(3, 7, generator=numbers)
    mixing, rounded, scale = decode_factors(Encoding(codec).encode(made))
    assert mixing is None
    restored = rounded if scale is None else rounded * scale[:, None, None]
    stack = Stack(
        torch.randn(1, 7, generator=numbers), False, rounded[None], scale=None if scale is None else scale[None]
    )
    expected = (directions.double() @ restored.double().flatten(1)).reshape(1, 3, side, side)
    for found in (stack.project(directions), stack[:1].project(directions)):
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (stack.axis_maps()[0] - restored).abs().max() <= 1e-6 * restored.abs().max()


def test_each_picture_of_a_batch_has_weights_of_its_own() -> None:
    numbers = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 3, 7, generator=numbers)
    rows = torch.randn(2, 7, 46, 45, generator=numbers).half()
    expected = torch.einsum("bnr,brhw->bnhw", weights, rows.float())
    torch.testing.assert_close(weighted_sums(weights, rows), expected, rtol=1e-5, atol=1e-5)
