"""What several benchmarks share: the machine's description, and the official architecture with random weights."""

import platform
import tempfile
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from mapstack.models import EmbeddingModel, load_model
from mapstack.models.medclip import save_random_medclip

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "model_store" / "phantom-medclip"


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
