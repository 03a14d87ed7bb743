"""Where does the time of a gradient stack go, on full-size MedCLIP-ViT with random weights?

    python -m benchmarks.where [rows=8] [rounds=5] [device=cpu]

By kind of operation, for the forward pass and for the vector-Jacobian products of a chunk of rows; by stage of the
image tower, forward, which bounds what an occlusion sweep saves by computing the touched windows of the first stages
only; and what `torch.set_float32_matmul_precision("medium")` does to a product of the tower's size, which
depends on the processor. It prints a table for each and ends with one JSON line.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.setting import describe_machine, full_size_model
from mapstack.explainer import Explainer
from mapstack.images import collate, from_array, prepare
from mapstack.methods import Gradient
from mapstack.methods.engine import row_gradients
from mapstack.models import EmbeddingModel
from mapstack.phantom import phantom
from mapstack.readouts import DirectionReadout

KINDS = {
    "matrix products of weights": ("addmm", "mm"),
    "matrix products of attention": ("bmm", "baddbmm", "scaled_dot_product"),
    "copies and layout": ("copy_", "clone", "cat", "contiguous", "index", "roll", "constant_pad", "repeat", "fill"),
    "softmax, GELU, layer norm": ("softmax", "gelu", "layer_norm"),
    "sums and products by element": ("add", "mul", "div", "sum", "mean", "sub"),
    "convolution": ("convolution", "mkldnn", "thnn"),
}


def kind_of(operator: str) -> str:
    """Return the kind of an operator by its name."""
    name = operator.removeprefix("aten::").lstrip("_")
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "other")


def shares(step: Callable[[], Any], rounds: int, device: str) -> dict[str, float]:
    """Return the share of the time of a step by kind, and its seconds under "seconds"."""
    step()
    started = time.perf_counter()
    for _ in range(rounds):
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / rounds
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as found:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in found.key_averages():
        if event.key.startswith("aten::"):
            spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            times[kind_of(event.key)] = times.get(kind_of(event.key), 0.0) + spent
    total = sum(times.values())
    return {**{kind: spent / total for kind, spent in times.items()}, "seconds": seconds}


def stage_shares(model: EmbeddingModel, pictures: torch.Tensor, rounds: int) -> dict[str, float]:
    """Return the share of a forward pass that each stage of the Swin tower takes."""
    tower = model.vision_model.model  # type: ignore[union-attr]
    times: dict[str, float] = {}
    begun: dict[str, float] = {}

    def watch(name: str, module: Any) -> None:
        def before(*_: Any) -> None:
            begun[name] = time.perf_counter()

        def after(*_: Any) -> None:
            times[name] = times.get(name, 0.0) + time.perf_counter() - begun[name]

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    watch("patches", tower.embeddings)
    for number, stage in enumerate(tower.encoder.layers, 1):
        watch(f"stage {number}", stage)
    with torch.no_grad():
        for _ in range(rounds):
            model.embed_images(pictures)
    total = sum(times.values())
    return {name: spent / total for name, spent in times.items()}


def products(device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return the rate [GFLOP/s] and the largest relative error of a float32 product, exact and "medium"."""
    left, right = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)
        for seed, shape in enumerate([(3136, 768), (768, 3072)])
    )
    expected = left.double() @ right.double()
    before, figures = torch.get_float32_matmul_precision(), {}
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            found = left @ right
            times = []
            for _ in range(max(rounds, 5)):
                started = time.perf_counter()
                left @ right
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
            n_operations = 2 * len(left) * right.numel()
            error = float((found - expected).abs().max() / expected.abs().max())
            figures[precision] = {"gflop_per_s": n_operations / min(times) / 1e9, "error": error}
    finally:
        torch.set_float32_matmul_precision(before)
    return figures


def main(arguments: list[str]) -> int:
    """Measure and print."""
    options = dict(argument.split("=", 1) for argument in arguments)
    rows, rounds, device = int(options.pop("rows", 8)), int(options.pop("rounds", 5)), options.pop("device", "cpu")
    if options:
        print(__doc__)
        return 2
    model = full_size_model().to(device)
    picture = prepare(from_array(phantom(0).pixels), model.preprocessing)
    inputs = Explainer(model, Gradient()).cast(collate([picture]))
    readout = DirectionReadout(torch.eye(512, device=device)[:rows], embed_dim=512, normalize=False)

    def forward() -> None:
        with torch.no_grad():
            model.embed_images(inputs.pixel_values)

    def stack() -> None:
        for _ in row_gradients(model, inputs.pixel_values, readout, rows_per_pass=rows)[1]:
            pass

    figures: dict[str, Any] = {}
    for name, step in {"forward": forward, f"forward and {rows} rows": stack}.items():
        figures[name] = shares(step, rounds, device)
        print(f"\n{name}: {figures[name]['seconds']:.3f} s")
        for kind, share in sorted(figures[name].items(), key=lambda pair: -pair[1]):
            if kind != "seconds":
                print(f"  {kind:32} {share:5.0%}")
    if device == "cpu":
        figures["stages"] = stage_shares(model, inputs.pixel_values.repeat(8, 1, 1, 1), rounds)
        print("\nforward, 8 pictures, by stage:")
        for stage, share in figures["stages"].items():
            print(f"  {stage:32} {share:5.0%}")
    figures["products"] = products(device, rounds)
    print("\na float32 product of the tower's size:")
    for precision, found in figures["products"].items():
        print(f"  {precision:8} {found['gflop_per_s']:6.0f} GFLOP/s, largest relative error {found['error']:.1g}")
    print(json.dumps({"machine": describe_machine(), "rows": rows, "device": device, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
