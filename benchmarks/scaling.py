"""How does the cost grow with texts, pictures, steps and ranks?

    python -m benchmarks.scaling FOLDER [device=cpu] [only=texts,pictures,steps,ranks]

The first three are the engine's, on full-size MedCLIP-ViT with random weights: seconds by rows of a gradient map, by
pictures at ten texts, and by points of integrated gradients at ten texts. The last is the whole command `extract` on
the demo model, less the time in which it starts, with one and with two ranks on the CPU, or with as many as there are
GPUs. FOLDER gets scaling.png; a table is printed, and one JSON line at the end.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
import torch

from benchmarks.ready_stacks import write_shard
from benchmarks.setting import CHECKPOINT, describe_machine, full_size_model
from mapstack.explainer import Explainer
from mapstack.images import Inputs, collate, from_array, prepare
from mapstack.methods import Gradient, IntegratedGradients, Method
from mapstack.models import EmbeddingModel
from mapstack.phantom import phantom
from mapstack.readouts import DirectionReadout

N_TEXTS, ROUNDS = 10, 2
COUNTS: dict[str, tuple[int, ...]] = {
    "texts": (1, 2, 4, 8, 16, 32, 64),
    "pictures": (1, 2, 4, 8),
    "steps": (1, 2, 4, 8, 16),
    "ranks": (1, 2, 4, 8),
}
RANKS_ON_CPU = 2
N_SAMPLES = 24


def inputs_of(model: EmbeddingModel, n: int) -> Inputs:
    """Return so many phantoms, prepared."""
    pictures = [prepare(from_array(phantom(seed).pixels), model.preprocessing) for seed in range(n)]
    return Explainer(model, Gradient()).cast(collate(pictures))


def engine_seconds(model: EmbeddingModel, method: Method, n_pictures: int, n_rows: int) -> float:
    """Return the shortest time of some [s]."""
    inputs = inputs_of(model, n_pictures)
    directions = torch.randn(n_rows, model.embed_dim, generator=torch.Generator().manual_seed(0)).to(model.device)
    readout = DirectionReadout(directions, embed_dim=model.embed_dim)
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        method.attribute(model, inputs, readout).values.sum().item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times)


def counts(name: str, device: str) -> tuple[int, ...]:
    """Return the counts of a question; of ranks no more than there are devices for them."""
    if name != "ranks":
        return COUNTS[name]
    n_devices = RANKS_ON_CPU if device == "cpu" else torch.cuda.device_count()
    return tuple(n for n in COUNTS[name] if n <= n_devices)


def extraction(shard: Path, output: str, n_samples: int, n_ranks: int, device: str) -> list[str]:
    """Return the command that extracts gradient stacks with so many ranks."""
    return [
        *(sys.executable, "-m", "train_like", "extract", "configs/demo.yaml", f"data.shards={shard}"),
        *(f"output={output}", f"data.limit={n_samples}", "data.batch_size=2"),
        *(f"trainer.accelerator={device}", f"trainer.devices={n_ranks}"),
        *(f"model.checkpoint={CHECKPOINT}", "method={name: gradient}"),
    ]


def rank_seconds(n_ranks: int, device: str) -> float:
    """Return what `extract` takes for the pictures themselves: for all of them, less for two [s]."""
    with tempfile.TemporaryDirectory() as folder:
        shard = write_shard(Path(folder) / "in.tar", N_SAMPLES)

        def run(n_samples: int) -> float:
            started = time.perf_counter()
            command = extraction(shard, f"{folder}/store-{n_samples}", n_samples, n_ranks, device)
            subprocess.run(command, check=True, capture_output=True)
            return time.perf_counter() - started

        return run(N_SAMPLES) - run(2)


def measure(name: str, device: str) -> dict[int, float]:
    """Return the seconds of each count."""
    if name == "ranks":
        return {n: rank_seconds(n, device) for n in counts(name, device)}
    model = full_size_model().to(device)
    seconds: Mapping[str, Callable[[int], float]] = {
        "texts": lambda n: engine_seconds(model, Gradient(), 1, n),
        "pictures": lambda n: engine_seconds(model, Gradient(), n, N_TEXTS),
        "steps": lambda n: engine_seconds(model, IntegratedGradients(n_steps=n), 1, N_TEXTS),
    }
    return {n: seconds[name](n) for n in counts(name, device)}


def draw(found: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw one panel a question, and what one straight line through its ends would be."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(found), figsize=(3.4 * len(found), 3.2), layout="constrained", squeeze=False
    )
    for panel, (name, seconds) in zip(panels[0], found.items(), strict=True):
        counts, times = list(seconds), list(seconds.values())
        panel.plot(counts, times, "o-", label="measured")
        if name != "ranks":
            panel.plot([counts[0], counts[-1]], [times[0], times[-1]], ":", color="0.5", label="straight line")
        panel.set(xlabel=name, ylabel="seconds", ylim=(0, None))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> int:
    """Measure, print and draw."""
    options = dict(argument.split("=", 1) for argument in arguments[1:])
    asked = options.pop("only", ",".join(COUNTS)).split(",")
    device = options.pop("device", "cpu")
    if not arguments or "=" in arguments[0] or options or not set(asked) <= set(COUNTS):
        print(__doc__)
        return 2
    found = {}
    for name in asked:
        found[name] = measure(name, device)
        told = ", ".join(f"{n}: {seconds:.2f}" for n, seconds in found[name].items())
        print(f"{name:8} [s]   {told}", flush=True)
    Path(arguments[0]).mkdir(parents=True, exist_ok=True)
    draw(found, Path(arguments[0]) / "scaling.png")
    print(json.dumps({"machine": describe_machine(), "device": device, "seconds": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
