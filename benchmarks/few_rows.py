"""How few rows can stand for the 512 of a gradient stack, whatever the text?

    python -m benchmarks.few_rows [pictures=6] [full_size=2] [ranks=16,32,64,128,256] [prompts=4]

Two ways to rows that leave little out, each with an error bar for every picture:

- "fitted": what `stack.basis: pictures` does, the dominant left space of the whole stacks of the other pictures. The
  error is estimated from four rows more.
- "found": a randomised range finder (Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 2011),
  which the package does not have. Forward-mode derivatives along random pictures span the dominant left space of the
  picture's own stack, as many vector-Jacobian products fill it, and eight derivatives more estimate the error.

Tried on the demo model with phantoms that it was not trained on ("found" on two of them), and on the official
architecture with random weights. And how few, where the texts are known: `stack.basis: prompts` by `basis_tolerance`
for the 154 labels and sentences of configs/prompts/mimic_cxr.yaml, on so many phantoms (`prompts`). It prints a table
for each and ends with one JSON line.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import mean

import torch
from torch import Tensor

from benchmarks.setting import CHECKPOINT, ROOT, describe_machine, full_size_model
from benchmarks.store_size import FIRST_SEED
from mapstack.basis import Basis, fit_rows
from mapstack.config import PromptsConfig
from mapstack.explainer import Explainer
from mapstack.images import Inputs, collate, from_array, prepare
from mapstack.methods import Gradient
from mapstack.models import EmbeddingModel, load_model
from mapstack.phantom import phantom
from mapstack.stack import Stack

N_CHECKS = 8
N_FOUND = 2
PROBES_AT_ONCE = 8
TOLERANCES = (0.0, 0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Trial:
    """One rank on one picture.

    Args:
        way: "fitted" or "found".
        rank: Rows that were pulled back.
        ratio: How many times less than all rows it took, checks included.
        error: What is lost, as a share of the stack (Frobenius).
        best: What the best factors of that rank lose.
        estimate: What the checks said of the error.
    """

    way: str
    rank: int
    ratio: float
    error: float
    best: float
    estimate: float


def derivatives(model: EmbeddingModel, picture: Tensor, probes: Tensor) -> Tensor:
    """Multiply the stack by random maps [probes, height, width], without making it [embed_dim, probes]."""
    columns = []
    for some in probes.split(PROBES_AT_ONCE):
        points, tangents = (each.expand(len(some), 3, -1, -1).contiguous() for each in (picture, some[:, None]))
        columns.append(torch.func.jvp(model.embed_images, (points,), (tangents,))[1].detach())
    return torch.cat(columns).T.double()


def rows(model: EmbeddingModel, inputs: Inputs, directions: Tensor) -> Tensor:
    """Pull rows back [rows, pixels]."""
    stack = Explainer(model, Gradient(), normalize=False).stack(
        inputs, Basis(directions.float(), directions[0].float())
    )
    assert isinstance(stack, Stack)
    return stack.values[0].flatten(1).double()


def fitted(model: EmbeddingModel, inputs: Inputs, space: Tensor) -> tuple[Tensor, float]:
    """Return the stack of few rows [embed_dim, pixels], and what is said of its error."""
    stack = Explainer(model, Gradient(), normalize=False).stack(inputs, Basis.of_pictures(space.float()))
    assert isinstance(stack, Stack)
    return space.T @ stack.values[0].flatten(1).double(), stack.map_error[0]


def found(model: EmbeddingModel, inputs: Inputs, rank: int, draws: torch.Generator) -> tuple[Tensor, float]:
    """The same by the range finder."""
    picture = inputs.pixel_values[0]
    answers = derivatives(model, picture, torch.randn(rank + N_CHECKS, *picture.shape[-2:], generator=draws))
    space = torch.linalg.qr(answers[:, N_CHECKS:])[0]
    checks = answers[:, :N_CHECKS]
    missed = checks - space @ (space.T @ checks)
    return space @ rows(model, inputs, space.T), float(missed.norm() / checks.norm())


def trials(model: EmbeddingModel, pictures: list[Inputs], ranks: list[int]) -> list[Trial]:
    """Try every rank both ways, and compare with the whole stack."""
    axes, draws = torch.eye(model.embed_dim), torch.Generator().manual_seed(0)
    rows(model, pictures[0], axes[:8])  # first calls are slower
    found(model, pictures[0], 1, draws)
    started = time.perf_counter()
    wholes = [rows(model, inputs, axes) for inputs in pictures]
    whole_s = (time.perf_counter() - started) / len(pictures)
    grams = [whole @ whole.T for whole in wholes]
    made = []
    for number, (inputs, whole) in enumerate(zip(pictures, wholes, strict=True)):
        energies = torch.linalg.eigvalsh(grams[number] / grams[number].trace()).flip(0).clamp_min(0)
        # A single other picture is fitted as if it were two.
        others = grams[:number] + grams[number + 1 :]
        space = fit_rows(others * 2, 0.0)[0].double()
        for rank in ranks:
            ways: dict[str, Callable[[], tuple[Tensor, float]]] = {
                "fitted": partial(fitted, model, inputs, space[:rank]),
                "found": partial(found, model, inputs, rank, draws),
            }
            for way, make in ways.items():
                if way == "found" and number >= N_FOUND:
                    continue
                started = time.perf_counter()
                stack, estimate = make()
                seconds = time.perf_counter() - started
                error = float((whole - stack).norm() / whole.norm())
                best = float(energies[rank:].sum().sqrt())
                made.append(Trial(way, rank, whole_s / seconds, error, best, estimate))
    return made


def phantoms(model: EmbeddingModel, n: int) -> list[Inputs]:
    """Return so many phantoms that the demo model was not trained on, one a batch."""
    films = [prepare(from_array(phantom(FIRST_SEED + i).pixels), model.preprocessing) for i in range(n)]
    return [Explainer(model, Gradient()).cast(collate([film])) for film in films]


def report(title: str, model: EmbeddingModel, n_pictures: int, ranks: list[int]) -> list[dict[str, float | str]]:
    """Measure, print a table and return the trials."""
    made = trials(model, phantoms(model, n_pictures), ranks)
    print(f"\n{title}\n\n| way | rank | times as fast | error | of the best factors | estimate / error |")
    print("|---|---|---|---|---|---|")
    for way in ("fitted", "found"):
        for rank in ranks:
            same = [each for each in made if (each.way, each.rank) == (way, rank)]
            ratio, error, best = (mean(getattr(each, name) for each in same) for name in ("ratio", "error", "best"))
            off = [each.estimate / each.error for each in same]
            told = f"{ratio:.1f} | {error:.2%} | {best:.2%} | {min(off):.2f} to {max(off):.2f}"
            print(f"| {way} | {rank} | {told} |", flush=True)
    return [asdict(each) for each in made]


@dataclass(frozen=True)
class Shortened:
    """A basis of prompts that was shortened to a tolerance.

    Args:
        tolerance: Largest share of a text's embedding that is left out.
        rank: Rows that it takes.
        median: Of the errors of the maps of all texts and pictures, against the whole basis (Frobenius).
        worst: The largest.
        stated: What the stacks say of the text of which most is left out, the largest.
        stated_for: What the maps of that text lose indeed, the largest.
    """

    tolerance: float
    rank: int
    median: float
    worst: float
    stated: float
    stated_for: float


def shortened(model: EmbeddingModel, pictures: list[Inputs], directions: Tensor, tolerance: float) -> Shortened:
    """Measure what the maps of texts lose along a shortened basis."""
    explainer, basis = Explainer(model, Gradient()), Basis.of(directions, tolerance)
    whole = Basis.of(directions)
    errors: list[Tensor] = []
    stated: list[float] = []
    for inputs in pictures:
        stack = explainer.stack(inputs, basis)
        assert isinstance(stack, Stack)
        exact = explainer.stack(inputs, whole).project(directions)[0].flatten(1).double()
        errors.append((stack.project(directions)[0].flatten(1).double() - exact).norm(dim=1) / exact.norm(dim=1))
        stated += stack.map_error
    lost = torch.stack(errors)
    unit = directions / directions.norm(dim=1, keepdim=True)
    worst_text = int(basis.residual(unit).norm(dim=1).argmax())
    return Shortened(
        tolerance,
        len(basis),
        float(lost.median()),
        float(lost.max()),
        max(stated, default=0.0),
        float(lost[:, worst_text].max()),
    )


def report_prompts(n_pictures: int) -> list[dict[str, float]]:
    """Measure every tolerance, print a table and return its figures."""
    model = load_model("medclip-vit", CHECKPOINT)
    sentences = PromptsConfig(file=str(ROOT / "configs" / "prompts" / "mimic_cxr.yaml"), ensemble="none")
    groups = [*sentences.groups(), *replace(sentences, use="labels").groups()]
    directions = Explainer(model, Gradient()).readout(groups).directions
    pictures = phantoms(model, n_pictures)
    print(f"\nstack.basis: prompts, {len(groups)} texts, demo model, {n_pictures} phantoms\n")
    print("| basis_tolerance | rows | error of the maps, median | worst | stated | of that text |\n" + 6 * "|---" + "|")
    made = []
    for tolerance in TOLERANCES:
        found = shortened(model, pictures, directions, tolerance)
        figures = (found.median, found.worst, found.stated, found.stated_for)
        cells = " | ".join(f"{each:.2%}" for each in figures)
        print(f"| {tolerance} | {found.rank} | {cells} |", flush=True)
        made.append(asdict(found))
    return made


def main(arguments: list[str]) -> int:
    """Measure and print."""
    options = dict(argument.split("=", 1) for argument in arguments)
    n_pictures, n_full_size = int(options.pop("pictures", 6)), int(options.pop("full_size", 2))
    ranks = [int(rank) for rank in options.pop("ranks", "16,32,64,128,256").split(",")]
    n_prompts_pictures = int(options.pop("prompts", 4))
    if options:
        print(__doc__)
        return 2
    figures: dict[str, object] = {}
    if n_prompts_pictures:
        figures["prompts"] = report_prompts(n_prompts_pictures)
    if n_pictures:
        figures["demo"] = report("demo model", load_model("medclip-vit", CHECKPOINT), n_pictures, ranks)
    if n_full_size:
        title = "official architecture, random weights"
        figures["full size"] = report(title, full_size_model(), n_full_size, ranks)
    print(json.dumps({"machine": describe_machine(), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
