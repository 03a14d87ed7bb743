"""COCO's compressed run lengths: a mask as a short string, as CheXlocalize's ground truth holds it.

A mask is read down its columns, from left to right. It becomes the lengths of its runs, the first of them False (of
length 0 where the first pixel is True). From the fourth on a length is written as its difference from the one two
before. A number is cut into groups of five bits in two's complement, the lowest first; a character is 48 plus the
group, plus 32 where another group follows.

Source:
    `rleEncode`, `rleDecode`, `rleToString` and `rleFrString` in common/maskApi.c of cocodataset/cocoapi.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.checks import check_boolean

MAX_PIXELS = 50_000_000
"""Most pixels that a mask is decoded to, as for pictures: a file may claim any size."""

_ZERO, _SIGN, _MORE = 48, 0x10, 0x20


@dataclass(frozen=True)
class EncodedMask:
    """A mask as run lengths.

    Attributes:
        size: (height, width) [px].
        counts: The compressed string.
    """

    size: tuple[int, int]
    counts: str


def encode_mask(mask: Bool[Tensor, "height width"]) -> EncodedMask:
    """Compress a mask; the string equals pycocotools' `mask.encode`.

    Raises:
        InputError: The mask is not a boolean (height, width).

    Example:
        >>> encode_mask(torch.tensor([[False, True], [False, False]])).counts  # runs 2, 1, 1: columns first
        '211'
    """
    check_boolean(mask)
    pixels = torch.nn.functional.pad(mask.mT.flatten(), (1, 0))
    starts = (pixels[1:] != pixels[:-1]).nonzero().flatten().tolist()
    edges = [0, *starts, mask.numel()]
    counts = [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
    height, width = mask.shape
    return EncodedMask((height, width), _to_string(counts))


def decode_mask(encoded: EncodedMask) -> Bool[Tensor, "height width"]:
    """Restore a mask.

    Raises:
        InputError: The size is not that of a picture, the string is broken, or the two disagree.

    Example:
        >>> decode_mask(EncodedMask((2, 2), "211")).tolist()
        [[False, True], [False, False]]
    """
    height, width = encoded.size
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise InputError(
            f"encoded mask claims {height} x {width} px; a mask has 1 to {MAX_PIXELS} pixels; check the file's 'size'."
        )
    counts = _from_string(encoded.counts)
    if min(counts, default=-1) < 0 or sum(counts) != height * width:
        raise InputError(
            f"encoded mask of {height} x {width} px holds {len(counts)} runs that do not add up to its pixels; they "
            "must cover it exactly; fetch the file again."
        )
    is_true = torch.arange(len(counts)) % 2 == 1
    return is_true.repeat_interleave(torch.tensor(counts)).reshape(width, height).mT.contiguous()


def _to_string(counts: list[int]) -> str:
    characters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        has_more = True
        while has_more:
            group = value & 0x1F
            value >>= 5
            # The sign bit of the last group fills what is not written.
            has_more = value != (-1 if group & _SIGN else 0)
            characters.append(chr(_ZERO + group + (_MORE if has_more else 0)))
    return "".join(characters)


def _from_string(text: str) -> list[int]:
    counts: list[int] = []
    value = n_bits = 0
    for character in text:
        group = ord(character) - _ZERO
        if not 0 <= group < 2 * _MORE or n_bits > 60:
            raise InputError(
                f"encoded mask is broken after {len(counts)} runs; a run is at most 13 characters from '0' to 'o'; "
                "fetch the file again."
            )
        value |= (group & 0x1F) << n_bits
        n_bits += 5
        if group & _MORE:
            continue
        if group & _SIGN:
            value -= 1 << n_bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = n_bits = 0
    if n_bits:
        raise InputError("encoded mask ends inside a run; its string was cut; fetch the file again.")
    return counts
