"""How many points does integrated gradients need for its maps to sum to what they explain?

    python -m benchmarks.points [pictures=5] [tolerance=0.01]

On the demo model and phantoms that it was not trained on, for every class and its contrast with a normal chest: the
completeness residual as a share of max(|explained difference|, 0.1), the largest of all pictures and texts, by
baseline, quadrature and number of points. What a map would sum to is found by one forward-mode derivative a point,
without the map, as `n_steps: auto` does. It prints a table, the fewest points within the tolerance, and ends with one
JSON line.
"""

import json
import sys

import torch
from torch import Tensor

from benchmarks.setting import CHECKPOINT, describe_machine
from benchmarks.store_size import FIRST_SEED, PROMPTS
from mapstack.baselines import baseline
from mapstack.config import PromptsConfig
from mapstack.explainer import Explainer
from mapstack.images import collate, from_array, prepare
from mapstack.methods import Gradient
from mapstack.methods.path import gauss_legendre
from mapstack.models import load_model
from mapstack.phantom import NO_FINDING, phantom
from mapstack.readouts import TextReadout

BASELINES = ("black", "mean", "white")
N_POINTS = (8, 16, 20, 30, 40, 60, 80, 120, 200, 320)
POINTS_AT_ONCE = 8
SMALLEST_DIFFERENCE = 0.1


def midpoints(n: int) -> list[tuple[float, float]]:
    """Return (position, weight) of the midpoint rule on [0, 1], Captum's `riemann_middle`."""
    return [((i + 0.5) / n, 1 / n) for i in range(n)]


RULES = {"Gauss-Legendre": gauss_legendre, "midpoint": midpoints}


def residual_share(readout: TextReadout, explainer: Explainer, start: Tensor, end: Tensor, rule: str, n: int) -> float:
    """Return the largest residual of a picture's maps, as a share of what they explain."""

    def read(points: Tensor) -> Tensor:
        return readout(explainer.model.embed_images(points))

    with torch.no_grad():
        difference = read(end[None])[0] - read(start[None])[0]
    positions, weights = (torch.tensor(each) for each in zip(*RULES[rule](n), strict=True))
    total = torch.zeros_like(difference)
    for some, weight in zip(positions.split(POINTS_AT_ONCE), weights.split(POINTS_AT_ONCE), strict=True):
        step = (end - start).expand(len(some), -1, -1, -1).contiguous()
        points = start + some[:, None, None, None] * step
        total += weight @ torch.func.jvp(read, (points,), (step,))[1].detach()
    return float(((total - difference).abs() / difference.abs().clamp_min(SMALLEST_DIFFERENCE)).max())


def main(arguments: list[str]) -> int:
    """Measure and print."""
    options = dict(argument.split("=", 1) for argument in arguments)
    n_pictures, tolerance = int(options.pop("pictures", 5)), float(options.pop("tolerance", 0.01))
    if options:
        print(__doc__)
        return 2
    explainer = Explainer(load_model("medclip-vit", CHECKPOINT), Gradient())
    classes = PromptsConfig(file=str(PROMPTS), ensemble="mean")
    contrasts = PromptsConfig(file=str(PROMPTS), ensemble="mean", against=NO_FINDING)
    readout = explainer.readout(classes.groups() + contrasts.groups())
    preprocessing = explainer.model.preprocessing
    pictures = [prepare(from_array(phantom(FIRST_SEED + i).pixels), preprocessing) for i in range(n_pictures)]
    inputs = explainer.cast(collate(pictures))
    print("| baseline | rule | " + " | ".join(map(str, N_POINTS)) + f" | within {tolerance:.0%} from |")
    print("|---|---|" + "---|" * (len(N_POINTS) + 1))
    figures = []
    for name in BASELINES:
        starts = baseline(name, inputs, preprocessing, 0).to(inputs.pixel_values)
        for rule in RULES:
            worst = {
                n: max(
                    residual_share(readout, explainer, start, end, rule, n)
                    for start, end in zip(starts, inputs.pixel_values, strict=True)
                )
                for n in N_POINTS
            }
            enough = next((n for n in N_POINTS if all(worst[m] <= tolerance for m in N_POINTS if m >= n)), None)
            cells = " | ".join(f"{share:.2%}" for share in worst.values())
            print(f"| {name} | {rule} | {cells} | {enough or 'none of these'} |", flush=True)
            figures.append({"baseline": name, "rule": rule, "worst": worst, "enough": enough})
    print(json.dumps({"machine": describe_machine(), "pictures": n_pictures, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
