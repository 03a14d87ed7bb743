"""How small can a stack be kept, at what speed, and what does that do to its maps?

    python -m benchmarks.store_size                      the demo model, 4 phantoms, and 40 for the second table
    python -m benchmarks.store_size --full-size          and the official architecture with random weights, 1 phantom
    python -m benchmarks.store_size --methods gradient   only that

Prints two tables in Markdown for each model and method, and ends with one JSON line.

The first compares each form of the store with float32 at the same map size: bytes of a record; speed of writing
(encode, compress, hash, write, fsync) and of reading (read, hash, decompress) in megabytes of the float32 stack, so
that codecs compare; time to project all texts, from the numbers as they are kept; and over all texts and pictures the
cosine of the maps, and their largest error as a share of each map's maximum. The second says what the map size itself
loses against 224 px: the cosine after enlarging, as they are and both smoothed, and how many findings of the phantoms
have the peak of their map inside.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from benchmarks.setting import CHECKPOINT, describe_machine, full_size_model
from mapstack.basis import Basis
from mapstack.codecs import Encoding
from mapstack.config import PromptsConfig
from mapstack.explainer import Explainer
from mapstack.geometry import reduce_area
from mapstack.images import Prepared, collate, from_array, prepare
from mapstack.methods import Gradient, IntegratedGradients, Method, Occlusion
from mapstack.metrics.localisation import pointing_game_hit
from mapstack.models import EmbeddingModel, load_model
from mapstack.phantom import NO_FINDING, Phantom, phantom
from mapstack.readouts import TextReadout
from mapstack.stack import OcclusionStack, Stack
from mapstack.store import COMPRESSIONS, Store, StoreWriter, finish, open_store_for_writing
from mapstack.stored_stack import describe_store, read_basis, read_stack, stack_arrays, stack_info

PROMPTS = Path(__file__).parents[1] / "configs" / "prompts" / "phantom.yaml"
FIRST_SEED = 9000  # of phantoms that the demo model was not trained on
MAP_SIZES = (224, 112, 56)
MAX_ERRORS = (0.1, 0.06, 0.04, 0.02, 0.01, 0.005)
SMOOTHING_PX = 6.0
METHODS: dict[str, Method] = {each.name: each for each in (Gradient(), IntegratedGradients(n_steps=8), Occlusion())}

Stacks = Sequence[Stack] | Sequence[OcclusionStack]


@dataclass(frozen=True)
class Form:
    """One form of the store, measured.

    Args:
        name: Basis and codec.
        compress: As in `Encoding`.
        map_size: Side of the maps [px].
        megabytes: Of a record, mean over pictures.
        rank: Rows that are kept, mean over pictures.
        write: Speed [MB of the float32 stack per second].
        read: Speed [MB of the float32 stack per second].
        project_ms: Time to project all texts on one picture [ms].
        cosine: Of the maps with those of float32, mean over texts and pictures.
        worst_cosine: The smallest of them.
        largest_error: Largest difference as a share of the map's maximum.
    """

    name: str
    compress: str
    map_size: int
    megabytes: float
    rank: float
    write: float
    read: float
    project_ms: float
    cosine: float
    worst_cosine: float
    largest_error: float


@dataclass(frozen=True)
class Reduction:
    """What a map size loses against the model's frame.

    Args:
        map_size: Side of the maps [px].
        cosine: Of the enlarged maps with the whole ones, mean over texts and pictures.
        smoothed_cosine: The same of both smoothed.
        hits: Findings whose map has its peak inside, of `n_findings`.
        smoothed_hits: The same of smoothed maps.
        n_findings: Findings in the pictures.
    """

    map_size: int
    cosine: float
    smoothed_cosine: float
    hits: int
    smoothed_hits: int
    n_findings: int


@dataclass(frozen=True)
class Bench:
    """A model with its pictures and texts.

    Args:
        model: The model.
        phantoms: Its pictures.
    """

    model: EmbeddingModel
    phantoms: list[Phantom]

    @cached_property
    def pictures(self) -> list[Prepared]:
        """The phantoms as the model sees them."""
        return [prepare(from_array(each.pixels), self.model.preprocessing) for each in self.phantoms]

    @cached_property
    def readout(self) -> TextReadout:
        """Every prompt by itself, and each class against a picture without a finding."""
        prompts = PromptsConfig(file=str(PROMPTS), ensemble="none")
        contrasts = PromptsConfig(file=str(PROMPTS), ensemble="mean", against=NO_FINDING)
        return Explainer(self.model, Gradient()).readout(prompts.groups() + contrasts.groups())

    def stacks(self, method: Method, basis: Basis | None = None) -> Stacks:
        """Attribute every picture by itself."""
        explainer = Explainer(self.model, method)
        return [explainer.stack(explainer.cast(collate([picture])), basis) for picture in self.pictures]


def reduced(stacks: Stacks, map_size: int) -> Stacks:
    """Return stacks at another map size."""
    if isinstance(stacks[0], OcclusionStack):
        return stacks
    return [replace(each, values=reduce_area(each.values, map_size)) for each in stacks]


@dataclass(frozen=True)
class Passed:
    """Stacks that went through a store: what is read of them, and what it took."""

    stacks: Stacks
    n_bytes: int
    write_s: float
    read_s: float


def through_store(bench: Bench, method: Method, stacks: Stacks, encoding: Encoding, map_size: int) -> Passed:
    """Write stacks into a store, each made durable by itself, and read them back."""
    basis = getattr(stacks[0], "basis", None)
    explainer = Explainer(bench.model, method, map_size=map_size)
    manifest = describe_store(explainer, basis, encoding=encoding, shards_digest="")
    infos = [stack_info(each) for each in stacks]
    with tempfile.TemporaryDirectory() as folder:
        with open_store_for_writing(folder, manifest, basis=None if basis is None else basis.rows.numpy()) as session:
            with StoreWriter(folder, session.run, 0, compress=encoding.compress) as writer:
                started = time.perf_counter()
                for number, (stack, info) in enumerate(zip(stacks, infos, strict=True)):
                    writer.write(str(number), stack_arrays(stack, encoding), info)
                    writer.commit()
                write_s = time.perf_counter() - started
            n_bytes = finish(session, len(stacks)).n_bytes
        store = Store(folder)
        basis, keys = read_basis(store.manifest, store.basis), store.keys()
        started = time.perf_counter()
        records = [store.read(key, check=True) for key in keys]
        read = [read_stack(each, store.manifest, basis, normalize=True, map_size=map_size) for each in records]
        return Passed(read, n_bytes, write_s, time.perf_counter() - started)


def measure(bench: Bench, method: Method, stacks: Stacks, encoding: Encoding, map_size: int, expected: Tensor) -> Form:
    """Send the stacks through a store and compare their maps with those of float32."""
    passed = through_store(bench, method, stacks, encoding, map_size)
    started = time.perf_counter()
    maps = torch.cat([each.project(bench.readout.directions) for each in passed.stacks])
    project_s = time.perf_counter() - started
    megabytes = sum(float32_bytes(each) for each in stacks) / 1e6
    cosines = cosine(maps, expected)
    largest = (maps - expected).abs().amax(dim=(-2, -1)) / expected.abs().amax(dim=(-2, -1))
    return Form(
        name=form_name(stacks[0], encoding),
        compress=encoding.compress,
        map_size=map_size,
        megabytes=passed.n_bytes / 1e6 / len(stacks),
        rank=mean(n_rows(each) for each in passed.stacks),
        write=megabytes / passed.write_s,
        read=megabytes / passed.read_s,
        project_ms=1000 * project_s / len(stacks),
        cosine=float(cosines.mean()),
        worst_cosine=float(cosines.min()),
        largest_error=float(largest.max()),
    )


def form_name(stack: Stack | OcclusionStack, encoding: Encoding) -> str:
    """Return what a form is called in the table."""
    if isinstance(stack, OcclusionStack):
        return "factored"
    name = encoding.codec + (f" {encoding.max_error:g}" if encoding.codec == "lowrank" else "")
    return name if stack.basis is None else f"prompts, {name}"


def float32_bytes(stack: Stack | OcclusionStack) -> int:
    """Return what the dense stack takes in float32."""
    if isinstance(stack, Stack):
        return 4 * stack.values.numel()
    return 4 * stack.embedding.shape[1] * stack.map_size**2


def n_rows(stack: Stack | OcclusionStack) -> int:
    """Return how many rows are kept: the rank of factors, the windows of a sweep."""
    return stack.values.shape[1] if isinstance(stack, Stack) else stack.sweep.occluded.shape[1]


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of each pair of maps."""
    return F.cosine_similarity(first.double().flatten(-2), second.double().flatten(-2), dim=-1)


def forms(bench: Bench, method: Method, stacks: Stacks, map_sizes: Sequence[int]) -> Iterator[Form]:
    """Measure every codec and compression at every size."""
    encodings = [
        Encoding(codec, compress=compress) for codec in ("float32", "float16", "int8") for compress in COMPRESSIONS
    ]
    encodings += [Encoding("lowrank", max_error, compress) for max_error in MAX_ERRORS for compress in COMPRESSIONS]
    if isinstance(stacks[0], OcclusionStack):
        encodings, map_sizes = [Encoding(compress=compress) for compress in COMPRESSIONS], map_sizes[:1]
    for map_size in map_sizes:
        small = reduced(stacks, map_size)
        expected = torch.cat([each.project(bench.readout.directions) for each in small])
        for encoding in encodings:
            yield measure(bench, method, small, encoding, map_size, expected)


def prompt_forms(bench: Bench, method: Method) -> Iterator[Form]:
    """Measure the stacks along the prompts."""
    readout = bench.readout
    stacks = bench.stacks(method, Basis.of(readout.span))
    expected = torch.cat([each.project(readout.directions) for each in stacks])
    for encoding in (Encoding("float16"), Encoding("int8"), Encoding("lowrank", 0.02)):
        yield measure(bench, method, stacks, encoding, MAP_SIZES[0], expected)


def reductions(bench: Bench, method: Method) -> Iterator[Reduction]:
    """Measure what smaller maps lose, along the texts, which takes a sixteenth of the time and gives the same maps."""
    basis = None if isinstance(method, Occlusion) else Basis.of(bench.readout.span)
    whole = torch.cat([each.project(bench.readout.directions) for each in bench.stacks(method, basis)])
    for map_size in MAP_SIZES:
        small = reduce_area(whole, map_size)
        enlarged = F.interpolate(small, whole.shape[-2:], mode="bilinear", align_corners=False)
        yield Reduction(
            map_size=map_size,
            cosine=float(cosine(enlarged, whole).mean()),
            smoothed_cosine=float(cosine(smoothed(enlarged), smoothed(whole)).mean()),
            hits=n_hits(bench, small),
            smoothed_hits=n_hits(bench, smoothed(small)),
            n_findings=sum(len(each.findings) for each in bench.phantoms),
        )


def smoothed(maps: Tensor) -> Tensor:
    """Smooth maps of any size by the same distance in the model's frame."""
    sigma = SMOOTHING_PX * maps.shape[-1] / MAP_SIZES[0]
    side = 2 * int(3 * sigma + 1) + 1
    return gaussian_blur(maps, [side, side], [sigma, sigma])


def n_hits(bench: Bench, maps: Tensor) -> int:
    """Count the findings whose contrast has its peak inside."""
    rows = {group.name: row for row, group in enumerate(bench.readout.groups)}
    return sum(
        pointing_game_hit(
            picture.geometry.to_original(maps[number, rows[f"{finding.label} rather than {NO_FINDING}"]]),
            torch.tensor(finding.mask),
        )
        for number, (picture, film) in enumerate(zip(bench.pictures, bench.phantoms, strict=True))
        for finding in film.findings
    )


def print_forms(title: str, rows: Sequence[Form]) -> None:
    """Print a table."""
    print(f"\n### {title}\n")
    print("| codec | compress | map size | MB | rows | write MB/s | read MB/s | project ms | cosine | worst | error |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.compress} | {row.map_size} | {row.megabytes:.2f} | {row.rank:.0f} | {row.write:.0f} "
            f"| {row.read:.0f} | {row.project_ms:.1f} | {row.cosine:.5f} | {row.worst_cosine:.5f} "
            f"| {row.largest_error:.2g} |",
            flush=True,
        )


def print_reductions(rows: Sequence[Reduction]) -> None:
    """Print a table."""
    print("\n| map size | cosine with 224 px | of smoothed maps | hits | of smoothed maps |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.map_size} | {row.cosine:.3f} | {row.smoothed_cosine:.3f} | {row.hits} of {row.n_findings} "
            f"| {row.smoothed_hits} of {row.n_findings} |",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4, help="phantoms for the demo model")
    parser.add_argument("--reduced", type=int, default=40, help="phantoms for what the map size loses")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS), help="for the demo model")
    parser.add_argument("--full-size", action="store_true", help="also the official architecture, which takes minutes")
    arguments = parser.parse_args()
    print(json.dumps(describe_machine()))
    found: dict[str, object] = {}
    model = load_model("medclip-vit", CHECKPOINT)
    bench, many = (
        Bench(model, [phantom(FIRST_SEED + i) for i in range(n)]) for n in (arguments.pictures, arguments.reduced)
    )
    for name in arguments.methods:
        method = METHODS[name]
        stacks = bench.stacks(method)
        rows = list(forms(bench, method, stacks, MAP_SIZES))
        lost = list(reductions(many, method))
        if not isinstance(method, Occlusion):
            rows += prompt_forms(bench, method)
        print_forms(f"{name}, demo model, {arguments.pictures} phantoms", rows)
        print_reductions(lost)
        found[name] = {"forms": [asdict(row) for row in rows], "sizes": [asdict(row) for row in lost]}
    if arguments.full_size:
        bench = Bench(full_size_model(), bench.phantoms[:1])
        method = METHODS["gradient"]
        rows = list(forms(bench, method, bench.stacks(method), MAP_SIZES[:1]))
        print_forms("gradient, official architecture, random weights, 1 phantom", rows)
        found["full size"] = {"forms": [asdict(row) for row in rows]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
