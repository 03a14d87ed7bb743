"""Occlusion in factored form: one sweep of embeddings, expanded to pixels only when a map is asked for."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mapstack.baselines import baseline
from mapstack.errors import InputError
from mapstack.images import Inputs
from mapstack.methods.base import Attribution, Method
from mapstack.methods.engine import embed_by_parts
from mapstack.models.base import EmbeddingModel, normalised
from mapstack.models.precision import float32_convolutions
from mapstack.readouts import Readout


@dataclass(frozen=True)
class Windows:
    """The grid of sliding windows over a square picture.

    Window (i, j) covers rows `[i * stride, i * stride + size)` and columns alike, cut at the frame's edge.

    Attributes:
        image_size: Side of the model-input frame [px].
        size: Side of a window [px] (Captum's `sliding_window_shapes`).
        stride: Step between windows [px] (Captum's `strides`).
    """

    image_size: int
    size: int
    stride: int

    @property
    def n_per_side(self) -> int:
        """Windows along one side; the last one may reach over the edge."""
        return max(0, -(-(self.image_size - self.size) // self.stride)) + 1

    def __len__(self) -> int:
        return self.n_per_side**2

    @property
    def density(self) -> float:
        """One over the pixels of a window: spreads a window's score over them, so that it is counted once."""
        return 1.0 / self.size**2

    def region(self, index: int) -> tuple[slice, slice]:
        """Return the rows and columns of window number `index`, in row-major order."""
        row, column = divmod(index, self.n_per_side)
        top, left = row * self.stride, column * self.stride
        return slice(top, top + self.size), slice(left, left + self.size)

    def expand(self, scores: Float[Tensor, "batch rows windows"]) -> Float[Tensor, "batch rows height width"]:
        """Give each pixel the mean score of the windows that cover it, as Captum does.

        Example:
            >>> Windows(image_size=4, size=2, stride=2).expand(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))[0, 0, :, ::2]
            tensor([[1., 2.],
                    [1., 2.],
                    [3., 4.],
                    [3., 4.]])
        """
        batch, rows, _ = scores.shape
        grid = scores.reshape(batch * rows, 1, self.n_per_side, self.n_per_side)
        kernel = scores.new_ones(1, 1, self.size, self.size)
        # Captum leaves pixels that no window covers (a stride beyond the size) at zero; 1 avoids 0/0 there.
        coverage = F.conv_transpose2d(torch.ones_like(grid[:1]), kernel, stride=self.stride).clamp(min=1)
        spread = F.conv_transpose2d(grid, kernel, stride=self.stride) / coverage
        missing = max(0, self.image_size - spread.shape[-1])
        framed = F.pad(spread, (0, missing, 0, missing))[..., : self.image_size, : self.image_size]
        return framed.reshape(batch, rows, self.image_size, self.image_size)


@dataclass(frozen=True)
class Sweep:
    """The embeddings of one sweep: all that occlusion knows of a batch of pictures, for every readout.

    Attributes:
        embedding: Raw `I_p` of the pictures.
        occluded: Raw `I_p` with each window replaced by the baseline.
        at_baseline: Raw `I_p` of the baseline picture.
        windows: The grid.
    """

    embedding: Float[Tensor, "batch embed_dim"]
    occluded: Float[Tensor, "batch windows embed_dim"]
    at_baseline: Float[Tensor, "batch embed_dim"]
    windows: Windows

    def scores(self, readout: Readout) -> Float[Tensor, "batch rows windows"]:
        """Return what each window's occlusion takes from each row of a readout."""
        return (readout(self.embedding)[:, None] - readout(self.occluded)).transpose(1, 2)


@dataclass(frozen=True)
class Occlusion(Method):
    """The fall of each row when a window of the picture is replaced by the baseline.

    All colour channels of a window are replaced together, and a pixel's score is counted once, whatever the number
    of channels. One sweep serves every readout, raw and normalised alike.

    Attributes:
        sliding_window_shapes: Side of the square window [px], model-input frame.
        strides: Step between windows [px].
        baseline: "black", "white", "mean", "noise" or "blur" (`mapstack.baselines`).
        perturbations_per_eval: Windows that are run at once; None takes what the device does best with.

    Source:
        Zeiler, Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, as
        `captum.attr.Occlusion`.
    """

    sliding_window_shapes: int = 16
    strides: int = 16
    baseline: str = "black"
    perturbations_per_eval: int | None = None

    name = "occlusion"
    one_stack_serves_both = True

    @property
    def density(self) -> float:
        """One over the pixels of a window, each of which carries the whole score of the window."""
        return 1.0 / self.sliding_window_shapes**2

    def windows(self, image_size: int) -> Windows:
        """Return the grid for a model's frame.

        Raises:
            InputError: The window is larger than the frame.
        """
        if self.sliding_window_shapes > image_size:
            raise InputError(
                f"sliding_window_shapes is {self.sliding_window_shapes} px and the model-input frame {image_size} px; "
                "a window fits in the frame; choose a smaller one."
            )
        return Windows(image_size, self.sliding_window_shapes, self.strides)

    @torch.no_grad()
    @float32_convolutions()
    def sweep(self, model: EmbeddingModel, inputs: Inputs, *, seed: int = 0) -> Sweep:
        """Embed the pictures, their baselines, and the pictures with each window occluded."""
        pixel_values = inputs.pixel_values
        replacement = baseline(self.baseline, inputs, model.preprocessing, seed).to(pixel_values)
        windows = self.windows(pixel_values.shape[-1])
        occluded = torch.stack(
            [self._sweep_one(model, *pair, windows) for pair in zip(pixel_values, replacement, strict=True)]
        )
        return Sweep(model.embed_images(pixel_values), occluded, model.embed_images(replacement), windows)

    def _sweep_one(
        self, model: EmbeddingModel, picture: Tensor, replacement: Tensor, windows: Windows
    ) -> Float[Tensor, "windows embed_dim"]:
        embed_variants = model.variant_embedder(picture)

        def embed(numbers: slice) -> Tensor:
            batch = picture.repeat(numbers.stop - numbers.start, 1, 1, 1)
            for each, number in zip(batch, range(numbers.start, numbers.stop), strict=True):
                rows, columns = windows.region(number)
                each[:, rows, columns] = replacement[:, rows, columns]
            return embed_variants(batch)

        return embed_by_parts(model, len(windows), embed, self.perturbations_per_eval)

    def _attribute(
        self, model: EmbeddingModel, inputs: Inputs, readout: Readout, *, seed: int, check: Readout
    ) -> Attribution:
        sweep = self.sweep(model, inputs, seed=seed)
        return Attribution(
            sweep.windows.expand(sweep.scores(readout)),
            sweep.embedding,
            baseline_readout=readout(sweep.at_baseline),
            baseline_embedding=normalised(sweep.at_baseline) if readout.normalize else sweep.at_baseline,
        )
