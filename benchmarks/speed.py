"""How much faster than Captum, on full-size MedCLIP-ViT with random weights, in one process?

    python -m benchmarks.speed [rows=64] [device=cpu] [precision=32-true,bf16-mixed]
        [only=gradient,prompts,path,occlusion,card]

Each question is answered side by side: ours, and Captum used the two ways a careful user would, one call per dimension
and the picture repeated over a list of targets. Errors and cosines are to Captum's own maps of the same rows or texts,
in float64. Captum's rows are measured on a few dimensions and ours on `rows`; what is multiplied up to the 512
dimensions is marked "~". Memory is what each side adds in a fresh process.

`precision` names those of the gradient stack; 16-mixed is for cards without bfloat16. `card` is what a GPU reaches of
its own ceilings, and is asked with device=cuda only. It prints a table and ends with one JSON line.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import captum.attr
import torch
from torch import Tensor

from benchmarks import card
from benchmarks.setting import Bench, describe_machine, differences, full_size_model
from mapstack.basis import Basis
from mapstack.config import PromptsConfig
from mapstack.explainer import Explainer
from mapstack.methods import Gradient, IntegratedGradients, Occlusion
from mapstack.models import PRECISIONS, in_precision
from mapstack.readouts import DirectionReadout

N_PROMPTS, N_STEPS = 10, 20
CAPTUM_ROWS, CAPTUM_REPEATED = 4, 16
CAPTUM_POINTS, CAPTUM_WINDOWS = 8, 16  # at once; of 1 to 32 windows, 16 are fastest on two cores
PROMPTS = PromptsConfig(file="configs/prompts/mimic_cxr.yaml", ensemble="none")

Reads = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Answer:
    """One line of the table.

    Attributes:
        question: What is made.
        ours_s: What it takes us for one picture [s].
        captum_s: What it takes Captum, the faster way [s].
        ratio: The second over the first.
        error: Largest difference of a map from Captum's, as a share of its largest value.
        cosine: Least cosine of a map with Captum's.
        extrapolated: Whose seconds are multiplied up from fewer rows.
        details: Seconds a row and the like.
    """

    question: str
    ours_s: float
    captum_s: float
    error: float
    cosine: float
    extrapolated: str
    details: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return self.captum_s / self.ours_s

    def __str__(self) -> str:
        ours, captums = ("~" if name in self.extrapolated else "" for name in ("ours", "Captum"))
        return (
            f"| {self.question} | {ours}{self.ours_s:.3g} | {captums}{self.captum_s:.3g} | {self.ratio:.1f} "
            f"| {self.error:.1g} | {self.cosine:.6f} |"
        )


def captum_saliency(bench: Bench, read: Reads, n_loop: int, n_repeated: int) -> tuple[Tensor, dict[str, float]]:
    """Return Captum's maps of the first numbers that are read, and seconds a row both ways."""
    saliency = captum.attr.Saliency(read)

    def loop() -> Tensor:
        rows = [saliency.attribute(bench.picture(), target=row, abs=False) for row in range(n_loop)]
        return torch.cat(rows).sum(dim=1)

    def repeated() -> Tensor:
        pictures = bench.inputs.pixel_values.repeat(n_repeated, 1, 1, 1).requires_grad_()
        maps: Tensor = saliency.attribute(pictures, target=list(range(n_repeated)), abs=False)
        return maps.sum(dim=1)

    _, loop_s = bench.timed(loop)
    maps, repeated_s = bench.timed(repeated)
    return maps.detach(), {"loop_s_a_row": loop_s / n_loop, "repeated_s_a_row": repeated_s / n_repeated}


def captum_rows(bench: Bench) -> tuple[Tensor, dict[str, float]]:
    """Return Captum's maps of a few dimensions, and seconds a row both ways."""
    n = min(CAPTUM_REPEATED, bench.model.embed_dim)
    return captum_saliency(bench, bench.model.embed_images, CAPTUM_ROWS, n)


def ten_texts(bench: Bench) -> tuple[DirectionReadout, Reads]:
    """Return the logits of ten texts: as ours reads them, and as a function of the picture for Captum."""
    directions = Explainer(bench.model, Gradient()).readout(PROMPTS.groups()[:N_PROMPTS]).directions

    def logits(pixel_values: Tensor) -> Tensor:
        return torch.nn.functional.normalize(bench.model.embed_images(pixel_values)) @ directions.T

    return DirectionReadout(directions, embed_dim=bench.model.embed_dim), logits


def gradient(bench: Bench, precisions: tuple[str, ...] = ("32-true", "bf16-mixed")) -> list[Answer]:
    """The stack of all rows, in each precision."""
    captums, details = captum_rows(bench)
    captum_s = bench.model.embed_dim * min(details.values())
    answers = []
    for precision in precisions:
        model = in_precision(bench.model, precision)

        def step(model: Any = model) -> Tensor:
            return Gradient().attribute(model, bench.inputs, bench.axes(bench.rows)).values[0]

        ours, seconds = bench.timed(step)
        n = min(len(ours), len(captums))
        error, cosine = differences(ours[:n], captums[:n])
        ours_s = seconds * bench.model.embed_dim / bench.rows
        marked = "ours, Captum" if bench.rows < bench.model.embed_dim else "Captum"
        unit = {**details, "ours_s_a_row": seconds / bench.rows}
        answers.append(Answer(f"gradient stack, {precision}", ours_s, captum_s, error, cosine, marked, unit))
    return answers


def prompts(bench: Bench) -> list[Answer]:
    """Ten prompts directly, and 154 texts along their basis, against Captum's stack and Captum on the ten texts."""
    _, details = captum_rows(bench)
    stack_s = bench.model.embed_dim * min(details.values())
    direct, logits = ten_texts(bench)
    captums, ten = captum_saliency(bench, logits, N_PROMPTS, N_PROMPTS)
    found, direct_s = bench.timed(lambda: Gradient().attribute(bench.model, bench.inputs, direct).values[0])
    explainer = Explainer(bench.model, Gradient())
    groups = [*PROMPTS.groups(), *replace(PROMPTS, use="labels").groups()]
    basis = Basis.of(explainer.readout(groups).span)
    stack, basis_s = bench.timed(lambda: explainer.stack(bench.inputs, basis), 1)
    assert direct.directions is not None
    projected = stack.project(direct.directions)[0]
    about = {"n_texts": float(len(groups)), "rank": float(len(basis)), "ours_s_a_row": basis_s / len(basis)}
    name = f"{N_PROMPTS} prompts, directly"
    along = f"{len(groups)} texts, along their basis of {len(basis)}"
    same = differences(found, captums)
    return [
        Answer(f"{name}, against a stack", direct_s, stack_s, *same, "Captum", details),
        Answer(f"{name}, against the same texts", direct_s, N_PROMPTS * min(ten.values()), *same, "", ten),
        Answer(along, basis_s, stack_s, *differences(projected, captums), "Captum", about),
    ]


def path(bench: Bench) -> list[Answer]:
    """Integrated gradients of ten prompts directly, against Captum's stack of as many points and the same texts."""
    black = -bench.model.preprocessing.mean[0] / bench.model.preprocessing.std[0]
    start = torch.full_like(bench.inputs.pixel_values, black)
    options = {"n_steps": N_STEPS, "method": "gausslegendre", "internal_batch_size": CAPTUM_POINTS}
    direct, logits = ten_texts(bench)
    stack = captum.attr.IntegratedGradients(bench.model.embed_images)
    texts = captum.attr.IntegratedGradients(logits)
    _, row_s = bench.timed(lambda: stack.attribute(bench.picture(), start, target=0, **options), 1)

    def same_texts() -> Tensor:
        maps = [texts.attribute(bench.picture(), start, target=row, **options) for row in range(N_PROMPTS)]
        return torch.cat(maps).sum(dim=1)

    captums, captum_s = bench.timed(same_texts, 1)
    method = IntegratedGradients(n_steps=N_STEPS, baseline="black")
    ours, seconds = bench.timed(lambda: method.attribute(bench.model, bench.inputs, direct).values[0], 1)
    name = f"integrated gradients, {N_STEPS} points, {N_PROMPTS} prompts directly"
    same, details = differences(ours, captums), {"captum_s_a_row": row_s}
    return [
        Answer(f"{name}, against a stack", seconds, bench.model.embed_dim * row_s, *same, "Captum", details),
        Answer(f"{name}, against the same texts", seconds, captum_s, *same, "", {}),
    ]


def sweep(bench: Bench) -> Tensor:
    """Sweep once, as occlusion does."""
    return Occlusion().sweep(bench.model, bench.inputs).occluded


@torch.no_grad()
def captum_sweep(bench: Bench, target: int | None = None) -> Tensor:
    """Sweep once with Captum, for one dimension or for the vector of all."""
    method = Occlusion()
    maps: Tensor = captum.attr.Occlusion(bench.model.embed_images).attribute(
        bench.inputs.pixel_values,
        sliding_window_shapes=(1, *2 * (method.sliding_window_shapes,)),
        strides=(1, *2 * (method.strides,)),
        baselines=-bench.model.preprocessing.mean[0] / bench.model.preprocessing.std[0],
        perturbations_per_eval=CAPTUM_WINDOWS,
        target=target,
    )
    return maps[:, 0]


def occlusion(bench: Bench) -> list[Answer]:
    """The stack of one sweep, against a sweep per dimension, and against one of vectors."""
    kept, ours_s = bench.timed(lambda: sweep(bench), 1)
    one, one_s = bench.timed(lambda: captum_sweep(bench, 0), 1)
    vectors, vectors_s = bench.timed(lambda: captum_sweep(bench), 1)
    n = min(CAPTUM_REPEATED, bench.model.embed_dim)
    ours = Occlusion().attribute(bench.model, bench.inputs, bench.axes(n)).values[0]
    details = {
        "ours_added_mb": bench.added_memory(sweep) / 1e6,
        "captum_added_mb": bench.added_memory(captum_sweep) / 1e6,
        "ours_kept_mb": kept.nbytes / 1e6,
        "captum_kept_mb": vectors.nbytes / 1e6,
    }
    loop_s = bench.model.embed_dim * one_s
    alone, together = differences(ours[:1], one), differences(ours, vectors[:n])
    return [
        Answer("occlusion stack, a sweep per dimension", ours_s, loop_s, *alone, "Captum", {}),
        Answer("occlusion stack, one sweep of vectors", ours_s, vectors_s, *together, "", details),
    ]


QUESTIONS: dict[str, Callable[[Bench], list[Answer]]] = {
    "gradient": gradient,
    "prompts": prompts,
    "path": path,
    "occlusion": occlusion,
}


def main(arguments: list[str], make_model: Callable[[], Any] = full_size_model) -> int:
    """Measure and print."""
    options = dict(argument.split("=", 1) for argument in arguments)
    rows, device = int(options.pop("rows", 64)), options.pop("device", "cpu")
    possible = [*QUESTIONS, *(["card"] if device.startswith("cuda") else [])]
    asked = options.pop("only", ",".join(possible)).split(",")
    precisions = tuple(options.pop("precision", "32-true,bf16-mixed").split(","))
    if options or not set(asked) <= set(possible) or not set(precisions) <= set(PRECISIONS) - {"64-true"}:
        print(__doc__)
        return 2
    bench = Bench.of(make_model, rows, device)
    questions = {**QUESTIONS, "gradient": partial(gradient, precisions=precisions)}
    print("| for one picture | ours s | Captum s | ratio | error | cosine |\n|---|---|---|---|---|---|")
    answers = []
    for name in asked:
        for answer in questions[name](bench) if name in questions else []:
            print(answer, flush=True)
            answers.append({**asdict(answer), "ratio": answer.ratio})
    figures: dict[str, Any] = {"rows": rows, "device": device, "answers": answers}
    if "card" in asked:
        figures["card"] = card.measure(bench, captum_rows(bench)[1]["loop_s_a_row"])
        print(card.table(figures["card"]))
    print(json.dumps({"machine": describe_machine(), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
