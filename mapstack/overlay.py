"""Heat maps: the colours that an attribution puts on an X-ray, pixel by pixel.

A pixel without attribution keeps the picture's own value; the stronger the attribution, the more opaque its colour.
Where a map has a sign, red is positive and blue negative; where it has none, violet turns to yellow as it grows.
"""

import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mapstack.errors import InputError

Picture: TypeAlias = UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"]
Attribution: TypeAlias = Float[np.ndarray, "height width"]

PERCENTILE = 99.5
"""The share of a map's pixels, by strength, that a scale covers where no limit is given [%]."""

# The anatomy stays visible under the strongest attribution; the exponent, below 1, lets weak ones be seen as well.
_MAX_OPACITY = 0.7
_OPACITY_EXPONENT = 0.75
_LEVELS = 256
_STRIP_PX = 128  # rows that are mixed at once: in floats, three channels of a whole picture take several times its size
# Red, green, blue [0, 255] at equal distances from nothing to the limit.
_POSITIVE = ((255, 170, 110), (250, 85, 45), (225, 10, 25))
_NEGATIVE = ((130, 200, 255), (55, 125, 250), (20, 45, 225))
_UNSIGNED = ((130, 45, 190), (225, 60, 130), (255, 130, 50), (255, 225, 70))


@dataclass(frozen=True)
class Scale:
    """What the colours mean.

    Args:
        limit: The strength at which they end, in the map's unit; 0 where the map is zero everywhere.
        signed: Whether they run from -limit to +limit, or from 0 to the limit.
        is_clipped: Whether some pixels are stronger than the limit and look as if they were at it.
    """

    limit: float
    signed: bool
    is_clipped: bool


def check(picture: Picture, attribution: Attribution, *, signed: bool) -> None:
    """Refuse what cannot be drawn.

    Raises:
        InputError: The picture is not 8-bit grey or RGB; or the attribution is of another size, is not of floats,
            holds a value that is not finite, or a negative one without `signed`.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
        raise InputError(
            f"picture of dtype {picture.dtype} and shape {picture.shape} cannot be drawn; it must be uint8 of shape "
            "(height, width) or (height, width, 3); convert it first."
        )
    if attribution.shape != picture.shape[:2] or not picture.size:
        raise InputError(
            f"attribution of shape {attribution.shape} does not fit the picture of (height, width) "
            f"{picture.shape[:2]}; both must have the same pixels, at least one; bring the map to the "
            "original-image frame first."
        )
    if not np.issubdtype(attribution.dtype, np.floating):
        raise InputError(f"attribution of dtype {attribution.dtype} cannot be drawn; it must be floats; convert it.")
    if not np.isfinite(attribution).all():
        n_bad = int(np.count_nonzero(~np.isfinite(attribution)))
        raise InputError(
            f"attribution has {n_bad} values that are not finite; a heat map shows numbers only; mend the method."
        )
    if not signed and attribution.min() < 0:
        raise InputError(
            "attribution has negative values but signed is False; a map without a sign is never negative; "
            "pass signed=True."
        )


def scale_of(attributions: Sequence[Attribution], *, signed: bool, limit: float | None = None) -> Scale:
    """Choose one scale for maps that are to be compared.

    Args:
        attributions: Maps of one unit.
        signed: Whether they have a sign.
        limit: Where the colours end, in that unit; None takes the `PERCENTILE` of the absolute values or, for maps
            that are nearly all zero, their maximum.

    Raises:
        InputError: The limit is not a positive number.

    Example:
        >>> scale_of([np.array([[-4.0, 1.0]])], signed=True, limit=2)  # one for both signs
        Scale(limit=2.0, signed=True, is_clipped=True)
    """
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise InputError(f"limit {limit} is wrong; it must be finite and above 0; leave it out to have it chosen.")
    strengths = np.concatenate([np.abs(_floats(attribution)).ravel() for attribution in attributions])
    strongest = float(strengths.max())
    if limit is None:
        limit = float(np.percentile(strengths, PERCENTILE)) or strongest
    return Scale(float(limit), signed, strongest > limit)


def blend(picture: Picture, attribution: Attribution, scale: Scale) -> UInt8[np.ndarray, "height width 3"]:
    """Lay a heat map over a picture.

    Args:
        picture: Grey or RGB [0, 255].
        attribution: Scores in the same frame.
        scale: What the colours mean.

    Example:
        >>> grey = np.full((1, 3), 100, np.uint8)
        >>> blend(grey, np.array([[-1.0, 0.0, 1.0]]), Scale(1.0, True, False))[0].tolist()  # blue, untouched, red
        [[44, 62, 188], [100, 100, 100], [188, 37, 48]]
    """
    rgb = np.broadcast_to(picture[..., None] if picture.ndim == 2 else picture, (*picture.shape[:2], 3))
    if scale.limit == 0:
        return rgb.copy()
    mixed = np.empty(rgb.shape, np.uint8)
    for top in range(0, len(rgb), _STRIP_PX):
        rows = slice(top, top + _STRIP_PX)
        mixed[rows] = _mix(rgb[rows], attribution[rows], scale)
    return mixed


def _mix(
    rgb: UInt8[np.ndarray, "height width 3"], attribution: Attribution, scale: Scale
) -> UInt8[np.ndarray, "height width 3"]:
    # A limit far below the values: they end up at it all the same.
    with np.errstate(over="ignore"):
        share = np.clip(_floats(attribution) / scale.limit, -1, 1)
    level = np.rint(np.abs(share) * (_LEVELS - 1)).astype(np.uint8)
    opacity = (_MAX_OPACITY * np.linspace(0, 1, _LEVELS, dtype=np.float32) ** _OPACITY_EXPONENT)[level][..., None]
    if scale.signed:
        colour = np.where((share < 0)[..., None], _table(_NEGATIVE)[level], _table(_POSITIVE)[level])
    else:
        colour = _table(_UNSIGNED)[level]
    return np.rint(rgb + opacity * (colour - rgb)).astype(np.uint8)


def overlay_png(
    picture: Picture, attribution: Attribution, *, limit: float | None = None, signed: bool = True
) -> bytes:
    """Return a heat map as a PNG file of the picture's exact size, without axes or text.

    Args:
        picture: Grey or RGB [0, 255], original-image frame.
        attribution: Scores in the same frame.
        limit: Where the colours end; see `scale_of`.
        signed: Whether the scores have a sign.

    Raises:
        InputError: See `check` and `scale_of`.
    """
    check(picture, attribution, signed=signed)
    raster = blend(picture, attribution, scale_of([attribution], signed=signed, limit=limit))
    buffer = io.BytesIO()
    # Runs only: the noise of an X-ray repeats nothing, and to look for it takes four times as long for a few per cent.
    Image.fromarray(raster).save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _floats(attribution: Attribution) -> Float[np.ndarray, "height width"]:
    """Return at least 32 bits: in 16 the steps of the division show."""
    return attribution.astype(np.result_type(attribution.dtype, np.float32), copy=False)


def _table(stops: Sequence[tuple[int, int, int]]) -> Float[np.ndarray, "levels 3"]:
    """Interpolate colours at equal distances to one colour per level."""
    at, places = np.linspace(0, 1, _LEVELS), np.linspace(0, 1, len(stops))
    return np.stack([np.interp(at, places, channel) for channel in zip(*stops, strict=True)], axis=-1).astype(
        np.float32
    )
