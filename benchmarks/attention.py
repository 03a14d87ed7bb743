"""Do fused attention and a compiler pay, on full-size MedCLIP-ViT with random weights?

    python -m benchmarks.attention [rows=8] [pictures=8] [rounds=3] [device=cpu] [compile=1]

The tower as it is, against the same with `scaled_dot_product_attention` in place of the written-out attention of Swin,
whose relative position bias and shift mask go in as the mask; and against `torch.compile` of the tower, where a
compiler is present. Seconds of a forward pass without gradients (all that occlusion takes), of one with its graph and
`rows` batched vector-Jacobian products (the gradient stack), and whether forward-mode derivatives are possible, which
`n_steps: auto` needs. It prints a table and ends with one JSON line.
"""

import copy
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.setting import Bench, describe_machine, differences, full_size_model
from mapstack.methods.engine import row_gradients
from mapstack.models import EmbeddingModel


def fused_attention(
    attention: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    head_mask: Tensor | None = None,
    output_attentions: bool | None = False,
) -> tuple[Tensor]:
    """Do what transformers' `SwinSelfAttention.forward` does, by one fused operator."""
    n_windows, n_tokens, _ = hidden_states.shape
    n_heads = attention.num_attention_heads

    def heads(projection: nn.Module) -> Tensor:
        split: Tensor = projection(hidden_states).view(n_windows, n_tokens, n_heads, -1)
        return split.transpose(1, 2)

    bias = attention.relative_position_bias_table[attention.relative_position_index.view(-1)]
    mask = bias.view(n_tokens, n_tokens, n_heads).permute(2, 0, 1)[None]
    if attention_mask is not None:
        mask = (mask + attention_mask[:, None]).repeat(n_windows // len(attention_mask), 1, 1, 1)
    else:
        mask = mask.expand(n_windows, -1, -1, -1)
    read = F.scaled_dot_product_attention(
        heads(attention.query), heads(attention.key), heads(attention.value), attn_mask=mask
    )
    return (read.transpose(1, 2).flatten(2),)


def with_fused_attention(model: EmbeddingModel) -> EmbeddingModel:
    """Return a copy of a model whose Swin tower attends by one fused operator."""
    fused = copy.deepcopy(model)
    for module in fused.modules():
        if type(module).__name__ == "SwinSelfAttention":
            module.forward = partial(fused_attention, module)  # type: ignore[method-assign]
    return fused


def compiled(model: EmbeddingModel) -> EmbeddingModel:
    """Return a copy of a model whose image tower is compiled when it is first called."""
    faster: Any = copy.deepcopy(model)
    faster.vision_model = torch.compile(faster.vision_model)
    return faster  # type: ignore[no-any-return]


def seconds(step: Callable[[], Tensor], rounds: int) -> tuple[Tensor, float]:
    """Return what a step answers, and its shortest time [s] after a first run."""
    result, times = step(), []
    for _ in range(rounds):
        started = time.perf_counter()
        result = step()
        result.sum().item()  # waits for the device
        times.append(time.perf_counter() - started)
    return result, min(times)


def measure(bench: Bench, model: EmbeddingModel, n_pictures: int, rounds: int, *, graph: bool) -> dict[str, Any]:
    """Return the answers and seconds of a model."""
    pictures = bench.inputs.pixel_values.repeat(n_pictures, 1, 1, 1)

    def forward() -> Tensor:
        with torch.no_grad():
            return model.embed_images(pictures)

    def rows() -> Tensor:
        _, chunks = row_gradients(model, bench.inputs.pixel_values, bench.axes(bench.rows), rows_per_pass=bench.rows)
        return torch.cat([gradient for _, gradient in chunks])[:, 0, 0]

    figures: dict[str, Any] = {}
    figures["embeddings"], figures["forward_s"] = seconds(forward, rounds)
    if graph:
        figures["maps"], figures["rows_s"] = seconds(rows, rounds)
        figures["forward_mode"] = has_forward_mode(model, bench.inputs.pixel_values)
    return figures


def has_forward_mode(model: EmbeddingModel, pictures: Tensor) -> bool:
    """Say whether a model can be differentiated forward."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch's own, when it loads its formulas
    try:
        torch.func.jvp(model.embed_images, (pictures,), (torch.ones_like(pictures),))
    except (NotImplementedError, RuntimeError):
        return False
    return True


def compare(bench: Bench, n_pictures: int, rounds: int, *, is_compiling: bool) -> dict[str, dict[str, Any]]:
    """Measure the tower as it is and the other ways, and print a line for each."""
    ways: dict[str, Callable[[EmbeddingModel], EmbeddingModel]] = {"as it is": lambda model: model}
    ways["fused attention"] = with_fused_attention
    if is_compiling:
        ways["compiled"] = compiled
    print("| tower | forward s a picture | ratio | error | forward and rows s | ratio | error | forward mode |")
    print("|---|---|---|---|---|---|---|---|")
    figures: dict[str, dict[str, Any]] = {}
    first: dict[str, Any] = {}
    for name, change in ways.items():
        # The backward pass of a compiled tower cannot be batched: its gradients would be taken one by one.
        found = measure(bench, change(bench.model), n_pictures, rounds, graph=name != "compiled")
        first = first or found
        figures[name] = {
            "forward_s": found["forward_s"] / n_pictures,
            "forward_ratio": first["forward_s"] / found["forward_s"],
            "forward_error": differences(found["embeddings"][:, None], first["embeddings"][:, None])[0],
        }
        told = "{forward_s:.4f} | {forward_ratio:.2f} | {forward_error:.1g}".format(**figures[name])
        if "maps" in found:
            figures[name] |= {
                "rows_s": found["rows_s"],
                "rows_ratio": first["rows_s"] / found["rows_s"],
                "rows_error": differences(found["maps"], first["maps"])[0],
                "forward_mode": found["forward_mode"],
            }
            told += " | {rows_s:.3f} | {rows_ratio:.2f} | {rows_error:.1g} | {forward_mode}".format(**figures[name])
        else:
            told += " | | | |"
        print(f"| {name} | {told} |", flush=True)
    return figures


def main(arguments: list[str]) -> int:
    """Measure and print."""
    options = dict(argument.split("=", 1) for argument in arguments)
    rows, n_pictures, rounds = (int(options.pop(name, n)) for name, n in (("rows", 8), ("pictures", 8), ("rounds", 3)))
    device, is_asked = options.pop("device", "cpu"), options.pop("compile", "1") == "1"
    if options:
        print(__doc__)
        return 2
    bench = Bench.of(full_size_model, rows, device)
    # Operators without a batched backward formula are looped over, which torch warns of and the table shows.
    warnings.filterwarnings("ignore", message="There is a performance drop")
    is_compiling = is_asked and (device != "cpu" or shutil.which("g++") is not None)
    figures = compare(bench, n_pictures, rounds, is_compiling=is_compiling)
    print(json.dumps({"machine": describe_machine(), "rows": rows, "device": device, "towers": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
