"""docs/scale.md quotes what benchmarks/scale.py prints, and that counts the bytes that the store writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scale
from benchmarks.scale import CPU, GPU, STORE, Machine
from mapstack.codecs import Encoding
from mapstack.store.records import pack

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script names the shipped prompts from there."""
    monkeypatch.chdir(ROOT)


def test_the_document_holds_what_the_script_prints() -> None:
    match = re.search(r"<!-- tables -->\n(.*)\n<!-- /tables -->", TEXT, re.DOTALL)
    assert match is not None
    assert match[1].strip() == scale.tables(), "put the output of python -m benchmarks.scale between the marks"


def test_a_figure_that_nobody_measured_is_called_assumed() -> None:
    assert GPU.source.startswith("ASSUMED, not measured")
    assert "no GPU has been measured yet" in TEXT


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_bytes_are_those_that_the_store_writes(codec: str) -> None:
    rows, side = 512, 28
    stack = torch.randn(rows, side, side, generator=torch.Generator().manual_seed(0))
    embedding = np.zeros(512, np.float32)
    arrays = {
        **Encoding(codec).encode(stack),
        "embedding": embedding,
        "baseline_embedding": embedding,
    }
    written = pack("key", arrays, {"convergence_delta": [0.012345678901234567] * rows}).size
    assert abs(scale.record_bytes(rows, codec, side) - written) < 4096


def test_time_is_forward_passes_and_rows() -> None:
    """By hand: 2 s a forward pass, half a second a window, 3 s a row, ten rows."""
    seconds = scale.seconds_per_image(Machine(2.0, 0.5, 3.0, 0.0, ""), rows=10)
    assert seconds == {
        "gradient": 32.0,
        "integrated gradients, 20 steps": 4.0 + 20 * 32.0,
        "GradientSHAP, 20 samples": 10.0 + 20 * 32.0,
        "occlusion, 196 windows": 2 * 2.0 + 196 * 0.5,
    }


def test_figures_of_others_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(['gpu={"forward_s": 0.5, "price": 4.0}']) == 0
    printed = capsys.readouterr().out
    used = json.loads(printed.splitlines()[-1])
    assert (used["gpu"]["forward_s"], used["gpu"]["price"], used["gpu"]["row_s"]) == (0.5, 4.0, GPU.row_s)
    assert used["gpu"]["source"] == "given on the command line"
    assert (used["cpu"]["row_s"], used["store"]["mb_per_s"]) == (CPU.row_s, STORE.mb_per_s)
    assert "500 ms a forward pass" in printed
    assert scale.main(["tpu={}"]) == 2


def test_the_shipped_prompts_are_counted() -> None:
    assert scale.n_texts() == (14, 140)


def test_the_slurm_script_asks_for_sigterm_and_goes_on_after_143() -> None:
    (script,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in ("#SBATCH --signal=TERM@120", "#SBATCH --requeue", 'if [ "$code" -eq 143 ]; then', "scontrol requeue"):
        assert line in script
    (nodes,), (tasks,) = re.findall(r"--nodes=(\d+)", script), re.findall(r"--ntasks-per-node=(\d+)", script)
    assert f"trainer.devices={tasks} trainer.num_nodes={nodes}" in script
