"""`doctor`: one page on what this machine can do with a planned run, before the run is started."""

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mapstack.config import Config
from mapstack.errors import MapstackError
from mapstack.explainer import Explainer
from mapstack.images import Inputs, collate, from_array, prepare
from mapstack.methods import Occlusion
from mapstack.models.precision import convolution_rounding, float32_convolutions
from mapstack.phantom import phantom
from mapstack.readouts import DirectionReadout, TextReadout
from mapstack.stored_stack import describe_store
from train_like.bases import choose_basis
from train_like.errors import DONE, WRONG_USE
from train_like.extract import make_explainer, make_readout, on_accelerator
from train_like.index import ShardIndex, expand_shards, index_shards
from train_like.progress import format_bytes
from train_like.result import Result
from train_like.size import estimate_record
from train_like.trained import embedding_statistics

PROBE_S = 10.0
"""How long the probe measures [s]; one measurement may take longer."""

_CONSTRAINTS = Path(__file__).resolve().parent.parent / "requirements" / "constraints.txt"
_PACKAGES = ("torch", "torchvision", "transformers", "medclip", "captum", "lightning", "webdataset", "numpy", "pillow")
_DICOM_PACKAGES = ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
_FETCH = " MedCLIP's own weights come with: python -m train_like weights configs/{}_weights.yaml"
_MOST_ROWS = 8  # that the probe explains; the cost of further ones is that of these

Lines = list[tuple[str, str]]


def examine(config: Config) -> Result:
    """Print a page on the machine, the packages, the checkpoint, and the disk and the time that the run needs.

    What cannot be found out is said in its place, and the rest goes on.
    """
    report: dict[str, Any] = {"problems": []}
    page = [("Machine", machine(report)), ("Packages", packages(report))]
    explainer, readout = _load(config, report)
    page.append(("Checkpoint", _checkpoint(explainer, config, report)))
    index = _index(config, report)
    page.append(("Run", [_samples(index, report), *_run(config, explainer, readout, report)]))
    page.append(("Problems", [("", problem) for problem in report["problems"]] or [("", "none")]))
    for title, lines in page:
        print(f"\n{title}")
        for name, value in lines:
            print(f"  {name:20} {value}" if name else f"  {value}")
    print()
    return Result(WRONG_USE if report["problems"] else DONE, report)


def machine(report: dict[str, Any]) -> Lines:
    """Describe processors, memory and accelerators, and the precisions that they compute in."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices = _accelerators()
    report |= {"cores": n_cores, "memory_bytes": memory, "accelerators": devices}
    lines = [
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("cores", f"{n_cores} usable, torch uses {torch.get_num_threads()}"),
        ("memory", format_bytes(memory)),
        ("accelerators", ", ".join(devices) or "none: maps are made on the CPU"),
        ("precision", f"32-true, 64-true; of the image tower alone bf16-mixed, 16-mixed{_half_precision()}"),
        ("convolutions", _convolutions(report)),
    ]
    if torch.get_float32_matmul_precision() != "highest":
        report["problems"].append("float32 products are rounded (set_float32_matmul_precision); maps may differ.")
    return lines


def _accelerators() -> list[str]:
    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        found.append(f"{about.name} ({format_bytes(about.total_memory)})")
    return [*found, "MPS"] if torch.backends.mps.is_available() else found


def _half_precision() -> str:
    if not torch.cuda.is_available():
        return ""
    return "; this GPU has bfloat16" if torch.cuda.is_bf16_supported() else "; this GPU lacks bfloat16: take 16-mixed"


def _convolutions(report: dict[str, Any]) -> str:
    """Say how a GPU rounds the factors of float32 convolutions, as torch is set and while maps are made."""
    by_torch = convolution_rounding()
    with float32_convolutions():
        for_maps = convolution_rounding()
    report["convolutions"] = {"torch": by_torch, "maps": for_maps}
    return f"of float32: {for_maps} while maps are made (torch is set to {by_torch})"


def packages(report: dict[str, Any]) -> Lines:
    """Compare the installed packages with those that the project was tested with."""
    tested = read_constraints()
    versions: dict[str, str | None] = {}
    lines = []
    for name in (*_PACKAGES, *_DICOM_PACKAGES):
        try:
            version: str | None = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        versions[name] = version
        expected = tested.get(name)
        if version is None:
            # Only whoever reads DICOM needs these.
            lines.append((name, "not installed" + (" (for DICOM: mapstack[dicom])" if name in _DICOM_PACKAGES else "")))
            if name in _PACKAGES:
                report["problems"].append(f"package {name} is not installed; install mapstack[job].")
        elif expected is None or _release(version) == _release(expected):
            lines.append((name, version))
        else:
            lines.append((name, f"{version}, tested with {expected}"))
    report["packages"] = versions
    return lines


def read_constraints() -> dict[str, str]:
    """Read the tested version of each package, by its name in lower case; {} where this is no checkout."""
    if not _CONSTRAINTS.is_file():
        return {}
    lines = _CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.strip().lower(): version.strip() for name, version in pairs}


def _release(version: str) -> str:
    """Leave out what names a build, such as 2.15.0+cu130."""
    return re.split(r"[+]", version)[0]


def _load(config: Config, report: dict[str, Any]) -> tuple[Explainer | None, TextReadout | None]:
    try:
        explainer = make_explainer(config)
        on_accelerator(explainer, config.trainer)
        return explainer, make_readout(config, explainer)
    except MapstackError as error:
        is_absent = not Path(config.model.checkpoint).is_dir() and config.model.name.startswith("medclip")
        report["problems"].append(f"{error}{_FETCH.format(config.model.name.replace('-', '_')) if is_absent else ''}")
        return None, None


def _checkpoint(explainer: Explainer | None, config: Config, report: dict[str, Any]) -> Lines:
    lines = [("model", f"{config.model.name} in {config.model.checkpoint}")]
    if explainer is None:
        return [*lines, ("", "cannot be used, see below")]
    statistics = embedding_statistics(explainer.model)
    report |= {"fingerprint": explainer.model.fingerprint, "embeddings": statistics.describe()}
    if not statistics.look_trained:
        report["problems"].append(
            f"the embeddings of checkpoint '{config.model.checkpoint}' look untrained: no sentence moves the score "
            "more on one picture than on another; were the weights really fetched?"
        )
    looks = "look trained" if statistics.look_trained else "LOOK UNTRAINED"
    numbers = (
        f"interaction {statistics.interaction:.3f}, mean cosine of unrelated sentences {statistics.text_cosine:.2f}, "
        f"of pictures {statistics.image_cosine:.2f}"
    )
    return [
        *lines,
        ("fingerprint", explainer.model.fingerprint),
        ("note", explainer.model.note or "none"),
        ("embeddings", f"{looks} ({numbers})"),
    ]


def _index(config: Config, report: dict[str, Any]) -> ShardIndex | None:
    try:
        shards = expand_shards(config.data.shards, config.data.allowed_schemes)
        index = index_shards(shards, duplicates="first")
    except MapstackError as error:
        report["problems"].append(str(error))
        return None
    if index.problems:
        first = index.problems[0]
        report["problems"].append(
            f"{len(index.problems)} samples or places of the shards cannot be read, the first in '{first.shard}': "
            f"{first.reason}"
        )
    return index.limited(config.data.limit)


def _samples(index: ShardIndex | None, report: dict[str, Any]) -> tuple[str, str]:
    if index is None:
        return "samples", "unknown, see below"
    n, n_shards = len(index.entries), len(index.shards)
    report["samples"] = n
    return "samples", f"{n} in {n_shards} shard{'' if n_shards == 1 else 's'}"


def _run(config: Config, explainer: Explainer | None, readout: TextReadout | None, report: dict[str, Any]) -> Lines:
    """Say what the run takes on the disk and how long it lasts."""
    if explainer is None:
        return [("", "disk and time are known with a checkpoint")]
    try:
        basis = choose_basis(config, explainer, readout)
        manifest = describe_store(explainer, basis, encoding=config.stack.encoding, shards_digest="")
        size = estimate_record(manifest, n_texts=0 if readout is None else readout.n_rows)
        per_picture = probe(explainer, None if basis is None else len(basis), config.data.batch_size)
    except MapstackError as error:
        report["problems"].append(str(error))
        return []
    most = "" if size.is_exact else "at most "
    report |= {"bytes_per_sample": size.n_bytes, "seconds_per_sample": round(per_picture, 4)}
    lines = [
        ("stack", f"{config.method.name}, {config.stack.basis}, {most}{format_bytes(size.n_bytes)} a sample"),
        ("time", f"{per_picture:.3g} s a sample, from a probe of {PROBE_S:.0f} s on {explainer.model.device}"),
    ]
    if "samples" in report:
        lines += _whole(config, explainer, report, most)
    return lines


def _whole(config: Config, explainer: Explainer, report: dict[str, Any], most: str) -> Lines:
    """Say what all samples take."""
    n_bytes = report["samples"] * report["bytes_per_sample"]
    n_devices = (torch.cuda.device_count() if explainer.model.device.type == "cuda" else 1) * config.trainer.num_nodes
    seconds = report["samples"] * report["seconds_per_sample"] / n_devices
    free = shutil.disk_usage(_existing(Path(config.output))).free
    report |= {"bytes_needed": n_bytes, "bytes_free": free, "seconds_estimated": round(seconds, 1)}
    if n_bytes > free:
        report["problems"].append(
            f"the store needs {format_bytes(n_bytes)} and the disk of '{config.output}' has {format_bytes(free)} free; "
            "choose another output, codec, map_size or basis."
        )
    devices = "1 device" if n_devices == 1 else f"{n_devices} devices"
    return [
        ("all samples", f"{_duration(seconds)} on {devices}; reading and writing go on beside it"),
        ("disk", f"{most}{format_bytes(n_bytes)} needed, {format_bytes(free)} free"),
    ]


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def probe(explainer: Explainer, n_rows: int | None, batch_size: int, probe_s: float | None = None) -> float:
    """Measure what the stack of a picture costs.

    The cost of a dense stack is that of its first row and so much for each further one: a few rows are explained, and
    the rest is reckoned.

    Args:
        explainer: Model and method, on the device that is measured.
        n_rows: Rows of the stack; None for all axes.
        batch_size: Pictures at a time, where so many are done within a tenth of the probe.
        probe_s: How long [s]; None for `PROBE_S`.

    Returns:
        Seconds a picture.
    """
    budget = PROBE_S if probe_s is None else probe_s
    method, model = explainer.method, explainer.model
    n_rows = n_rows or model.embed_dim

    def attribute(inputs: Inputs, n: int) -> None:
        if isinstance(method, Occlusion):
            method.sweep(model, inputs, seed=explainer.seed)
        else:
            rows = torch.eye(n, model.embed_dim, device=model.device, dtype=model.dtype)
            readout = DirectionReadout(rows, embed_dim=model.embed_dim, normalize=explainer.normalize)
            method.attribute(model, inputs, readout, seed=explainer.seed)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    one = explainer.cast(_phantoms(explainer, 1))
    first = _seconds(lambda: attribute(one, 1))
    n_pictures = 1 if first > budget / 10 else batch_size
    inputs = explainer.cast(_phantoms(explainer, n_pictures))
    if isinstance(method, Occlusion):
        return min(_repeated(lambda: attribute(inputs, 1), budget)) / n_pictures
    few = min(n_rows, _MOST_ROWS)
    single = min(_repeated(lambda: attribute(inputs, 1), budget / 2))
    several = min(_repeated(lambda: attribute(inputs, few), budget / 2)) if few > 1 else single
    further = max(several - single, 0.0) / max(few - 1, 1)
    return (single + further * (n_rows - 1)) / n_pictures


def _phantoms(explainer: Explainer, n: int) -> Inputs:
    films = [from_array(phantom(seed).pixels) for seed in range(n)]
    return collate([prepare(film, explainer.model.preprocessing) for film in films])


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _repeated(step: Callable[[], None], budget: float) -> Iterator[float]:
    """Measure a step until the time is used up, once at least."""
    ends = time.perf_counter() + budget
    yield _seconds(step)
    while time.perf_counter() < ends:
        yield _seconds(step)


def _duration(seconds: float) -> str:
    """Write a duration for people.

    Example:
        >>> _duration(59), _duration(5400), _duration(200_000)
        ('59 s', '90 min', '2.31 days')
    """
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"
