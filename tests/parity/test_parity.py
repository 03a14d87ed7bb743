"""Two doors, one map: what the offline job writes is what the server answers, through HTTP."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapstack.store import member_name
from tests.serve.asked import PROMPTS, picture_file
from tests.serve.running import ROOT, Running
from tests.serve.test_endpoint import maps_of
from train_like.cli import main

METHODS: dict[str, dict[str, Any]] = {
    "gradient": {"name": "gradient"},
    "integrated_gradients": {"name": "integrated_gradients", "n_steps": 3},
    "gradient_shap": {"name": "gradient_shap", "n_samples": 2},
    "occlusion": {"name": "occlusion", "sliding_window_shapes": 56, "strides": 56},
}
PICTURES = {"upright.1": picture_file(seed=1), "lying": picture_file(seed=2, height=150, width=220)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity") / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for key, content in PICTURES.items():
            info = tarfile.TarInfo(f"{key.replace('.', '-')}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def offline_maps(shard: Path, folder: Path, checkpoint: Path, method: dict[str, Any], codec: str) -> dict[str, Any]:
    """Extract and project, as the command line does."""
    config = folder / "job.yaml"
    settings = {
        "model": {"name": "medclip-vit", "checkpoint": str(checkpoint)},
        "data": {"shards": str(shard), "batch_size": 2, "num_workers": 0},
        "method": method,
        "stack": {"basis": "axes" if method["name"] == "occlusion" else "prompts", "codec": codec},
        "prompts": {"texts": PROMPTS},
        "output": str(folder / "store"),
        "project": {"output": str(folder / "maps"), "pictures": False},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    config.write_text(json.dumps(settings))
    assert main(["extract", str(config)]) == 0
    assert main(["project", str(config)]) == 0
    found = {}
    for key in PICTURES:
        name = member_name(key.replace(".", "-"))
        info = json.loads((folder / "maps" / f"{name}.json").read_text())
        found[key] = np.load(folder / "maps" / f"{name}.maps.npy"), info
    return found


@pytest.mark.parametrize(
    ("name", "codec", "tolerance"), [*((name, "float32", 1e-5) for name in METHODS), ("gradient", "float16", 1e-3)]
)
def test_the_server_answers_the_map_that_the_offline_job_writes(
    server: Running,
    shard: Path,
    tmp_path: Path,
    name: str,
    codec: str,
    tolerance: float,
    figure: Callable[[str], None],
) -> None:
    method = METHODS[name]
    written = offline_maps(shard, tmp_path, ROOT / "model_store" / "phantom-medclip", method, codec)
    worst = 0.0
    for key, (maps, info) in written.items():
        for wanted, expected in ((PROMPTS, maps), (PROMPTS[:1], maps[:1])):
            answer = server.client().explain(PICTURES[key], prompts=wanted, method=method, output="npy")
            error = np.abs(maps_of(answer) - expected).max() / np.abs(expected).max()
            worst = max(worst, float(error))
            assert error <= tolerance
            assert [row["logit"] for row in answer["maps"]] == pytest.approx(info["logits"][: len(wanted)], abs=1e-4)
            if info["residual"] is not None:
                residuals = [row["residual"] for row in answer["maps"]]
                assert residuals == pytest.approx(info["residual"][: len(wanted)], abs=100 * tolerance)
    figure(f"parity of {name} after {codec}: {worst:.1e} of the maximum")
