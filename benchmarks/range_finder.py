"""Can a few derivatives stand for the 512 rows of a gradient stack?

    python -m benchmarks.range_finder [pictures=4] [full_size=2] [ranks=16,32,64,128,256]

Two ways to a basis of few rows for stacks of any text, each with an error bar:

- "found": a randomised range finder (Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 2011).
  Forward-mode derivatives along random pictures span the dominant left space of one picture's stack, and as many
  vector-Jacobian products fill it.
- "shared": the dominant left space of the whole stacks of the other pictures.

Either way further derivatives, along random pictures that the space has not seen, estimate what it leaves out. Tried
on the demo model with phantoms that it was not trained on, and on the official architecture with random weights. It
prints a table for each and ends with one JSON line.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from statistics import mean

import torch
from torch import Tensor

from benchmarks.setting import CHECKPOINT, describe_machine, full_size_model
from benchmarks.store_size import FIRST_SEED
from mapstack.explainer import Explainer
from mapstack.images import collate, from_array, prepare
from mapstack.methods import Gradient
from mapstack.methods.engine import row_gradients
from mapstack.models import EmbeddingModel, load_model
from mapstack.phantom import phantom
from mapstack.readouts import DirectionReadout

N_CHECKS = 8
PROBES_AT_ONCE = 8


@dataclass(frozen=True)
class Trial:
    """One rank on one picture.

    Args:
        way: "found" or "shared".
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


def rows(model: EmbeddingModel, picture: Tensor, directions: Tensor) -> Tensor:
    """Pull rows back [rows, pixels]."""
    readout = DirectionReadout(directions.float(), embed_dim=model.embed_dim, normalize=False)
    return torch.cat([each[:, 0].sum(dim=1).flatten(1) for _, each in row_gradients(model, picture[None], readout)[1]])


def trials(model: EmbeddingModel, pictures: list[Tensor], ranks: list[int]) -> list[Trial]:
    """Try every rank both ways on every picture, and compare with the whole stack."""
    axes = torch.eye(model.embed_dim)
    rows(model, pictures[0], axes[:8])  # first calls are slower
    derivatives(model, pictures[0], torch.randn(1, *pictures[0].shape[-2:]))
    started = time.perf_counter()
    wholes = [rows(model, picture, axes).double() for picture in pictures]
    whole_s = (time.perf_counter() - started) / len(pictures)
    grams = [whole @ whole.T / whole.square().sum() for whole in wholes]
    draws, made = torch.Generator().manual_seed(0), []
    for number, (picture, whole) in enumerate(zip(pictures, wholes, strict=True)):
        energies = torch.linalg.eigvalsh(grams[number]).flip(0).clamp_min(0)
        others = torch.linalg.eigh(sum(grams) - grams[number])[1].flip(1)
        for rank in ranks:
            for way in ("found", "shared"):
                probes = torch.randn(N_CHECKS + rank * (way == "found"), *picture.shape[-2:], generator=draws)
                started = time.perf_counter()
                answers = derivatives(model, picture, probes)
                space = torch.linalg.qr(answers[:, N_CHECKS:])[0] if way == "found" else others[:, :rank]
                found = rows(model, picture, space.T)
                seconds = time.perf_counter() - started
                checks = answers[:, :N_CHECKS]
                missed = checks - space @ (space.T @ checks)
                made.append(
                    Trial(
                        way=way,
                        rank=rank,
                        ratio=whole_s / seconds,
                        error=float((whole - space @ found.double()).norm() / whole.norm()),
                        best=float(energies[rank:].sum().sqrt()),
                        estimate=float(missed.norm() / checks.norm()),
                    )
                )
    return made


def report(title: str, model: EmbeddingModel, n_pictures: int, ranks: list[int]) -> list[dict[str, float | str]]:
    """Measure, print a table and return the trials."""
    films = [prepare(from_array(phantom(FIRST_SEED + i).pixels), model.preprocessing) for i in range(n_pictures)]
    pictures = list(Explainer(model, Gradient()).cast(collate(films)).pixel_values)
    made = trials(model, pictures, ranks)
    print(f"\n{title}\n\n| way | rank | times as fast | error | of the best factors | estimate / error |")
    print("|---|---|---|---|---|---|")
    for way in ("found", "shared"):
        for rank in ranks:
            same = [each for each in made if (each.way, each.rank) == (way, rank)]
            ratio, error, best = (mean(getattr(each, name) for each in same) for name in ("ratio", "error", "best"))
            off = [each.estimate / each.error for each in same]
            told = f"{ratio:.1f} | {error:.2%} | {best:.2%} | {min(off):.2f} to {max(off):.2f}"
            print(f"| {way} | {rank} | {told} |", flush=True)
    return [asdict(each) for each in made]


def main(arguments: list[str]) -> int:
    """Measure and print."""
    options = dict(argument.split("=", 1) for argument in arguments)
    n_pictures, n_full_size = int(options.pop("pictures", 4)), int(options.pop("full_size", 2))
    ranks = [int(rank) for rank in options.pop("ranks", "16,32,64,128,256").split(",")]
    if options:
        print(__doc__)
        return 2
    figures = {"demo": report("demo model", load_model("medclip-vit", CHECKPOINT), n_pictures, ranks)}
    if n_full_size:
        title = "official architecture, random weights"
        figures["full size"] = report(title, full_size_model(), n_full_size, ranks)
    print(json.dumps({"machine": describe_machine(), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
