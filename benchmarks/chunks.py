"""How many rows, points and pictures at once, on full-size MedCLIP-ViT with random weights?

    python -m benchmarks.chunks [device=cpu]

Seconds a row of the gradient by rows in one pass, a point of integrated gradients of ten texts by points in one pass,
and a picture of the forward pass by batch. The sizes in mapstack/methods/engine.py are chosen from them. It ends with
one JSON line.
"""

import json
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.setting import describe_machine, full_size_model
from mapstack.explainer import Explainer
from mapstack.images import collate, from_array, prepare
from mapstack.methods import Gradient, IntegratedGradients, Method
from mapstack.phantom import phantom
from mapstack.readouts import DirectionReadout

N_ROWS, N_TEXTS, N_STEPS, ROUNDS = 32, 10, 8, 2
ROWS, POINTS, PICTURES = (4, 8, 16, 32), (1, 2, 8), (1, 4, 8, 32)


def main(arguments: list[str]) -> int:
    """Measure and print."""
    options = dict(argument.split("=", 1) for argument in arguments)
    device = options.pop("device", "cpu")
    if options:
        print(__doc__)
        return 2
    model = full_size_model().to(device)
    inputs = Explainer(model, Gradient()).cast(collate([prepare(from_array(phantom(0).pixels), model.preprocessing)]))

    def seconds(step: Callable[[], torch.Tensor]) -> float:
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            step().sum().item()  # waits for the device
            times.append(time.perf_counter() - started)
        return min(times)

    def maps(method: Method, n_rows: int) -> Callable[[], torch.Tensor]:
        readout = DirectionReadout(torch.eye(512, device=device)[:n_rows], embed_dim=512, normalize=False)
        return lambda: method.attribute(model, inputs, readout).values

    def forward(n: int) -> Callable[[], torch.Tensor]:
        pictures = inputs.pixel_values.repeat(n, 1, 1, 1)
        return torch.no_grad()(lambda: model.embed_images(pictures))

    found = {
        "row, by rows": {n: seconds(maps(Gradient(rows_per_pass=n), N_ROWS)) / N_ROWS for n in ROWS},
        "point, by points": {
            n: seconds(maps(IntegratedGradients(n_steps=N_STEPS, internal_batch_size=n, rows_per_pass=16), N_TEXTS))
            / N_STEPS
            for n in POINTS
        },
        "picture, by pictures": {n: seconds(forward(n)) / n for n in PICTURES},
    }
    for what, figures in found.items():
        print(f"seconds a {what} at once: " + "; ".join(f"{n}: {each:.3f}" for n, each in figures.items()))
    print(json.dumps({"machine": describe_machine(), "device": device, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
