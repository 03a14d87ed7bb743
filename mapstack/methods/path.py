"""Methods that average gradients along paths from a baseline: integrated gradients and GradientSHAP."""

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.baselines import DEFAULT_DISTRIBUTION, baseline, baseline_distribution, reference_baselines
from mapstack.errors import ConfigError
from mapstack.images import Inputs, Prepared, Preprocessing, prepare, read
from mapstack.methods.base import Attribution, Method
from mapstack.methods.engine import gradients_of_parts, points_at_once
from mapstack.models.base import EmbeddingModel, normalised
from mapstack.randomness import generator
from mapstack.readouts import Readout


@dataclass(frozen=True)
class Points:
    """Where gradients are taken: point j belongs to picture `index[j]` and adds `weight[j] * step[j] * gradient`."""

    index: Tensor
    position: Float[Tensor, "points channels height width"]
    step: Float[Tensor, "points channels height width"]
    weight: Float[Tensor, " points"]


def integrate(
    model: EmbeddingModel,
    points: Iterator[Points],
    readout: Readout,
    *,
    n_pictures: int,
    rows_per_pass: int | None,
) -> Float[Tensor, "batch rows height width"]:
    """Sum `weight * step * gradient` over the points of each picture and over colour channels."""
    values: Tensor | None = None
    for chunk in points:
        if values is None:
            height, width = chunk.position.shape[-2:]
            values = chunk.position.new_zeros(n_pictures, readout.n_rows, height, width)
        scaled = chunk.step * chunk.weight[:, None, None, None]
        parts = gradients_of_parts(model, chunk.position, readout, rows_per_pass=rows_per_pass)
        for part, (_, gradients) in parts:
            for rows, gradient in gradients:
                terms = (gradient * scaled[part]).sum(dim=2).transpose(0, 1)
                values[:, rows].index_add_(0, chunk.index[part], terms)
    if values is None:
        raise RuntimeError("a path without points has no integral.")
    return values


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """The gradient integrated along the straight line from a baseline, times the difference to it.

    Complete in the limit of `n_steps`: the map sums to readout(picture) - readout(baseline).

    Attributes:
        n_steps: Points of the quadrature, or "auto": points are doubled for each picture until the completeness
            residual is at most `tolerance` of max(|readout(picture) - readout(baseline)|, 0.1), or `max_steps` is
            reached. The test costs one forward-mode derivative a point for all rows together.
        baseline: "black", "white", "mean", "noise" or "blur" (`mapstack.baselines`).
        tolerance: Share of the explained difference that "auto" accepts.
        max_steps: Where "auto" gives up, and says so.
        internal_batch_size: Points that are run at once; None takes what the device does best with.
        rows_per_pass: Rows that one batched vector-Jacobian product takes; None likewise.

    Source:
        Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, eq. 1, by Gauss-Legendre
        quadrature as `captum.attr.IntegratedGradients` does by default.
    """

    n_steps: int | str = 20
    baseline: str = "black"
    tolerance: float = 0.01
    max_steps: int = 320
    internal_batch_size: int | None = None
    rows_per_pass: int | None = None

    name = "integrated_gradients"
    completeness = "in the limit of n_steps"

    def __post_init__(self) -> None:
        """Refuse a number of points that is none.

        Raises:
            ConfigError: `n_steps` is neither a positive number nor "auto".
        """
        if self.n_steps != "auto" and not (isinstance(self.n_steps, int) and self.n_steps > 0):
            raise ConfigError(f"method.n_steps is {self.n_steps!r}; it must be a positive number or auto; correct it.")

    def _attribute(
        self, model: EmbeddingModel, inputs: Inputs, readout: Readout, *, seed: int, check: Readout
    ) -> Attribution:
        end = inputs.pixel_values
        start = baseline(self.baseline, inputs, model.preprocessing, seed).to(end)
        with torch.no_grad():
            embedding, at_start = model.embed_images(end), model.embed_images(start)
        chosen = [self._choose_steps(model, *pair, check) for pair in zip(start, end, strict=True)]
        n_steps = tuple(n for n, _ in chosen)
        points = self._points(start, end, n_steps, readout.n_rows)
        values = integrate(model, points, readout, n_pictures=len(end), rows_per_pass=self.rows_per_pass)
        return Attribution(
            values,
            embedding,
            baseline_readout=readout(at_start),
            baseline_embedding=normalised(at_start) if readout.normalize else at_start,
            n_steps=n_steps,
            is_converged=tuple(is_converged for _, is_converged in chosen) if self.n_steps == "auto" else (),
        )

    def _points(self, start: Tensor, end: Tensor, n_steps: Sequence[int], n_rows: int) -> Iterator[Points]:
        n_at_once = points_at_once(self.internal_batch_size, n_rows, end.device)
        pairs = [(i, position, weight) for i, n in enumerate(n_steps) for position, weight in gauss_legendre(n)]
        for first in range(0, len(pairs), n_at_once):
            index, position, weight = zip(*pairs[first : first + n_at_once], strict=True)
            picture = torch.tensor(index, device=end.device)
            step = (end - start)[picture]
            along = end.new_tensor(position)[:, None, None, None]
            yield Points(picture, start[picture] + along * step, step, end.new_tensor(weight))

    def _choose_steps(self, model: EmbeddingModel, start: Tensor, end: Tensor, check: Readout) -> tuple[int, bool]:
        if isinstance(self.n_steps, int):
            return self.n_steps, False
        with torch.no_grad():
            difference = check(model.embed_images(end[None]))[0] - check(model.embed_images(start[None]))[0]
        allowed = self.tolerance * difference.abs().clamp(min=0.1)
        n_steps = min(16, self.max_steps)
        while True:
            total = self._integral_of_slope(model, start, end, check, n_steps)
            if bool(((total - difference).abs() <= allowed).all()):
                return n_steps, True
            if n_steps == self.max_steps:
                return n_steps, False
            n_steps = min(2 * n_steps, self.max_steps)

    def _integral_of_slope(
        self, model: EmbeddingModel, start: Tensor, end: Tensor, check: Readout, n_steps: int
    ) -> Float[Tensor, " rows"]:
        """Integrate d readout / d position: what each row of the map would sum to, without making the map."""
        _warm_up_forward_mode()

        def read(points: Tensor) -> Tensor:
            return check(model.embed_images(points))

        total: Tensor = torch.zeros(check.n_rows, dtype=end.dtype, device=end.device)
        for chunk in self._points(start[None], end[None], [n_steps], 1):
            slope = torch.func.jvp(read, (chunk.position,), (chunk.step,))[1]
            total = total + chunk.weight @ slope
        return total.detach()


@dataclass(frozen=True)
class GradientShap(Method):
    """The mean over random draws of gradient times (noisy picture - baseline) at a random point between the two.

    Complete in expectation. All rows share the draws of a picture, which come from the run's seed and the picture's
    bytes: without that, two rows would be explained under different noise and the method would not be linear.

    Attributes:
        n_samples: Draws for each picture.
        stdevs: Standard deviation of the noise on the picture, in units of normalised brightness. The padding gets
            none.
        baselines: What the draws choose from, any of "black", "white", "mean", "noise" or "blur".
        reference_pictures: Paths of PNG or JPEG files, such as normal radiographs, that they choose from instead.
        internal_batch_size: Draws that are run at once; None takes what the device does best with.
        rows_per_pass: Rows that one batched vector-Jacobian product takes; None likewise.

    Source:
        Lundberg, Lee, "A unified approach to interpreting model predictions", NeurIPS 2017, as
        `captum.attr.GradientShap`, which draws anew at every call.
    """

    n_samples: int = 20
    stdevs: float = 0.09
    baselines: tuple[str, ...] = DEFAULT_DISTRIBUTION
    reference_pictures: tuple[str, ...] = ()
    internal_batch_size: int | None = None
    rows_per_pass: int | None = None

    name = "gradient_shap"
    completeness = "in expectation"

    def _attribute(
        self, model: EmbeddingModel, inputs: Inputs, readout: Readout, *, seed: int, check: Readout
    ) -> Attribution:
        pixel_values = inputs.pixel_values
        candidates = self._candidates(inputs, model.preprocessing, seed).to(pixel_values)
        draws = [
            draw_shap(self, seed, sha256, content, n_baselines=candidates.shape[1])
            for sha256, content in zip(inputs.sha256, inputs.content, strict=True)
        ]
        with torch.no_grad():
            embedding = model.embed_images(pixel_values)
            at_baselines = torch.stack([model.embed_images(each) for each in candidates])
        points = self._points(pixel_values, candidates, draws, readout.n_rows)
        values = integrate(model, points, readout, n_pictures=len(inputs), rows_per_pass=self.rows_per_pass)
        chosen = torch.stack([at_baselines[i, draw.choice] for i, draw in enumerate(draws)])
        return Attribution(
            values,
            embedding,
            baseline_readout=readout(chosen).mean(dim=1),
            baseline_embedding=(normalised(chosen) if readout.normalize else chosen).mean(dim=1),
        )

    def describe(self) -> dict[str, Any]:
        """Name the reference pictures by their content, wherever they lie."""
        digests = [read(path).sha256 for path in self.reference_pictures]
        return {**super().describe(), "reference_pictures": digests}

    def _candidates(
        self, inputs: Inputs, preprocessing: Preprocessing, seed: int
    ) -> Float[Tensor, "batch n_baselines channels height width"]:
        if not self.reference_pictures:
            return baseline_distribution(self.baselines, inputs, preprocessing, seed)
        return reference_baselines(_prepare_references(self.reference_pictures, preprocessing), inputs)

    def _points(
        self, pixel_values: Tensor, candidates: Tensor, draws: Sequence["ShapDraws"], n_rows: int
    ) -> Iterator[Points]:
        n_at_once = points_at_once(self.internal_batch_size, n_rows, pixel_values.device)
        pairs = [(i, k) for i in range(len(pixel_values)) for k in range(self.n_samples)]
        for first in range(0, len(pairs), n_at_once):
            chunk = pairs[first : first + n_at_once]
            noisy = torch.stack([pixel_values[i] + draws[i].noise[k].to(pixel_values) for i, k in chunk])
            origin = torch.stack([candidates[i, draws[i].choice[k]] for i, k in chunk])
            along = torch.stack([draws[i].position[k] for i, k in chunk]).to(pixel_values)[:, None, None, None]
            index = torch.tensor([i for i, _ in chunk], device=pixel_values.device)
            weight = pixel_values.new_full((len(chunk),), 1 / self.n_samples)
            yield Points(index, origin + along * (noisy - origin), noisy - origin, weight)


@dataclass(frozen=True)
class ShapDraws:
    """The random draws of GradientSHAP for one picture: noise, place on the path, and which baseline."""

    noise: Float[Tensor, "samples 1 height width"]
    position: Float[Tensor, " samples"]
    choice: Tensor


def draw_shap(method: GradientShap, seed: int, sha256: str, content: Tensor, *, n_baselines: int) -> ShapDraws:
    """Draw for one picture, on the CPU, so that every device and every rank sees the same.

    Args:
        method: Numbers of draws and their scale.
        seed: Of the run.
        sha256: Of the picture's bytes.
        content: Boolean `[height, width]`, True where there is picture and not padding.
        n_baselines: How many baselines there are to choose from.
    """
    source = generator(seed, sha256, "gradient_shap")
    n, (height, width) = method.n_samples, content.shape
    # In float32 whatever torch's default is: another type would draw other numbers.
    noise = torch.randn(n, 1, height, width, generator=source, dtype=torch.float32) * method.stdevs * content.cpu()
    position = torch.rand(n, generator=source, dtype=torch.float32)
    choice = torch.randint(n_baselines, (n,), generator=source)
    return ShapDraws(noise, position, choice)


@functools.lru_cache(maxsize=4)
def _prepare_references(paths: tuple[str, ...], preprocessing: Preprocessing) -> list[Prepared]:
    return [prepare(read(path), preprocessing) for path in paths]


@functools.cache
def _warm_up_forward_mode() -> None:
    """Make torch load its forward-mode formulas, which warns of a deprecation inside torch itself (2.15)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def gauss_legendre(n_steps: int) -> list[tuple[float, float]]:
    """Return (position, weight) of the n-point Gauss-Legendre rule on [0, 1].

    Example:
        >>> gauss_legendre(1)
        [(0.5, 1.0)]
    """
    roots, weights = np.polynomial.legendre.leggauss(n_steps)
    return [((1 + float(root)) / 2, float(weight) / 2) for root, weight in zip(roots, weights, strict=True)]
