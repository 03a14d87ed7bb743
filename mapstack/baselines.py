"""The reference inputs that a picture is compared with.

Every baseline is made in picture space [0, 1], on the picture only: the padding of a non-square picture keeps the
picture's own pixel_values, bit for bit, so that no attribution falls on it. Each picture is worked on alone, so that
its baseline does not depend on its batch-mates.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.errors import ConfigError, InputError
from mapstack.images import Inputs, Prepared, Preprocessing
from mapstack.randomness import generator

BLUR_SIGMA_PX = 16.0
"""Standard deviation of the blur [px of the model-input frame]: a fourteenth of 224, which removes every finding."""

DEFAULT_DISTRIBUTION = ("black", "white", "mean", "noise")
"""What GradientSHAP draws from where nothing else is said."""


def baseline(
    name: str, inputs: Inputs, preprocessing: Preprocessing, seed: int
) -> Float[Tensor, "batch channels height width"]:
    """Make one baseline for each picture.

    Args:
        name: One of `BASELINES`. "black" is 0 and "white" 1; "mean" is the picture's own mean brightness, each channel
            by itself, over the picture without its padding; "noise" is uniform in [0, 1] for each pixel, the same in
            every channel, since a radiograph is grey; "blur" is the picture under a Gaussian of `BLUR_SIGMA_PX`, each
            pixel a weighted mean of the picture's pixels only, so that the padding does not bleed in.
        inputs: The pictures.
        preprocessing: What `inputs` were prepared with.
        seed: Of the noise, with each picture's sha256.

    Returns:
        Baselines in the space of `pixel_values`, model-input frame.

    Raises:
        ConfigError: There is no such baseline.
    """
    if name not in BASELINES:
        near = get_close_matches(name, BASELINES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"baseline {name!r} is unknown; choose one of {', '.join(BASELINES)}.{hint}")
    pictures = preprocessing.denormalize(inputs.pixel_values)
    made = [
        BASELINES[name](picture, content, generator(seed, sha256, f"baseline/{name}"))
        for picture, content, sha256 in zip(pictures, inputs.content, inputs.sha256, strict=True)
    ]
    values = preprocessing.normalize(torch.stack(made))
    return torch.where(inputs.content[:, None], values, inputs.pixel_values)


def baseline_distribution(
    names: Sequence[str], inputs: Inputs, preprocessing: Preprocessing, seed: int
) -> Float[Tensor, "batch n_baselines channels height width"]:
    """Make several baselines for each picture, in the order of `names`.

    Args:
        names: Each one of `BASELINES`, once; `DEFAULT_DISTRIBUTION` is the usual choice.
        inputs: The pictures.
        preprocessing: What `inputs` were prepared with.
        seed: Of the noise, with each picture's sha256.

    Raises:
        ConfigError: A name is unknown or stands twice, or there is none.
    """
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            f"baselines {list(names)} make no distribution; it holds at least one name, and each once; list each name "
            "once."
        )
    return torch.stack([baseline(name, inputs, preprocessing, seed) for name in names], dim=1)


def reference_baselines(
    pictures: Sequence[Prepared], inputs: Inputs
) -> Float[Tensor, "batch n_baselines channels height width"]:
    """Take reference pictures, such as normal radiographs, as the baselines of each picture.

    Args:
        pictures: The references, prepared as `inputs` were. Where a reference is itself padded, its padding counts as
            its pixels.
        inputs: The pictures to be explained.

    Returns:
        The references' pixel_values on each picture, and the picture's own padding around it; model-input frame.

    Raises:
        InputError: There is no reference, or one has another shape than `inputs`.
    """
    shapes = sorted({tuple(picture.pixel_values.shape) for picture in pictures})
    expected = tuple(inputs.pixel_values.shape[1:])
    if shapes != [expected]:
        raise InputError(
            f"reference pictures have shapes {shapes} where the inputs have {expected}; at least one reference of the "
            "same shape is needed; prepare references and inputs with the same preprocessing."
        )
    references = torch.stack([picture.pixel_values for picture in pictures]).to(inputs.pixel_values)
    return torch.where(inputs.content[:, None, None], references[None], inputs.pixel_values[:, None])


_Picture = Float[Tensor, "channels height width"]
_Content = Bool[Tensor, "height width"]


def _black(picture: _Picture, content: _Content, draws: torch.Generator) -> _Picture:
    return torch.zeros_like(picture)


def _white(picture: _Picture, content: _Content, draws: torch.Generator) -> _Picture:
    return torch.ones_like(picture)


def _mean(picture: _Picture, content: _Content, draws: torch.Generator) -> _Picture:
    brightness = picture[:, content].mean(dim=1)
    return brightness[:, None, None].expand_as(picture)


def _noise(picture: _Picture, content: _Content, draws: torch.Generator) -> _Picture:
    # In float32 whatever torch's default is: another type would draw other numbers.
    return torch.rand(content.shape, generator=draws, dtype=torch.float32).to(picture).expand_as(picture)


def _blur(picture: _Picture, content: _Content, draws: torch.Generator) -> _Picture:
    by_row, by_column = (_gaussian(n_pixels).to(picture) for n_pixels in content.shape)
    inside = content.to(picture)
    # A pixel of the picture weighs itself by one, so only pixels far out in the padding come near zero.
    weight = (by_row @ inside @ by_column).clamp(min=torch.finfo(picture.dtype).tiny)
    return (by_row @ (picture * inside) @ by_column / weight).clamp(0, 1)


def _gaussian(n_pixels: int) -> Float[Tensor, "{n_pixels} {n_pixels}"]:
    """Build the symmetric matrix of Gaussian weights between the pixels of one axis."""
    index = torch.arange(n_pixels, dtype=torch.float64)
    return torch.exp(-((index[:, None] - index) ** 2) / (2 * BLUR_SIGMA_PX**2))


BASELINES: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "black": _black,
    "white": _white,
    "mean": _mean,
    "noise": _noise,
    "blur": _blur,
}
"""The baselines by name; each takes one picture [0, 1], its content mask and its own random numbers."""
