"""Does the model obey the map: insertion and deletion, infidelity, sensitivity, completeness."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from captum import metrics
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.errors import InputError
from mapstack.metrics.checks import check_map, check_same_shape
from mapstack.randomness import generator

Score = Callable[[Tensor], Tensor]
"""From pixel_values [batch channels height width] to one logit a picture [batch]."""

Explain = Callable[[Tensor], Tensor]
"""From pixel_values [batch channels height width] to one map a picture [batch height width]."""

_LEAST_DIFFERENCE = 0.1


@dataclass(frozen=True)
class Curve:
    """The logit along a path between two pictures.

    Attributes:
        fractions: Share of the pixels that are replaced, from 0 to 1.
        logits: The model's logit at each [logit].
    """

    fractions: Float[Tensor, " points"]
    logits: Float[Tensor, " points"]

    @property
    def auc(self) -> float:
        """The area under the curve by the trapezoidal rule [logit]: the mean logit along the path."""
        return float(torch.trapezoid(self.logits, self.fractions))


def deletion_curve(
    score: Score,
    pixel_values: Float[Tensor, "channels height width"],
    baseline: Float[Tensor, "channels height width"],
    attribution: Float[Tensor, "height width"],
    *,
    n_steps: int = 28,
    batch_size: int = 16,
) -> Curve:
    """Take away the strongest pixels first and watch the logit fall.

    A lower area is better: the logit falls as soon as the pixels that made it are gone. Equal scores go in row-major
    order. Areas compare only between maps of the same logit on the same picture.

    Args:
        score: The logit that the map explains; called without gradients.
        pixel_values: The picture, normalised, model-input frame.
        baseline: What a pixel is replaced by, same frame and normalisation.
        attribution: Signed scores [logit], same frame.
        n_steps: Number of equal shares in which the pixels go; the curve has one point more.
        batch_size: Pictures that the model sees at once.

    Raises:
        InputError: The frames differ, the map is not finite, there are more steps than pixels, or `score` does not
            answer one number a picture.

    Source:
        Petsiuk, Das, Saenko, "RISE: randomized input sampling for explanation of black-box models", BMVC 2018,
        section 4.1. Deviations: the logit, where they take the probability, which saturates; any baseline, where
        they take black.

    Example:
        >>> score = lambda pixel_values: pixel_values.sum(dim=(1, 2, 3))
        >>> picture = torch.tensor([[[4.0, 1.0], [2.0, 3.0]]])
        >>> curve = deletion_curve(score, picture, torch.zeros(1, 2, 2), picture[0], n_steps=4)
        >>> curve.logits.tolist()  # the strongest goes first
        [10.0, 6.0, 3.0, 1.0, 0.0]
        >>> curve.auc < deletion_curve(score, picture, torch.zeros(1, 2, 2), -picture[0], n_steps=4).auc
        True
    """
    return _curve(score, pixel_values, baseline, attribution, n_steps, batch_size)


def insertion_curve(
    score: Score,
    pixel_values: Float[Tensor, "channels height width"],
    baseline: Float[Tensor, "channels height width"],
    attribution: Float[Tensor, "height width"],
    *,
    n_steps: int = 28,
    batch_size: int = 16,
) -> Curve:
    """Show the strongest pixels first on the baseline and watch the logit rise.

    A higher area is better. Otherwise as `deletion_curve`, whose arguments and errors it shares.

    Source:
        Petsiuk, Das, Saenko, "RISE", BMVC 2018, section 4.1, who start from a blurred picture: give that as baseline.

    Example:
        >>> score = lambda pixel_values: pixel_values.sum(dim=(1, 2, 3))
        >>> picture = torch.tensor([[[4.0, 1.0], [2.0, 3.0]]])
        >>> insertion_curve(score, picture, torch.zeros(1, 2, 2), picture[0], n_steps=4).logits.tolist()
        [0.0, 4.0, 7.0, 9.0, 10.0]
    """
    return _curve(score, baseline, pixel_values, attribution, n_steps, batch_size)


def infidelity(
    score: Score,
    pixel_values: Float[Tensor, "channels height width"],
    baseline: Float[Tensor, "channels height width"],
    attribution: Float[Tensor, "height width"],
    *,
    sha256: str,
    multiply_by_inputs: bool,
    normalize: bool = False,
    n_perturb_samples: int = 64,
    max_examples_per_batch: int = 16,
    seed: int = 0,
) -> float:
    """Return how badly the map predicts what replacing a square by the baseline does to the logit.

    The mean of `(I . attribution - (f(x) - f(x - I)))^2` over squares at random places, of sides between 1/14 and 1/2
    of the frame's shorter one; 0 or more [logit^2], lower is better. With several channels the map is spread evenly
    over them.

    Args:
        score: The logit f that the map explains; called without gradients.
        pixel_values: The picture x, normalised, model-input frame.
        baseline: What a square is replaced by, same frame and normalisation.
        attribution: Signed scores, same frame.
        sha256: Of the picture's bytes; with `seed` it makes the squares.
        multiply_by_inputs: True where the map is in logits (integrated gradients, GradientSHAP, occlusion), so that
            the sum over the square is the prediction; False where it is in logits per unit of pixel_values
            (gradients), so that it is first multiplied by the difference to the baseline.
        normalize: Whether the map is first multiplied by the number that fits best, so that maps of different scale
            compare. That number may be negative: the sign of the map is then not judged.
        n_perturb_samples: Number of squares.
        max_examples_per_batch: Pictures that the model sees at once.
        seed: Of the squares.

    Raises:
        InputError: The frames differ, or the map is not finite.

    Source:
        Yeh, Hsieh, Suggala, Inouye, Ravikumar, "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019,
        eq. 1 with the square removal of section 2.3, by `captum.metrics.infidelity`.
    """
    _check_frames(pixel_values, baseline, attribution)
    n_channels, height, width = pixel_values.shape
    draws = generator(seed, sha256, "infidelity")

    def remove_square(inputs: Tensor) -> tuple[Tensor, Tensor]:
        squares = torch.stack([_square(height, width, draws) for _ in range(len(inputs))])[:, None].to(inputs.device)
        removed = torch.where(squares, baseline, inputs)
        return squares.expand_as(inputs).to(inputs) if multiply_by_inputs else inputs - removed, removed

    values = metrics.infidelity(
        score,
        remove_square,
        pixel_values[None],
        (attribution / n_channels).expand(1, n_channels, height, width).to(pixel_values),
        n_perturb_samples=n_perturb_samples,
        # Captum warns where a batch could hold more than all samples.
        max_examples_per_batch=min(max_examples_per_batch, n_perturb_samples),
        normalize=normalize,
    )
    return float(values[0])


def max_sensitivity(
    explain: Explain,
    pixel_values: Float[Tensor, "channels height width"],
    *,
    sha256: str,
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    max_examples_per_batch: int = 4,
    seed: int = 0,
) -> float:
    """Return the greatest change of the map, relative to its norm, under noise too weak to see.

    The maximum of `|map(x + noise) - map(x)| / |map(x)|`; 0 or more, lower is better: a map that changes where the
    picture hardly does explains little. The maximum is over the draws, hence a lower bound.

    Args:
        explain: Makes the maps; it seeds its own draws with the picture's sha256, not with that of the noisy copies,
            or what is measured is another draw of the method.
        pixel_values: The picture, normalised, model-input frame.
        sha256: Of the picture's bytes; with `seed` it makes the noise.
        perturb_radius: Greatest change of a value [pixel_values].
        n_perturb_samples: Number of noisy copies.
        max_examples_per_batch: Copies that are explained at once.
        seed: Of the noise.

    Raises:
        InputError: The picture holds NaN or infinity.

    Source:
        Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019, definition 3.1 over an
        L-infinity ball, by `captum.metrics.sensitivity_max` with its default radius and number.
    """
    _check_picture(pixel_values)
    draws = generator(seed, sha256, "max_sensitivity")

    def add_noise(inputs: Tensor) -> Tensor:
        noise = torch.stack([torch.rand(inputs.shape[1:], generator=draws) for _ in range(len(inputs))])
        return inputs + (perturb_radius * (2 * noise - 1)).to(inputs)

    def explain_in_tuples(inputs: Tensor | tuple[Tensor]) -> tuple[Tensor]:
        # Captum hands over the picture in a tuple and its noisy copies without one, and takes only tuples back.
        (expanded,) = inputs if isinstance(inputs, tuple) else (inputs,)
        return (explain(expanded).contiguous(),)

    values = metrics.sensitivity_max(
        explain_in_tuples,
        pixel_values[None],
        perturb_func=add_noise,
        n_perturb_samples=n_perturb_samples,
        max_examples_per_batch=min(max_examples_per_batch, n_perturb_samples),
    )
    return float(values[0])


def completeness_residual(attribution: Float[Tensor, "height width"], difference: float) -> float:
    """Return by how much the map's sum misses what it explains.

    `|sum - difference| / max(|difference|, 0.1)`; 0 or more, lower is better, 0 is complete.

    Args:
        attribution: Signed scores [logit], any frame.
        difference: The logit at the picture less that at the baseline [logit].

    Raises:
        InputError: The map is not finite.

    Source:
        Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, axiom of completeness. The
        floor of 0.1 logit, which keeps the share meaningful where there is nothing to explain, is ours.

    Example:
        >>> completeness_residual(torch.tensor([[1.0, 0.5]]), difference=2.0)
        0.25
    """
    check_map(attribution)
    return abs(float(attribution.double().sum()) - difference) / max(abs(difference), _LEAST_DIFFERENCE)


def _curve(score: Score, start: Tensor, end: Tensor, attribution: Tensor, n_steps: int, batch_size: int) -> Curve:
    _check_frames(start, end, attribution)
    n_pixels = attribution.numel()
    if not 1 <= n_steps <= n_pixels:
        raise InputError(f"n_steps is {n_steps}; each step replaces at least one of {n_pixels} pixels; give fewer.")
    order = attribution.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(n_pixels, device=order.device))
    rank = rank.reshape(attribution.shape).to(start.device)
    counts = [round(step * n_pixels / n_steps) for step in range(n_steps + 1)]
    logits = []
    for first in range(0, len(counts), batch_size):
        n_replaced = torch.tensor(counts[first : first + batch_size], device=start.device)
        replaced = rank < n_replaced[:, None, None]
        logits.append(_logits(score, torch.where(replaced[:, None], end, start)))
    return Curve(torch.tensor(counts, dtype=torch.float64) / n_pixels, torch.cat(logits))


def _logits(score: Score, pixel_values: Tensor) -> Float[Tensor, " batch"]:
    with torch.no_grad():
        logits = score(pixel_values)
    if logits.shape != pixel_values.shape[:1]:
        raise InputError(
            f"score answered shape {tuple(logits.shape)} for {len(pixel_values)} pictures; it answers one logit a "
            "picture; choose one text."
        )
    return logits.double().cpu()


def _check_picture(pixel_values: Tensor) -> None:
    if pixel_values.ndim != 3 or not pixel_values.isfinite().all():
        raise InputError(
            f"pixel_values of shape {tuple(pixel_values.shape)} are no picture; it is (channels, height, width) and "
            "finite; give one picture at a time."
        )


def _check_frames(pixel_values: Tensor, baseline: Tensor, attribution: Tensor) -> None:
    check_map(attribution)
    _check_picture(pixel_values)
    check_same_shape(baseline, pixel_values, ("baseline", "pixel_values"))
    check_same_shape(attribution, pixel_values[0], ("attribution", "a channel"))


def _square(height: int, width: int, draws: torch.Generator) -> Bool[Tensor, "height width"]:
    shorter = min(height, width)
    least, most = max(1, shorter // 14), max(1, shorter // 2)
    side = int(torch.randint(least, most + 1, (), generator=draws))
    top = int(torch.randint(height - side + 1, (), generator=draws))
    left = int(torch.randint(width - side + 1, (), generator=draws))
    square = torch.zeros(height, width, dtype=torch.bool)
    square[top : top + side, left : left + side] = True
    return square
