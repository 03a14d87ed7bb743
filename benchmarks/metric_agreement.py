"""Do the metrics agree with other people's code: Quantus, pycocotools, OpenCV, SciPy and scikit-image?

Quantus is under the LGPL, which keeps it out of the package and its requirements. To run this, in any environment that
has mapstack:

    pip install quantus pycocotools
    python benchmarks/metric_agreement.py

It prints a table, says where definitions differ on purpose, and ends with one JSON line. It exits with 1 where two
implementations of the same definition differ by more than 1e-5, or that share of a number above 1.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import quantus
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from scipy import stats
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from mapstack.images import Preprocessing
from mapstack.metrics.faithfulness import deletion_curve, infidelity, insertion_curve, max_sensitivity
from mapstack.metrics.localisation import pointing_game_hit, relevance_mass_accuracy, relevance_rank_accuracy
from mapstack.metrics.rle import EncodedMask, decode_mask, encode_mask
from mapstack.metrics.sanity import cascade
from mapstack.metrics.segmentation import fill_outer_contours, otsu_level
from mapstack.metrics.similarity import pearson, spearman, ssim
from mapstack.models import EmbeddingModel

SEED, N_CASES, SIDE = 0, 200, 24
TOLERANCE = 1e-5
QUIET: dict[str, Any] = {"normalise": False, "abs": False, "disable_warnings": True}
SAMPLES: dict[str, Any] = {"sha256": "ab" * 32, "n_perturb_samples": 12}

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """How far two implementations lie apart.

    Args:
        metric: Ours.
        against: Theirs.
        n_cases: Numbers compared.
        n_different: How many of them differ by more than the tolerance.
        largest_difference: In the metric's own unit; of numbers above 1, as a share of theirs.
        purpose: Where definitions differ on purpose, how; empty where they are the same.
    """

    metric: str
    against: str
    n_cases: int
    n_different: int
    largest_difference: float
    purpose: str

    @property
    def is_as_wanted(self) -> bool:
        """Whether equal definitions gave equal numbers."""
        return bool(self.purpose) or self.n_different == 0


def compare(metric: str, against: str, ours: Any, theirs: Any, purpose: str = "") -> Agreement:
    """Compare two lists of numbers, in the order of the cases."""
    first, second = (np.asarray(each, dtype=float).ravel() for each in (ours, theirs))
    differences = np.abs(first - second) / np.maximum(1, np.abs(second))
    n_different, largest = int((differences > TOLERANCE).sum()), float(differences.max())
    return Agreement(metric, against, len(differences), n_different, largest, purpose)


class Curved(nn.Module):
    """A smooth model of two logits for a picture of one channel, whose layers can be drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 5, stride=2)
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 8 * 8, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return two logits a picture."""
        hidden = torch.tanh(self.body(torch.tanh(self.stem(pixel_values))))
        logits: Tensor = self.head(hidden.flatten(1))
        return logits

    def score(self, pixel_values: Tensor) -> Tensor:
        """Return the logit that is explained."""
        return self(pixel_values)[:, 1]


class CurvedTower(EmbeddingModel):
    """The same model as an image half."""

    preprocessing = Preprocessing(SIDE, (0.5,), (0.5,), fit="pad")
    embed_dim = 2

    def __init__(self, model: Curved) -> None:
        super().__init__()
        self.model = model
        self.text = nn.Module()  # type: ignore[assignment]

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """Return the logits in place of an embedding."""
        return self.model(pixel_values)


def gradient_maps(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return the gradient of the explained logit, one map a picture."""
    with torch.enable_grad():
        leaf = pixel_values.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    return gradient[:, 0]


def draws(stream: int) -> torch.Generator:
    """Return random numbers of their own for each comparison."""
    return torch.Generator().manual_seed(1000 * SEED + stream)


def random_cases(stream: int, n_levels: int = 0) -> tuple[Tensor, Tensor]:
    """Draw signed maps, with many equal scores where `n_levels` is given, and masks of 1 to a third of the pixels."""
    source = draws(stream)
    maps = torch.randn(N_CASES, SIDE, SIDE, generator=source)
    if n_levels:
        maps = (maps * n_levels).round() / n_levels
    masks = torch.rand(N_CASES, SIDE, SIDE, generator=source) < torch.rand(N_CASES, 1, 1, generator=source) / 3
    masks[:, 0, 0] |= ~masks.flatten(1).any(dim=1)
    return maps, masks


def by_quantus(metric: Any, maps: Tensor, masks: Tensor) -> list[float]:
    """Score maps against masks by one of Quantus' localisation metrics."""
    pictures = np.zeros((len(maps), 1, SIDE, SIDE), np.float32)
    regions = masks[:, None].numpy().astype(int)
    scores = metric(None, pictures, None, maps[:, None].numpy(), regions, channel_first=True)
    return [float(score) for score in scores]


def of_pairs(metric: Callable[[Tensor, Tensor], Any], first: Tensor, second: Tensor) -> list[float]:
    """Score pairs by one of our metrics."""
    return [float(metric(a, b)) for a, b in zip(first, second, strict=True)]


def localisation() -> Iterator[Agreement]:
    """Pointing game, relevance mass, relevance rank."""
    (maps, masks), (tied, tied_masks) = random_cases(1), random_cases(2, n_levels=2)
    point, mass = quantus.PointingGame(**QUIET), quantus.RelevanceMassAccuracy(**QUIET)
    rank = quantus.RelevanceRankAccuracy(**QUIET)
    inside = quantus.AttributionLocalisation(positive_attributions=True, **QUIET)

    name = "pointing game"
    yield compare(name, "Quantus", of_pairs(pointing_game_hit, maps, masks), by_quantus(point, maps, masks))
    purpose = "of several maxima the first in row-major order counts; Quantus takes any of them"
    ours = of_pairs(pointing_game_hit, tied, tied_masks)
    yield compare(f"{name}, equal scores", "Quantus", ours, by_quantus(point, tied, tied_masks), purpose)

    name, ours = "relevance mass", of_pairs(relevance_mass_accuracy, maps, masks)
    yield compare(name, "Quantus, positive part", ours, by_quantus(mass, maps.clamp(min=0), masks))
    yield compare(name, "Quantus AttributionLocalisation", ours, by_quantus(inside, maps, masks))
    purpose = "the positive part alone has mass; Quantus divides signed sums, which leaves [0, 1]"
    yield compare(f"{name}, signed", "Quantus", ours, by_quantus(mass, maps, masks), purpose)

    # Masks are smaller than the positive part, so that its ranks and those of all scores are the same.
    name = "relevance rank"
    yield compare(name, "Quantus", of_pairs(relevance_rank_accuracy, maps, masks), by_quantus(rank, maps, masks))
    purpose = "equal scores at the last rank fill it by equal shares; Quantus leaves them to the order of a sort"
    ours = of_pairs(relevance_rank_accuracy, tied, tied_masks)
    yield compare(f"{name}, equal scores", "Quantus", ours, by_quantus(rank, tied, tied_masks), purpose)


def curves() -> Iterator[Agreement]:
    """Deletion and insertion, against pixel flipping with a picture as the replacement."""
    torch.manual_seed(SEED)
    model, n_steps, n_pictures = Curved().eval(), 36, 40
    pictures, baselines = torch.randn(2, n_pictures, 1, SIDE, SIDE, generator=draws(3))
    maps = torch.randn(n_pictures, SIDE, SIDE, generator=draws(4))
    purpose = (
        "the area is the mean logit from the unchanged picture on; Quantus' begins after the first step (computed here "
        "from its curve: it calls numpy.trapz, which numpy 2.4 no longer has)"
    )
    cases = (("deletion", deletion_curve, pictures, baselines), ("insertion", insertion_curve, baselines, pictures))
    for name, curve, start, end in cases:
        replace = partial(replace_pixels, by=end.flatten(1).numpy())
        flipping = quantus.PixelFlipping(features_in_step=SIDE**2 // n_steps, perturb_func=replace, **QUIET)
        targets = np.ones(n_pictures, int)
        theirs = np.array(flipping(model, start.numpy(), targets, a_batch=maps[:, None].numpy(), softmax=False))
        ours = [
            curve(model.score, picture, baseline, scores, n_steps=n_steps)
            for picture, baseline, scores in zip(pictures, baselines, maps, strict=True)
        ]
        points = [answer.logits[1:].tolist() for answer in ours]
        yield compare(f"{name}, curve", "Quantus PixelFlipping", points, theirs)
        areas = torch.trapezoid(torch.from_numpy(theirs)).numpy() / (n_steps - 1)
        yield compare(f"{name}, area", "Quantus PixelFlipping", [answer.auc for answer in ours], areas, purpose)


def replace_pixels(arr: Pixels, indices: NDArray[Any], by: Pixels, **_: Any) -> Pixels:
    """Replace pixels by those of another picture, as Quantus asks for perturbations: flat, a row a picture."""
    replaced = arr.copy()
    np.put_along_axis(replaced, indices, np.take_along_axis(by, indices, axis=1), axis=1)
    return replaced


def perturbations() -> Iterator[Agreement]:
    """Infidelity and max-sensitivity: Quantus is given the very pictures that our model saw."""
    torch.manual_seed(SEED)
    model, source = Curved().eval(), draws(5)
    pairs: dict[str, list[tuple[float, float]]] = {"infidelity": [], "max-sensitivity": []}
    for _ in range(20):
        picture, baseline = torch.randn(2, 1, SIDE, SIDE, generator=source)
        scores = torch.randn(SIDE, SIDE, generator=source)
        pairs["infidelity"].append(both_infidelities(model, picture, baseline, scores))
        pairs["max-sensitivity"].append(both_sensitivities(model, picture))
    for name, values in pairs.items():
        ours, theirs = zip(*values, strict=True)
        yield compare(f"{name}, same perturbations", "Quantus", ours, theirs)


def both_infidelities(model: Curved, picture: Tensor, baseline: Tensor, scores: Tensor) -> tuple[float, float]:
    """Return ours and Quantus', which walks over a grid of patches by itself: here one patch, n times."""
    seen: list[Tensor] = []

    def score(pixel_values: Tensor) -> Tensor:
        seen.extend(pixel_values)
        return model.score(pixel_values)

    ours = infidelity(score, picture, baseline, scores, multiply_by_inputs=False, **SAMPLES)
    one_patch = {"perturb_patch_sizes": [SIDE], "n_perturb_samples": SAMPLES["n_perturb_samples"]}
    metric = quantus.Infidelity(perturb_func=one_by_one(seen, picture), **one_patch, **QUIET)
    return ours, ask(metric, model, picture, scores)


def both_sensitivities(model: Curved, picture: Tensor) -> tuple[float, float]:
    """Return ours and Quantus', of the gradient."""
    seen: list[Tensor] = []

    def explain(pixel_values: Tensor) -> Tensor:
        seen.extend(pixel_values)
        return gradient_maps(model, pixel_values)

    ours = max_sensitivity(explain, picture, perturb_radius=0.2, **SAMPLES)
    n_samples = SAMPLES["n_perturb_samples"]
    metric = quantus.MaxSensitivity(nr_samples=n_samples, perturb_func=one_by_one(seen, picture), **QUIET)
    return ours, ask(metric, model, picture, gradient_maps(model, picture[None])[0])


def one_by_one(seen: Sequence[Tensor], picture: Tensor) -> Callable[..., Pixels]:
    """Return a perturbation that gives one changed picture after the other, whatever it is asked to change."""
    changed = iter([each for each in seen if not torch.equal(each, picture)])
    return lambda arr, **_: next(changed).reshape(arr.shape).numpy()


def ask(metric: Any, model: Curved, picture: Tensor, scores: Tensor) -> float:
    """Score one picture by a metric of Quantus that runs the model."""
    maps = scores[None, None].numpy()
    (answer,) = metric(model, picture[None].numpy(), np.ones(1, int), a_batch=maps, explain_func=explain_for_quantus)
    return float(answer)


def explain_for_quantus(model: Curved, inputs: Pixels, targets: NDArray[Any], **_: Any) -> Pixels:
    """Return gradients as Quantus asks for them."""
    maps: Pixels = gradient_maps(model, torch.from_numpy(inputs))[:, None].numpy()
    return maps


def randomisation() -> Iterator[Agreement]:
    """The cascade step by step, with our new weights: each draws its own, and maps of others would differ."""
    torch.manual_seed(SEED)
    model, pictures = Curved().eval(), torch.randn(20, 1, SIDE, SIDE, generator=draws(6))
    known = gradient_maps(model, pictures)
    steps: dict[str, Any] = {
        name.removeprefix("model."): step.model for name, step in cascade(CurvedTower(model), seed=SEED)
    }
    ours = [of_pairs(spearman, known, gradient_maps(step, pictures)) for step in steps.values()]
    *_, last = steps.values()
    layers: dict[str, Any] = dict(model.named_children())
    for name, layer in layers.items():  # Quantus calls it on its copies of them
        layer.reset_parameters = partial(layer.load_state_dict, last.get_submodule(name).state_dict())
    targets, maps = np.ones(len(pictures), int), known[:, None].numpy()
    theirs = quantus.MPRT(**QUIET)(model, pictures.numpy(), targets, maps, explain_func=explain_for_quantus)
    if list(theirs) != ["original", *steps]:
        raise ValueError(f"Quantus randomised {list(theirs)}, we {list(steps)}.")
    yield compare("cascade, rank correlation, same weights", "Quantus MPRT", ours, [theirs[name] for name in steps])


def similarity() -> Iterator[Agreement]:
    """Correlations and structural similarity."""
    source = draws(7)
    first, noise = torch.randn(2, N_CASES, SIDE, SIDE, generator=source)
    second = first * torch.rand(N_CASES, 1, 1, generator=source) + noise
    pairs = list(zip(first.double().numpy(), second.double().numpy(), strict=True))
    linear = [stats.pearsonr(a.ravel(), b.ravel()).statistic for a, b in pairs]
    yield compare("pearson", "SciPy", of_pairs(pearson, first, second), linear)
    ranks = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs]
    yield compare("spearman", "SciPy", of_pairs(spearman, first, second), ranks)
    ranks = [stats.spearmanr(a.round().ravel(), b.round().ravel()).statistic for a, b in pairs]
    yield compare("spearman, equal scores", "SciPy", of_pairs(spearman, first.round(), second.round()), ranks)

    ours = of_pairs(ssim, first, second)
    shifted = [(a - min(a.min(), b.min()), b - min(a.min(), b.min())) for a, b in pairs]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    theirs = [structural_similarity(a, b, data_range=max(a.max(), b.max()), **window) for a, b in shifted]
    yield compare("ssim, from the least score", "scikit-image", ours, theirs)
    ranges = [max(a.max(), b.max()) - min(a.min(), b.min()) for a, b in pairs]
    theirs = [
        structural_similarity(a, b, data_range=span, **window) for (a, b), span in zip(pairs, ranges, strict=True)
    ]
    purpose = "scores are measured from the least of both maps: of signed ones the luminance term has no meaning"
    yield compare("ssim, signed", "scikit-image", ours, theirs, purpose)
    theirs = [quantus.ssim(a, b) for a, b in pairs]
    purpose = "windows are the paper's, Gaussian of 11 px, from the least score; Quantus' are square, of 7 px"
    yield compare("ssim", "Quantus", ours, theirs, purpose)


def masks() -> Iterator[Agreement]:
    """Run lengths against pycocotools; Otsu's level and filled contours against what CheXlocalize calls."""
    source = np.random.default_rng(SEED)
    regions = [random_region(source) for _ in range(N_CASES)]
    ours = [encode_mask(torch.from_numpy(region)) for region in regions]
    theirs = [coco.encode(np.asfortranarray(region.astype(np.uint8))) for region in regions]
    n_unequal = [mine.counts != other["counts"].decode() for mine, other in zip(ours, theirs, strict=True)]
    yield compare("run lengths, encoded: unequal strings", "pycocotools", n_unequal, [0] * N_CASES)
    decoded = [decode_mask(EncodedMask(tuple(each["size"]), each["counts"].decode())).numpy() for each in theirs]
    n_wrong = [(mine != region).sum() for mine, region in zip(decoded, regions, strict=True)]
    yield compare("run lengths of pycocotools, decoded: wrong pixels", "pycocotools", n_wrong, [0] * N_CASES)
    decoded = [coco.decode({"size": list(each.size), "counts": each.counts}) for each in ours]
    n_wrong = [(other != region).sum() for other, region in zip(decoded, regions, strict=True)]
    yield compare("our run lengths, decoded by it: wrong pixels", "pycocotools", n_wrong, [0] * N_CASES)

    levels = [random_levels(source) for _ in range(N_CASES)]
    otsu = [cv2.threshold(each, 0, 255, cv2.THRESH_OTSU)[0] for each in levels]
    yield compare("Otsu's level", "OpenCV", [otsu_level(torch.from_numpy(each)) for each in levels], otsu)
    filled = [fill_outer_contours(torch.from_numpy(region)).numpy() for region in regions]
    n_wrong = [(mine != fill_by_contours(region)).sum() for mine, region in zip(filled, regions, strict=True)]
    yield compare("filled contours: unequal pixels", "OpenCV and Pillow", n_wrong, [0] * N_CASES)


def random_region(source: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a region of smooth shape or of single pixels, in a frame of any size; now and then all or nothing."""
    noise = source.standard_normal(source.integers(1, 120, 2))
    smooth = cv2.GaussianBlur(noise, (0, 0), source.uniform(0.3, 6))
    region: NDArray[np.bool_] = smooth > source.choice([0.0, np.quantile(smooth, source.random()), -np.inf, np.inf])
    return region


def random_levels(source: np.random.Generator) -> NDArray[np.uint8]:
    """Draw grey values around two brightnesses, of few pixels or many."""
    brightness, spread = source.uniform(0, 255, 2), source.uniform(0, 40, 2)
    values = source.normal(brightness, spread, (source.integers(1, 800), 2))
    return values.clip(0, 255).astype(np.uint8)


def fill_by_contours(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill a region as CheXlocalize does: OpenCV's outer contours, drawn by Pillow."""
    picture = Image.new("1", (region.shape[1], region.shape[0]))
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours:
        if len(contour) > 1:
            ImageDraw.Draw(picture).polygon([tuple(point) for point in contour[:, 0].tolist()], outline=1, fill=1)
    return np.array(picture)


def main() -> int:
    """Compare everything and print what came of it."""
    warnings.filterwarnings("ignore", module="quantus")
    groups = (localisation, curves, perturbations, randomisation, similarity, masks)
    with contextlib.redirect_stdout(sys.stderr):  # Quantus prints advice
        rows = [row for group in groups for row in group()]
    print(f"{'metric':52}{'against':36}{'cases':>6}{'differ':>8}{'largest':>10}")
    for row in rows:
        mark = "*" if row.purpose else "" if row.is_as_wanted else "  WRONG"
        counts = f"{row.n_cases:6}{row.n_different:8}{row.largest_difference:10.1e}"
        print(f"{row.metric:52}{row.against:36}{counts}{mark}")
    print("\n* differs on purpose:")
    for row in rows:
        if row.purpose:
            print(f"  {row.metric}: {row.purpose}.")
    packages = ("quantus", "pycocotools", "scipy", "scikit-image", "numpy", "torch")
    versions = {**{name: version(name) for name in packages}, "opencv": cv2.__version__}
    is_as_wanted = all(row.is_as_wanted for row in rows)
    print(json.dumps({"agrees": is_as_wanted, "versions": versions, "rows": [asdict(row) for row in rows]}))
    return 0 if is_as_wanted else 1


if __name__ == "__main__":
    sys.exit(main())
