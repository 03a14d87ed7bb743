"""What one GPU gives and what of it is reached: the question `card` of benchmarks.speed.

Ceilings are measured first: one large product of bfloat16 matrices, and one copy on the device. Then the gradient stack
and the stack of integrated gradients in each precision, with the share of the ceilings, the memory, and the ratio to
Captum's loop. On a CPU it runs too, with small ceilings and without figures of memory, so that it can be tested.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.setting import Bench, differences
from mapstack.methods import Gradient, IntegratedGradients
from mapstack.models import EmbeddingModel, in_precision

N_STEPS, N_PARITY = 20, 16
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
MOST_MEMORY = 20 * 2**30  # of the 24 GB card that the method was published with
MOST_DIFFERENCE = 1e-4  # of a row, GPU against CPU, as a share of its largest value


class Work(TorchDispatchMode):
    """Counts what operators multiply, and the bytes that they read and write.

    Views cost nothing, and of an operand that is broadcast only what is stored counts. A cache lets less than this pass
    through the memory, so that a rate above that of a copy is possible.

    Attributes:
        flops: By torch's own formulas: matrix products and convolutions.
        n_bytes: Operands and results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        if not func.is_view:
            tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
            self.n_bytes += sum(min(each.nbytes, each.untyped_storage().nbytes()) for each in tensors)
        return result


def ceilings(bench: Bench) -> dict[str, float]:
    """Measure the rate of bfloat16 products [FLOP/s] and of a copy, read and written [byte/s]."""
    device = bench.model.device
    side, n_bytes = (8192, 2**30) if device.type == "cuda" else (256, 2**22)
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    _, product_s = bench.timed(lambda: matrix @ matrix, 10)
    _, copy_s = bench.timed(lambda: target.copy_(source), 10)
    return {"flop_per_s": 2 * side**3 / product_s, "byte_per_s": 2 * n_bytes / copy_s}


def parity(bench: Bench) -> float:
    """Return the largest relative difference of gradient rows in float32 from those of a CPU."""
    on_cpu = Bench(copy.deepcopy(bench.model).to("cpu"), bench.inputs.to(torch.device("cpu")), bench.rows)
    rows = [Gradient().attribute(each.model, each.inputs, each.axes(N_PARITY)).values[0] for each in (bench, on_cpu)]
    return differences(*rows)[0]


def measure(bench: Bench, captum_s_a_row: float) -> dict[str, Any]:
    """Measure everything.

    Args:
        bench: On the device that is measured.
        captum_s_a_row: What Captum's loop takes for a row [s].
    """
    limits = ceilings(bench)
    figures = {}
    exact: Tensor | None = None
    for precision in PRECISIONS:
        model = in_precision(bench.model, precision)
        stack, seconds, peak = _timed(bench, Gradient(), model, 3)
        with Work() as work:
            Gradient().attribute(model, bench.inputs, bench.axes(model.embed_dim))
        _, path_s, path_peak = _timed(bench, IntegratedGradients(n_steps=N_STEPS), model, 1)
        exact = stack if exact is None else exact
        error, cosine = differences(stack, exact)
        figures[precision] = {
            "gradient_s": seconds,
            "integrated_gradients_s": path_s,
            "times_captum": captum_s_a_row * model.embed_dim / seconds,
            "flop": work.flops,
            "share_of_products": work.flops / seconds / limits["flop_per_s"],
            "share_of_copy": work.n_bytes / seconds / limits["byte_per_s"],
            "peak_bytes": max(peak, path_peak),
            "error": error,
            "cosine": cosine,
        }
    return {"ceilings": limits, "parity": parity(bench), "precisions": figures}


def _timed(
    bench: Bench, method: Gradient | IntegratedGradients, model: EmbeddingModel, rounds: int
) -> tuple[Tensor, float, int]:
    """Return the stack along all axes, its shortest time [s], and the most device memory that was in use [bytes]."""
    is_cuda = bench.model.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    readout = bench.axes(model.embed_dim)
    stack, seconds = bench.timed(lambda: method.attribute(model, bench.inputs, readout).values[0], rounds)
    return stack.cpu(), seconds, torch.cuda.max_memory_allocated() if is_cuda else 0


def table(figures: dict[str, Any]) -> str:
    """Write the figures for people, and whether the bounds are kept."""
    limits, found = figures["ceilings"], figures["precisions"]
    lines = [
        "",
        f"ceilings: {limits['flop_per_s'] / 1e12:.3g} TFLOP/s of bfloat16 products, "
        f"{limits['byte_per_s'] / 1e9:.4g} GB/s of a copy; "
        f"gradient rows differ from a CPU's by {figures['parity']:.1g} ({_kept(figures['parity'], MOST_DIFFERENCE)})",
        "",
        "| precision | gradient stack ms | Captum's loop takes | of the products | of the copy "
        f"| integrated gradients, {N_STEPS} points s | GiB | error | cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for precision, each in found.items():
        lines.append(
            f"| {precision} | {1000 * each['gradient_s']:.3g} | {each['times_captum']:.0f} x "
            f"| {each['share_of_products']:.1%} | {each['share_of_copy']:.1%} | {each['integrated_gradients_s']:.3g} "
            f"| {each['peak_bytes'] / 2**30:.2f} ({_kept(each['peak_bytes'], MOST_MEMORY)}) "
            f"| {each['error']:.1g} | {each['cosine']:.6f} |"
        )
    return "\n".join(lines)


def _kept(value: float, most: float) -> str:
    bound = f"{most / 2**30:.0f} GiB" if most >= 2**30 else f"{most:.0e}"
    return f"within {bound}" if value <= most else f"ABOVE {bound}"
