"""What an archive costs: bytes, hours and money, from unit figures.

    python -m benchmarks.scale [cpu=JSON] [gpu=JSON] [store=JSON]

Each argument replaces some of the figures of one block by measured ones, such as gpu='{"row_s": 4e-5}'. It prints the
tables of docs/scale.md, which a test compares with the figures that stand here.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace

from mapstack.config import PromptsConfig
from mapstack.methods import GradientShap, IntegratedGradients, Occlusion

SIDE, EMBED_DIM = 224, 512
ARCHIVES = (2_000, 377_110)
CODECS = {"float32": 4, "float16": 2, "int8": 1}
RECORD_OVERHEAD = 20_000
"""Tar headers, embeddings, scales and the JSON of a record [bytes], whose rows each have a convergence_delta."""


@dataclass(frozen=True)
class Machine:
    """The unit figures of what computes.

    Args:
        forward_s: One picture through the image tower, in a batch, no gradient [s].
        window_s: One window of an occlusion sweep [s].
        row_s: One row of a gradient stack: a vector-Jacobian product of one picture [s].
        price: Of one hour, in dollars: an assumption everywhere.
        source: Where the times come from.
    """

    forward_s: float
    window_s: float
    row_s: float
    price: float
    source: str


@dataclass(frozen=True)
class Plumbing:
    """The unit figures of what stores.

    Args:
        mb_per_s: What one rank stores of float16 stacks, rounding included [MB/s].
        lowrank_mb: A `lowrank` record along the axes, on the demo model [MB].
        zstd_float16_mb: A `float16` record along the axes, compressed, on the demo model [MB].
        zstd_int8_mb: An `int8` record, likewise [MB].
        prompts_lowrank_mb: A `lowrank` record of `max_error: 0.02` along the 39 texts of the phantoms [MB].
        pictures_rows: Rows of a basis that is fitted to pictures, for an error of 0.8 % on the demo model.
        source: Where they come from.
    """

    mb_per_s: float
    lowrank_mb: float
    zstd_float16_mb: float
    zstd_int8_mb: float
    prompts_lowrank_mb: float
    pictures_rows: int
    source: str


CPU = Machine(0.070, 0.047, 0.077, 0.10, "benchmarks/RESULTS.md, two CPU cores, full-size MedCLIP-ViT, float32")
GPU = Machine(
    0.001,
    0.001,
    0.029 / EMBED_DIM,
    2.50,
    "ASSUMED, not measured: 30 ms a gradient stack is the project's target on one H100, 1 ms of it the forward pass, "
    "and as much for a window of occlusion",
)
STORE = Plumbing(
    556.0,
    2.70,
    48.70,
    9.23,
    0.76,
    64,
    "benchmarks/pipeline.py, the loop without a model on two cores; sizes on the demo model are those of "
    "benchmarks/store_size.py, lowrank's at max_error 0.01 where nothing else is said; the rows of a basis of pictures "
    "are benchmarks/few_rows.py's",
)


def n_texts() -> tuple[int, int]:
    """Count the classes and the sentences of the shipped prompts, the most rows that their bases can have."""
    shipped = "configs/prompts/mimic_cxr.yaml"
    means, sentences = (PromptsConfig(file=shipped, ensemble=ensemble).groups() for ensemble in ("mean", "none"))
    return len(means), len(sentences)


def bases() -> dict[str, int]:
    """Name each basis with its rows."""
    n_classes, n_sentences = n_texts()
    return {
        "axes": EMBED_DIM,
        f"prompts, {n_sentences} sentences": n_sentences,
        f"prompts, {n_classes} class means": n_classes,
    }


def seconds_per_image(machine: Machine, rows: int) -> dict[str, float]:
    """Say what each method takes for one picture [s], along a basis of so many rows.

    Example:
        >>> round(seconds_per_image(Machine(1.0, 0.5, 0.1, 0.0, ""), rows=10)["gradient"], 6)
        2.0
    """
    stack_s = machine.forward_s + rows * machine.row_s
    steps, samples, windows = IntegratedGradients().n_steps, GradientShap().n_samples, len(Occlusion().windows(SIDE))
    return {
        "gradient": stack_s,
        f"integrated gradients, {steps} steps": 2 * machine.forward_s + int(steps) * stack_s,
        f"GradientSHAP, {samples} samples": (1 + len(GradientShap().baselines)) * machine.forward_s + samples * stack_s,
        f"occlusion, {windows} windows": 2 * machine.forward_s + windows * machine.window_s,
    }


def record_bytes(rows: int, codec: str, side: int = SIDE) -> int:
    """Say how large a dense record is [bytes]."""
    return rows * side**2 * CODECS[codec] + RECORD_OVERHEAD


def occlusion_bytes() -> int:
    """Say how large a factored occlusion record is [bytes]: one float32 embedding a window."""
    return len(Occlusion().windows(SIDE)) * EMBED_DIM * 4 + RECORD_OVERHEAD


def time_table(machine: Machine) -> str:
    """Write hours and money for every method and basis."""
    lines = [
        f"Unit figures: {1000 * machine.forward_s:.3g} ms a forward pass, {1000 * machine.row_s:.3g} ms a row, "
        f"{1000 * machine.window_s:.3g} ms a window, "
        f"${machine.price:.2f} an hour (assumed). Source: {machine.source}.",
        "",
        "| method | basis | s an image | " + " | ".join(f"{n:,} images: hours | cost" for n in ARCHIVES) + " |",
        "|---|---|---|" + "---|---|" * len(ARCHIVES),
    ]
    for basis, rows in bases().items():
        for method, seconds in seconds_per_image(machine, rows).items():
            is_factored = method.startswith("occlusion")
            if is_factored and basis != "axes":
                continue
            hours = [n * seconds / 3600 for n in ARCHIVES]
            cells = " | ".join(f"{number(each)} | {money(each * machine.price)}" for each in hours)
            lines.append(f"| {method} | {'any' if is_factored else basis} | {number(seconds)} | {cells} |")
    return "\n".join(lines)


def size_table(store: Plumbing) -> str:
    """Write the bytes for every basis and codec, and how long one rank takes to store the largest of the usual ones."""
    lines = [
        "| basis | codec | MB an image | " + " | ".join(f"{n:,} images" for n in ARCHIVES) + " |",
        "|---|---|---|" + "---|" * len(ARCHIVES),
    ]
    sizes = {(basis, codec): float(record_bytes(rows, codec)) for basis, rows in bases().items() for codec in CODECS}
    sizes["axes", "float16 and zstd, on the demo model"] = store.zstd_float16_mb * 1e6
    sizes["axes", "int8 and zstd, on the demo model"] = store.zstd_int8_mb * 1e6
    sizes["axes", "lowrank, on the demo model"] = store.lowrank_mb * 1e6
    sizes["prompts, 39 texts", "lowrank 0.02, on the demo model"] = store.prompts_lowrank_mb * 1e6
    sizes[f"pictures, {store.pictures_rows} rows", "float16"] = float(record_bytes(store.pictures_rows, "float16"))
    sizes["any", "factored occlusion"] = occlusion_bytes()
    for (basis, codec), n_bytes in sizes.items():
        cells = " | ".join(size(n * n_bytes) for n in ARCHIVES)
        lines.append(f"| {basis} | {codec} | {number(n_bytes / 1e6)} | {cells} |")
    n_bytes = record_bytes(EMBED_DIM, "float16")
    seconds = n_bytes / store.mb_per_s / 1e6
    hours = [f"{number(n * seconds / 3600)} hours for {n:,}" for n in ARCHIVES]
    lines += [
        "",
        f"One rank stores {store.mb_per_s:.0f} MB/s of float16 stacks along the axes, one in {1000 * seconds:.0f} ms: "
        f"{' and '.join(hours)} images. Source: {store.source}.",
    ]
    return "\n".join(lines)


def number(value: float) -> str:
    """Write three digits.

    Example:
        >>> number(93456.7), number(0.03), number(12.0)
        ('93,500', '0.03', '12')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:.3g}"


def money(dollars: float) -> str:
    """Write dollars.

    Example:
        >>> money(9345.6), money(0.0417)
        ('$9,350', '$0.04')
    """
    return f"${number(dollars)}" if dollars >= 100 else f"${dollars:.2f}"


def size(n_bytes: float) -> str:
    """Write bytes for people.

    Example:
        >>> size(19_380_000_000_000)
        '19.4 TB'
    """
    unit, power = ("TB", 1e12) if n_bytes >= 1e12 else ("GB", 1e9)
    return f"{number(n_bytes / power)} {unit}"


def tables(cpu: Machine = CPU, gpu: Machine = GPU, store: Plumbing = STORE) -> str:
    """Write everything that docs/scale.md quotes."""
    return "\n\n".join(
        [
            "### Bytes",
            size_table(store),
            "### Time on two CPU cores",
            time_table(cpu),
            "### Time on one GPU",
            time_table(gpu),
        ]
    )


def main(arguments: list[str]) -> int:
    """Print the tables."""
    blocks = {"cpu": CPU, "gpu": GPU, "store": STORE}
    for argument in arguments:
        name, _, text = argument.partition("=")
        if name not in blocks:
            print(__doc__)
            return 2
        blocks[name] = replace(blocks[name], **{"source": "given on the command line", **json.loads(text)})
    print(tables(**blocks))
    print(json.dumps({name: asdict(block) for name, block in blocks.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
