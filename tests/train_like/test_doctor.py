"""`doctor`: the page and its numbers, with whatever is wrong named in its place."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mapstack.explainer import Explainer
from mapstack.methods import Gradient, Occlusion
from mapstack.models import EmbeddingModel
from tests.train_like.jobs import Ended
from train_like import doctor
from train_like.doctor import packages, probe, read_constraints


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_S", 0.05)


def test_the_page_says_what_the_run_will_take(
    command: Callable[..., Ended], job_config: Path, job_model: EmbeddingModel, tmp_path: Path
) -> None:
    ended = command("doctor", job_config)
    line = ended.line
    assert line["samples"] == 7
    assert line["fingerprint"] == job_model.fingerprint
    assert line["embeddings"]["look_trained"] is False
    assert [problem for problem in line["problems"] if "look untrained" in problem]
    assert ended.code == 2
    assert line["convolutions"] == {"torch": torch.backends.cudnn.conv.fp32_precision, "maps": "ieee"}
    assert "of float32: ieee while maps are made (torch is set to " in ended.out
    for word in ("Machine", "cores", "Packages", "torch", "Checkpoint", "fingerprint", "Run", "disk", "time"):
        assert word in ended.out
    extracted = command("extract", job_config)
    assert line["bytes_needed"] == extracted.line["bytes_estimated"]
    assert line["bytes_needed"] >= extracted.line["bytes"]
    assert line["seconds_estimated"] == pytest.approx(7 * line["seconds_per_sample"], abs=0.06)
    assert list(tmp_path.glob("store/manifest.json"))  # by extract: doctor itself writes nothing


def test_doctor_writes_nothing(command: Callable[..., Ended], job_config: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    command("doctor", job_config)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sound_plan_has_no_problem(command: Callable[..., Ended], job_shards: str, tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "model_store" / "phantom-medclip"
    path = tmp_path / "plan.yaml"
    model, data = {"name": "medclip-vit", "checkpoint": str(demo)}, {"shards": job_shards}
    method = {"name": "occlusion", "sliding_window_shapes": 112, "strides": 112}
    plan = {"model": model, "data": data, "method": method, "output": str(tmp_path / "store")}
    path.write_text(json.dumps(plan))  # JSON is YAML
    ended = command("doctor", path)
    assert (ended.code, ended.line["problems"]) == (0, [])
    assert ended.line["embeddings"]["look_trained"] is True


def test_what_is_wrong_is_named_and_the_rest_goes_on(command: Callable[..., Ended], job_config: Path) -> None:
    ended = command("doctor", job_config, "model.checkpoint=nowhere", "data.shards=nowhere.tar")
    assert ended.code == 2
    assert "checkpoint 'nowhere' is not a folder" in ended.line["problems"][0]
    assert "'nowhere.tar' does not exist" in ended.line["problems"][1]
    assert "torch" in ended.line["packages"]
    assert "samples              unknown, see below" in ended.out
    ended = command("doctor", job_config, "model.checkpoint=nowhere")
    assert ended.line["problems"][0].endswith("python -m train_like weights configs/medclip_vit_weights.yaml")
    assert ended.line["samples"] == 7
    assert "disk and time are known with a checkpoint" in ended.out
    assert "seconds_estimated" not in command("doctor", job_config, "data.shards=nowhere.tar").line


def test_a_disk_that_is_too_small_is_a_problem(
    command: Callable[..., Ended], job_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage)
    problems = command("doctor", job_config).line["problems"]
    assert [problem for problem in problems if "the store needs" in problem and "has 1 kB free" in problem]


def test_versions_are_compared_with_the_tested_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = read_constraints()
    assert tested["torch"].split("+")[0] == torch.__version__.split("+")[0]
    monkeypatch.setattr(doctor, "read_constraints", lambda: {**tested, "captum": "0.0.1"})
    lines = dict(packages({"problems": []}))
    assert lines["captum"].endswith(", tested with 0.0.1")
    assert "tested with" not in lines["torch"]


def test_a_missing_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "no-such-package"))
    report: dict[str, list[str]] = {"problems": []}
    assert dict(packages(report))["no-such-package"] == "not installed"
    assert report["problems"] == ["package no-such-package is not installed; install mapstack[job]."]


def test_the_probe_reckons_further_rows(job_model: EmbeddingModel) -> None:
    explainer = Explainer(job_model, Gradient())
    some, all_rows = (probe(explainer, n, batch_size=2, probe_s=0.5) for n in (4, None))
    assert 0 < some < all_rows
    assert probe(Explainer(job_model, Occlusion(sliding_window_shapes=56, strides=56)), None, 2, probe_s=0.1) > 0
