"""Every benchmark can be started, though the suite has no time to run them; what needs a GPU runs once on a toy."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import card, scaling, setting, speed
from benchmarks.setting import Bench, differences
from mapstack.methods.engine import row_gradients
from mapstack.models import EmbeddingModel
from mapstack.readouts import DirectionReadout
from tests.toys import CurvedModel, random_inputs

ROOT = Path(__file__).parents[2]
# One needs Quantus, whose licence keeps it out of everything that is installed here.
ELSEWHERE = {"metric_agreement"}
SCRIPTS = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - ELSEWHERE)


def toy() -> EmbeddingModel:
    return CurvedModel(embed_dim=20).float()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_it_is_run(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__ is not None
    if hasattr(module, "main") or hasattr(module, "throughput"):
        assert f"python -m benchmarks.{name}" in module.__doc__


def test_speed_agrees_with_captums_own_maps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # the shipped prompts are named from there
    options = ["rows=20", "precision=32-true,16-mixed", "only=gradient,prompts,path"]
    assert speed.main(options, make_model=toy) == 0
    answers = {each["question"]: each for each in json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]}
    half = answers.pop("gradient stack, 16-mixed")
    assert len(answers) == 6
    assert 1e-5 < half["error"] < 0.1
    for answer in answers.values():
        assert answer["error"] < 1e-5
        assert answer["cosine"] > 1 - 1e-9
    details = answers["154 texts, along their basis of 20"]["details"]
    assert (details["n_texts"], details["rank"]) == (154.0, 20.0)


def test_speed_compares_occlusion_and_what_each_side_adds(
    campaign: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not campaign(0, 1):  # a process of its own takes half a minute to start beside a suite
        monkeypatch.setattr(Bench, "added_memory", lambda bench, step: setting._added(step, bench.make_model, "cpu"))
    per_dimension, vectors = speed.occlusion(Bench.of(CurvedModel, 1, "cpu"))
    assert max(per_dimension.error, vectors.error) < 1e-5  # Captum's is float32
    assert 0 <= vectors.details["ours_added_mb"] < 1000
    assert 0 <= vectors.details["captum_added_mb"] < 1000


def test_added_memory_is_the_most_that_was_held_at_a_time() -> None:
    def hold(bench: Bench) -> None:
        for _ in range(3):
            torch.ones(20_000_000)  # so large that no heap which an earlier test has grown holds it

    assert 79e6 < setting._added(hold, CurvedModel, "cpu") < 160e6


def test_the_card_is_measured_without_one() -> None:
    figures = card.measure(Bench.of(toy, 20, "cpu"), captum_s_a_row=1.0)
    assert figures["parity"] < card.MOST_DIFFERENCE
    assert min(figures["ceilings"].values()) > 0
    exact, *halves = figures["precisions"].values()
    assert (exact["error"], exact["peak_bytes"]) == (0.0, 0)
    for half in halves:
        assert 0 < half["error"] < 0.1
    assert exact["flop"] > 0
    assert exact["times_captum"] == pytest.approx(20 / exact["gradient_s"])
    assert "within 20 GiB" in card.table(figures)
    above = {**figures, "parity": 1e-3}
    assert "differ from a CPU's by 0.001 (ABOVE 1e-04)" in card.table(above)


def test_work_counts_batched_products_as_torch_counts_them_one_by_one() -> None:
    model = toy()
    model.tower = nn.Sequential(nn.Flatten(), nn.Linear(256, 30), nn.Tanh(), nn.Linear(30, 20)).requires_grad_(False)
    picture = random_inputs(1, model).pixel_values
    with FlopCounterMode(display=False) as counted:
        row = model.embed_images(picture.clone().requires_grad_())[0, 0]
        forward = counted.get_total_flops()
        row.backward()
        backward = counted.get_total_flops() - forward
    with card.Work() as work:
        readout = DirectionReadout(None, embed_dim=20, normalize=False)
        list(row_gradients(model, picture, readout, rows_per_pass=7)[1])
    assert (forward, backward) == (2 * (256 * 30 + 30 * 20),) * 2
    assert work.flops == forward + 20 * backward
    assert work.n_bytes > 4 * 20 * 256


def test_the_card_is_asked_for_on_a_card_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["only=card"]) == 2
    assert speed.main(["precision=8-true"]) == 2
    assert "python -m benchmarks.speed" in capsys.readouterr().out


def test_ranks_are_as_many_as_there_are_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scaling.counts("ranks", "cpu") == (1, 2)
    for n_devices, expected in ((1, (1,)), (3, (1, 2)), (8, (1, 2, 4, 8))):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=n_devices: n)
        assert scaling.counts("ranks", "cuda") == expected
    assert {"trainer.accelerator=cuda", "trainer.devices=1"} <= set(
        scaling.extraction(Path("in.tar"), "store", 2, 1, "cuda")
    )


def test_differences_are_of_maps_and_in_float64() -> None:
    exact = torch.tensor([[[1.0, 2.0]], [[100.0, 0.0]]], dtype=torch.float64)
    error, cosine = differences(exact + torch.tensor([0.0, 1e-9]), exact)
    assert error == pytest.approx(5e-10, rel=1e-6)
    assert cosine == pytest.approx(1.0, abs=1e-12)
