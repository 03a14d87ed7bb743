"""How much faster than Captum, on full-size MedCLIP-ViT with random weights, in one process?

    python -m benchmarks.speed [rows=64] [device=cpu] [only=gradient,prompts,path,occlusion]

Each question is answered side by side: ours, and Captum used the two ways a careful user would, one call per dimension
and the picture repeated over a list of targets. Captum's rows are measured on a few dimensions and ours on `rows`; what
is multiplied up to the 512 dimensions is marked "~". It prints a table and ends with one JSON line.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import captum.attr
import torch
from torch import Tensor

from benchmarks.setting import describe_machine, full_size_model
from mapstack.basis import Basis
from mapstack.config import PromptsConfig
from mapstack.explainer import Explainer
from mapstack.images import Inputs, collate, from_array, prepare
from mapstack.methods import Gradient, IntegratedGradients, Occlusion
from mapstack.models import EmbeddingModel
from mapstack.models.precision import in_precision
from mapstack.phantom import phantom
from mapstack.readouts import DirectionReadout

EMBED_DIM, N_PROMPTS, N_STEPS = 512, 10, 20
CAPTUM_ROWS, CAPTUM_REPEATED = 4, 16
ROUNDS = 3


@dataclass(frozen=True)
class Answer:
    """One line of the table.

    Attributes:
        question: What is made.
        ours_s: What it takes us for one picture [s].
        captum_s: What it takes Captum, the faster way [s].
        ratio: The second over the first.
        error: Largest difference of a map, as a share of its largest value.
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


@dataclass(frozen=True)
class Bench:
    """The model, one picture, and how many of our rows are run."""

    model: EmbeddingModel
    inputs: Inputs
    rows: int

    def timed(self, step: Callable[[], Tensor], rounds: int = ROUNDS) -> tuple[Tensor, float]:
        """Return what a step answers and its shortest time [s]."""
        times = []
        for _ in range(rounds):
            self.wait()
            started = time.perf_counter()
            result = step()
            self.wait()
            times.append(time.perf_counter() - started)
        return result, min(times)

    def wait(self) -> None:
        """Let the device finish."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    def picture(self) -> Tensor:
        """Return the picture, to be differentiated."""
        return self.inputs.pixel_values.clone().requires_grad_()

    def axes(self, n: int) -> DirectionReadout:
        """Read the first dimensions."""
        return DirectionReadout(
            torch.eye(EMBED_DIM, device=self.model.device)[:n], embed_dim=EMBED_DIM, normalize=False
        )


def differences(ours: Tensor, captums: Tensor) -> tuple[float, float]:
    """Return the largest relative error and the least cosine of maps [rows, height, width]."""
    error = (ours - captums).abs().amax(dim=(-2, -1)) / captums.abs().amax(dim=(-2, -1))
    return float(error.max()), float(torch.cosine_similarity(ours.flatten(1), captums.flatten(1)).min())


def captum_saliency(bench: Bench) -> tuple[Tensor, dict[str, float]]:
    """Return Captum's rows, and seconds a row both ways."""
    saliency = captum.attr.Saliency(bench.model.embed_images)

    def per_dimension() -> Tensor:
        rows = [saliency.attribute(bench.picture(), target=row, abs=False) for row in range(CAPTUM_ROWS)]
        return torch.cat(rows)[:, 0]

    def repeated() -> Tensor:
        pictures = bench.inputs.pixel_values.repeat(CAPTUM_REPEATED, 1, 1, 1).requires_grad_()
        return saliency.attribute(pictures, target=list(range(CAPTUM_REPEATED)), abs=False)[:, 0]

    _, loop_s = bench.timed(per_dimension)
    rows, repeated_s = bench.timed(repeated)
    return rows.detach(), {"loop_s_a_row": loop_s / CAPTUM_ROWS, "repeated_s_a_row": repeated_s / CAPTUM_REPEATED}


def gradient(bench: Bench) -> list[Answer]:
    """The stack of 512 rows, in each precision."""
    captums, details = captum_saliency(bench)
    captum_s = EMBED_DIM * min(details.values())
    answers = []
    for precision in ("32-true", "bf16-mixed"):
        model = in_precision(bench.model, precision)

        def step(model: EmbeddingModel = model) -> Tensor:
            return Gradient().attribute(model, bench.inputs, bench.axes(bench.rows)).values[0]

        ours, seconds = bench.timed(step)
        error, cosine = differences(ours[:CAPTUM_REPEATED], captums)
        ours_s = seconds * EMBED_DIM / bench.rows
        marked = "both" if bench.rows < EMBED_DIM else "Captum"
        unit = {**details, "ours_s_a_row": seconds / bench.rows}
        answers.append(Answer(f"gradient stack, {precision}", ours_s, captum_s, error, cosine, marked, unit))
    return answers


def prompts(bench: Bench) -> list[Answer]:
    """Ten prompts directly, and 154 texts along their basis, against Captum's stack."""
    _, details = captum_saliency(bench)
    captum_s = EMBED_DIM * min(details.values())
    explainer = Explainer(bench.model, Gradient())
    shipped = PromptsConfig(file="configs/prompts/mimic_cxr.yaml", ensemble="none")
    groups = [*shipped.groups(), *replace(shipped, use="labels").groups()]
    few = explainer.readout(groups[:N_PROMPTS])
    direct = DirectionReadout(few.directions, embed_dim=EMBED_DIM)
    found, direct_s = bench.timed(lambda: Gradient().attribute(bench.model, bench.inputs, direct).values[0])
    readout = explainer.readout(groups)
    basis = Basis.of(readout.span)
    stack, basis_s = bench.timed(lambda: explainer.stack(bench.inputs, basis).values, 1)
    maps = explainer.stack(bench.inputs, basis).project(few.directions)[0]
    ten = differences(maps, found)
    row = basis_s / len(basis)
    about = {"n_texts": float(len(groups)), "rank": float(len(basis)), "ours_s_a_row": row}
    return [
        Answer(f"{N_PROMPTS} prompts, directly", direct_s, captum_s, *ten, "Captum", details),
        Answer(f"{len(groups)} texts, along their basis of {len(stack[0])}", basis_s, captum_s, *ten, "Captum", about),
    ]


def path(bench: Bench) -> list[Answer]:
    """Integrated gradients of ten prompts directly, against Captum's stack of as many points."""
    start = (
        torch.zeros_like(bench.inputs.pixel_values)
        - bench.model.preprocessing.mean[0] / bench.model.preprocessing.std[0]
    )
    method = IntegratedGradients(n_steps=N_STEPS, baseline="black")
    integrated = captum.attr.IntegratedGradients(bench.model.embed_images)

    def captums() -> Tensor:
        found = integrated.attribute(
            bench.picture(), start, target=0, n_steps=N_STEPS, method="gausslegendre", internal_batch_size=8
        )
        return found[:, 0].float()

    row, row_s = bench.timed(captums, 1)
    ours = method.attribute(bench.model, bench.inputs, bench.axes(1)).values[0]
    few = Explainer(bench.model, method).readout(
        PromptsConfig(file="configs/prompts/mimic_cxr.yaml", ensemble="none").groups()[:N_PROMPTS]
    )
    direct = DirectionReadout(few.directions, embed_dim=EMBED_DIM)
    _, seconds = bench.timed(lambda: method.attribute(bench.model, bench.inputs, direct).values[0], 1)
    name = f"integrated gradients, {N_STEPS} points, {N_PROMPTS} prompts directly"
    return [Answer(name, seconds, EMBED_DIM * row_s, *differences(ours, row), "Captum", {"captum_s_a_row": row_s})]


def occlusion(bench: Bench) -> list[Answer]:
    """The stack of one sweep, against a sweep per dimension, and against one of vectors."""
    method = Occlusion()
    captums = captum.attr.Occlusion(bench.model.embed_images)
    side = method.sliding_window_shapes
    options = {
        "sliding_window_shapes": (1, side, side),
        "strides": (1, method.strides, method.strides),
        "baselines": -bench.model.preprocessing.mean[0] / bench.model.preprocessing.std[0],
        "perturbations_per_eval": method.perturbations_per_eval,
    }
    ours_peak, (sweep, ours_s) = added_memory(
        lambda: bench.timed(lambda: method.sweep(bench.model, bench.inputs).occluded, 1)
    )
    with torch.no_grad():
        one, one_s = bench.timed(lambda: captums.attribute(bench.inputs.pixel_values, target=0, **options)[:, 0], 1)
        peak, (vectors, vectors_s) = added_memory(
            lambda: bench.timed(lambda: captums.attribute(bench.inputs.pixel_values, **options)[:, 0], 1)
        )
    ours = method.attribute(bench.model, bench.inputs, bench.axes(CAPTUM_REPEATED)).values[0]
    error = differences(ours, vectors[:CAPTUM_REPEATED].float())
    details = {
        "ours_added_mb": ours_peak / 1e6,
        "captum_added_mb": peak / 1e6,
        "ours_kept_mb": sweep.nbytes / 1e6,
        "captum_kept_mb": vectors.nbytes / 1e6,
    }
    return [
        Answer(
            "occlusion stack, a sweep per dimension",
            ours_s,
            EMBED_DIM * one_s,
            *differences(ours[:1], one.float()),
            "Captum",
            {},
        ),
        Answer("occlusion stack, one sweep of vectors", ours_s, vectors_s, *error, "", details),
    ]


def added_memory(step: Callable[[], tuple[Tensor, float]]) -> tuple[int, tuple[Tensor, float]]:
    """Return by how much the process grew at most during a step [bytes], and what the step gave."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    result = step()
    return resident("VmHWM") - before, result


def resident(name: str) -> int:
    """Return a figure of the process's memory [bytes]."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


QUESTIONS = {"gradient": gradient, "prompts": prompts, "path": path, "occlusion": occlusion}


def main(arguments: list[str]) -> int:
    """Measure and print."""
    options = dict(argument.split("=", 1) for argument in arguments)
    asked = options.pop("only", ",".join(QUESTIONS)).split(",")
    rows, device = int(options.pop("rows", 64)), options.pop("device", "cpu")
    if options or not set(asked) <= set(QUESTIONS):
        print(__doc__)
        return 2
    model = full_size_model().to(device)
    picture = prepare(from_array(phantom(0).pixels), model.preprocessing)
    bench = Bench(model, Explainer(model, Gradient()).cast(collate([picture])), rows)
    print("| for one picture | ours s | Captum s | ratio | error | cosine |\n|---|---|---|---|---|---|")
    answers = []
    for name in asked:
        for answer in QUESTIONS[name](bench):
            mark_ours, mark_captum = ("~" if name in answer.extrapolated else "" for name in ("both", "Captum"))
            mark_captum = mark_captum or mark_ours
            print(
                f"| {answer.question} | {mark_ours}{answer.ours_s:.3g} | {mark_captum}{answer.captum_s:.3g} "
                f"| {answer.ratio:.1f} | {answer.error:.1g} | {answer.cosine:.6f} |",
                flush=True,
            )
            answers.append({**asdict(answer), "ratio": answer.ratio})
    print(json.dumps({"machine": describe_machine(), "rows": rows, "device": device, "answers": answers}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
