"""Bytes to picture to pixel_values: the one owner of size, mean, standard deviation and preprocessing."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from mapstack.dicom import DicomRule, is_dicom, open_dicom
from mapstack.errors import ConfigError, ImageError, InputError
from mapstack.formats import MAX_SIDE_PX, check_shape, open_upright, to_eight_bits
from mapstack.geometry import Geometry

Box = tuple[float, float, float, float]

_DICOM = DicomRule()


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its pictures.

    Args:
        image_size: Side of the model-input frame [px].
        mean: Subtracted from each channel [0, 1]; one value for grey input, three for RGB.
        std: Each channel is divided by this, after the mean is subtracted.
        fit: "pad" puts the picture on a black square of side max(image_size, width, height) and resizes that; "crop"
            resizes the shorter edge to image_size and cuts the centre. Both resize by Pillow's bicubic filter.

    Raises:
        ConfigError: The channels are not 1 or 3, `std` does not fit, or a value is out of range.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Literal["pad", "crop"]

    def __post_init__(self) -> None:
        """Refuse what no picture could be prepared by."""
        if (
            self.image_size < 1
            or len(self.mean) not in (1, 3)
            or len(self.std) != len(self.mean)
            or min(self.std) <= 0
            or self.fit not in ("pad", "crop")
        ):
            raise ConfigError(
                f"preprocessing {self} is wrong; image_size is at least 1, mean and std hold 1 or 3 values each with "
                "every std above 0, and fit is 'pad' or 'crop'; correct the model's preprocessing."
            )

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """Pillow's mode of the model's input: grey for one channel, RGB for three."""
        return "L" if len(self.mean) == 1 else "RGB"

    def normalize(
        self, pictures: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch channels height width"]:
        """Take picture space [0, 1] to pixel_values.

        Example:
            >>> Preprocessing(1, (0.5,), (0.25,), "pad").normalize(torch.ones(1, 1, 1)).item()
            2.0
        """
        return (pictures - self._per_channel(self.mean, pictures)) / self._per_channel(self.std, pictures)

    def denormalize(
        self, pixel_values: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch channels height width"]:
        """Take pixel_values to picture space [0, 1]; what rounding leaves outside is clamped."""
        pictures = pixel_values * self._per_channel(self.std, pixel_values) + self._per_channel(self.mean, pixel_values)
        return pictures.clamp(0, 1)

    @staticmethod
    def _per_channel(values: tuple[float, ...], like: Tensor) -> Float[Tensor, "channels 1 1"]:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


MEDCLIP = Preprocessing(image_size=224, mean=(0.5862785803043838,), std=(0.27950088968644304,), fit="pad")
"""MedCLIP's preprocessing.

Source:
    medclip 0.0.3, `medclip/constants.py` and `MedCLIPFeatureExtractor` in `medclip/dataset.py`, as they run under
    transformers 4.23 and 4.24; on later versions upstream's class no longer works. Deviation: 16-bit pictures are
    scaled before they are padded, where upstream saturates them at 255.
"""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright, with none of its file's metadata.

    Args:
        image: Pillow image of mode "L" or "RGB"; not to be changed.
        sha256: Hexadecimal digest of the bytes it came from.
    """

    image: Image.Image
    sha256: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) [px], where Pillow says (width, height)."""
        return self.image.height, self.image.width


@dataclass(frozen=True, eq=False)
class Prepared:
    """One picture as the model sees it.

    Args:
        pixel_values: Normalised pixels, model-input frame.
        geometry: The way back to the original picture.
        sha256: Hexadecimal digest of the picture's bytes.
    """

    pixel_values: Float[Tensor, "channels height width"]
    geometry: Geometry
    sha256: str


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch of pictures as the model sees them.

    Args:
        pixel_values: Normalised pixels, model-input frame.
        content: True on the pictures, False on their padding; same frame.
        sha256: Hexadecimal digest of each picture's bytes.

    Raises:
        InputError: The three do not hold equally many pictures.
    """

    pixel_values: Float[Tensor, "batch channels height width"]
    content: Bool[Tensor, "batch height width"]
    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse parts of different lengths, which would mix up pictures."""
        if not len(self.pixel_values) == len(self.content) == len(self.sha256):
            raise InputError(
                f"inputs hold {len(self.pixel_values)} pixel_values, {len(self.content)} content masks and "
                f"{len(self.sha256)} sha256; each picture has one of each; make inputs with `collate`."
            )

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.sha256)

    def __getitem__(self, index: int | slice) -> "Inputs":
        """Take some pictures; one index gives a batch of one.

        Raises:
            IndexError: There is no such picture.
        """
        if isinstance(index, int):
            at = range(len(self))[index]
            index = slice(at, at + 1)
        return Inputs(self.pixel_values[index], self.content[index], self.sha256[index])

    def to(self, device: torch.device | str) -> "Inputs":
        """Move the tensors to a device."""
        return Inputs(self.pixel_values.to(device), self.content.to(device), self.sha256)

    def padded(self, n: int) -> "Inputs":
        """Repeat the last picture up to n: bits are equal only at equal batch size, so the last batch is filled.

        Raises:
            InputError: There is no picture, or there are more than `n`.
        """
        if not 0 < len(self) <= n:
            raise InputError(
                f"{len(self)} pictures cannot be padded to {n}; a batch holds at least one picture and at most {n}; "
                "give fewer pictures or a larger batch size."
            )
        index = [min(i, len(self) - 1) for i in range(n)]
        return Inputs(self.pixel_values[index], self.content[index], tuple(self.sha256[i] for i in index))


def decode(data: bytes, *, max_pixels: int = 50_000_000, dicom: DicomRule | None = None) -> Picture:
    """Read a PNG or JPEG file's bytes by the rules of `mapstack.formats`, or a DICOM file's by those of `.dicom`.

    Args:
        data: The whole file.
        max_pixels: Most pixels (height x width) that are decoded.
        dicom: What of DICOM is accepted; None for nothing.

    Raises:
        ImageError: The bytes are no PNG or JPEG, or are refused by one of the rules.
        ConfigError: The file is DICOM, and what reads it is not installed.
    """
    if dicom is not None and is_dicom(data):
        image = open_dicom(data, max_pixels, dicom)
    else:
        image = open_upright(data, max_pixels)
    return Picture(image, hashlib.sha256(data).hexdigest())


def read(path: str | os.PathLike[str], *, max_pixels: int = 50_000_000, dicom: DicomRule | None = _DICOM) -> Picture:
    """Read a PNG, JPEG or DICOM file; see `decode`.

    Raises:
        ImageError: The file cannot be opened, or `decode` refuses it.
        ConfigError: The file is DICOM, and what reads it is not installed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(
            f"picture {os.fspath(path)!r} cannot be opened ({error.strerror}); it must be a readable file; "
            "correct the path."
        ) from error
    return decode(data, max_pixels=max_pixels, dicom=dicom)


def from_array(values: npt.NDArray[Any]) -> Picture:
    """Make a picture of an array; uint16 is scaled by the rule for 16-bit files.

    Args:
        values: uint8 or uint16, (height, width) or (height, width, 3), upright. Its sha256 covers dtype, shape and
            values, so an array and the file it came from have different digests and different random draws.

    Raises:
        ImageError: Another dtype or shape, or an extreme one.
    """
    if values.dtype.name not in ("uint8", "uint16") or not (values.ndim == 2 or values.shape[2:] == (3,)):
        raise ImageError(
            f"array of dtype {values.dtype.name} and shape {values.shape} is no picture; it must be uint8 or uint16 "
            "of shape (height, width) or (height, width, 3); scale and convert it first."
        )
    check_shape(values.shape[0], values.shape[1], max_pixels=MAX_SIDE_PX**2)
    # A copy, since Pillow would share the caller's memory; in one byte order, so that the digest is the same anywhere.
    plain = np.array(values, dtype=values.dtype.newbyteorder("<"), order="C")
    digest = hashlib.sha256(f"{values.dtype.name} {values.shape} ".encode())
    digest.update(plain.data)
    return Picture(Image.fromarray(to_eight_bits(plain)), digest.hexdigest())


def prepare(picture: Picture, preprocessing: Preprocessing) -> Prepared:
    """Make the model's pixel_values, float32, and remember the way back.

    Source:
        For "pad", medclip 0.0.3 (see `MEDCLIP`); for "crop", transformers 4.57 `CLIPImageProcessor`.
    """
    size = preprocessing.image_size
    fit = _pad if preprocessing.fit == "pad" else _crop
    fitted, box = fit(picture.image.convert(preprocessing.mode), size)
    channels = torch.from_numpy(np.array(fitted)).reshape(size, size, -1).permute(2, 0, 1).contiguous()
    pixel_values = preprocessing.normalize(channels.float() * (1 / 255))
    return Prepared(pixel_values, Geometry(picture.size, size, box), picture.sha256)


def collate(pictures: Sequence[Prepared]) -> Inputs:
    """Make a batch.

    Raises:
        InputError: There is no picture, or they were prepared for different models.
    """
    shapes = sorted({tuple(picture.pixel_values.shape) for picture in pictures})
    if len(shapes) != 1:
        raise InputError(
            f"pictures of shapes {shapes} make no batch; a batch holds at least one picture, and all have one shape; "
            "prepare them with the same preprocessing."
        )
    return Inputs(
        pixel_values=torch.stack([picture.pixel_values for picture in pictures]),
        content=torch.stack([picture.geometry.content_mask() for picture in pictures]),
        sha256=tuple(picture.sha256 for picture in pictures),
    )


def _pad(image: Image.Image, size: int) -> tuple[Image.Image, Box]:
    """Put the picture on a black square and resize that; see `MEDCLIP` for the source."""
    side = max(size, image.width, image.height)
    left, top = int((side - image.width) / 2), int((side - image.height) / 2)
    square = Image.new(image.mode, (side, side))
    square.paste(image, (left, top))
    # One division of whole numbers, so that an edge that falls on a pixel border does so exactly.
    box = (
        top * size / side,
        left * size / side,
        (top + image.height) * size / side,
        (left + image.width) * size / side,
    )
    return square.resize((size, size), Image.Resampling.BICUBIC), box


def _crop(image: Image.Image, size: int) -> tuple[Image.Image, Box]:
    """Resize the shorter edge and cut the centre, as `CLIPImageProcessor` of transformers 4.57 does."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    box = (float(-top), float(-left), float(height - top), float(width - left))
    return resized.crop((left, top, left + size, top + size)), box
