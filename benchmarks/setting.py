"""What several benchmarks share: the machine, the official architecture with random weights, the clock, the memory."""

import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mapstack.explainer import Explainer
from mapstack.images import Inputs, collate, from_array, prepare
from mapstack.methods import Gradient
from mapstack.models import EmbeddingModel, load_model
from mapstack.models.medclip import save_random_medclip
from mapstack.phantom import phantom
from mapstack.readouts import DirectionReadout

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "model_store" / "phantom-medclip"
ROUNDS = 3

T = TypeVar("T")


def describe_machine() -> dict[str, str]:
    """Say on what this runs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    packages = {name: version(name) for name in ("torch", "numpy", "captum", "lightning", "webdataset")}
    return {
        "cpu": f"{len(names)} x {names[0]}",
        **gpu,
        "threads": str(torch.get_num_threads()),
        "kernel": platform.release(),
        "date": f"{datetime.now(UTC):%F}",
        **packages,
    }


@cache
def full_size_model() -> EmbeddingModel:
    """Return MedCLIP-ViT of the official sizes with random weights, and the demo model's words."""
    vocabulary = (CHECKPOINT / "vocab.txt").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        save_random_medclip(Path(folder), tower="vit", sizes={}, vocabulary=vocabulary, seed=0)
        return load_model("medclip-vit", folder)


@dataclass(frozen=True)
class Bench:
    """A model, one picture, and how many of our rows are run.

    Attributes:
        make_model: Makes it anew in another process.
    """

    model: EmbeddingModel
    inputs: Inputs
    rows: int
    make_model: Callable[[], EmbeddingModel] = full_size_model

    @classmethod
    def of(cls, make_model: Callable[[], EmbeddingModel], rows: int, device: str) -> "Bench":
        """Return a model on a device, and a phantom."""
        model = make_model().to(device)
        picture = prepare(from_array(phantom(0).pixels), model.preprocessing)
        return cls(model, Explainer(model, Gradient()).cast(collate([picture])), rows, make_model)

    def timed(self, step: Callable[[], T], rounds: int = ROUNDS) -> tuple[T, float]:
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
        rows = torch.eye(self.model.embed_dim, device=self.model.device, dtype=self.model.dtype)[:n]
        return DirectionReadout(rows, embed_dim=self.model.embed_dim, normalize=False)

    def added_memory(self, step: Callable[["Bench"], object]) -> int:
        """Return by how much a fresh process, which has embedded one picture, grows at most in a step [bytes].

        Args:
            step: A function of a module, which the other process can import.
        """
        spawning = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawning) as pool:
            return pool.submit(_added, step, self.make_model, str(self.model.device)).result()


def _added(step: Callable[[Bench], object], make_model: Callable[[], EmbeddingModel], device: str) -> int:
    bench = Bench.of(make_model, 1, device)
    with torch.no_grad():
        bench.model.embed_images(bench.inputs.pixel_values)
    if bench.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(bench)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    step(bench)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Return a figure of the process's memory [bytes]."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def differences(ours: Tensor, others: Tensor) -> tuple[float, float]:
    """Return the largest relative error and the least cosine of maps [rows, height, width], in float64.

    Example:
        >>> differences(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]]))
        (1.0, 1.0)
    """
    ours, others = ours.detach().double().cpu(), others.detach().double().cpu()
    error = (ours - others).abs().amax(dim=(-2, -1)) / others.abs().amax(dim=(-2, -1))
    return float(error.max()), float(torch.cosine_similarity(ours.flatten(1), others.flatten(1)).min())
