"""`project`, `figures`, `shards` and `weights`, as commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mapstack
from mapstack.models import medclip
from train_like.cli import main

Run = Callable[..., tuple[int, dict[str, Any]]]

CONFIG = """
model: {{name: medclip-vit, checkpoint: {checkpoint}}}
data: {{shards: "{shards}/x-*.tar", batch_size: 2, num_workers: 0}}
method: {{name: occlusion, sliding_window_shapes: 56, strides: 56}}
stack: {{codec: float32}}
prompts: {{file: {prompts}}}
output: {folder}/store
project: {{output: {folder}/maps}}
"""
PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "phantom.yaml"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: object) -> tuple[int, dict[str, Any]]:
        code = main([str(argument) for argument in arguments])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run_command


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    config = folder / "shards.yaml"
    config.write_text(f"{{output: {folder}, name: x, n_samples: 2, n_per_shard: 1, size: 256, seed: 3}}")
    assert main(["shards", str(config)]) == 0
    return folder


@pytest.fixture
def config(shards: Path, small_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(CONFIG.format(checkpoint=small_checkpoint, shards=shards, prompts=PROMPTS, folder=tmp_path))
    return path


def test_shards_are_read_by_the_job_and_maps_equal_the_python_door(
    config: Path, run: Run, tmp_path: Path, small_checkpoint: Path, shards: Path
) -> None:
    assert run("extract", config)[0] == 0
    text = "left pleural effusion"
    code, line = run("project", config, "prompts.file=null", f"prompts.texts=[{text}, heart]", "data.limit=1")
    assert (code, line["samples"], line["texts"]) == (0, 2, 2)
    for path in (tmp_path / "maps").glob("*.maps.npy"):
        info = json.loads((tmp_path / "maps" / path.name.replace(".maps.npy", ".json")).read_text())
        picture = read_picture(shards, info["key"])
        direct = mapstack.explain(
            picture,
            [text, "heart"],
            checkpoint=small_checkpoint,
            method={"name": "occlusion", "sliding_window_shapes": 56, "strides": 56},
        )
        maps = np.load(path)
        assert np.abs(maps - direct.maps.numpy()).max() <= 1e-5 * np.abs(maps).max()
        np.testing.assert_allclose(info["logits"], direct.logits, rtol=1e-4, atol=1e-5)
        assert direct.residual is not None
        np.testing.assert_allclose(info["residual"], direct.residual, rtol=1e-3, atol=1e-4)
        assert (info["route"], info["linear"], info["names"]) == ("axes", True, [text, "heart"])
        pictures = sorted(path.parent.glob(f"{info['key']}.*.png"))
        assert [each.name.split(".")[1] for each in pictures] == ["000-text", "001-text"]
        with Image.open(pictures[0]) as figure:
            assert np.asarray(figure.convert("RGB")).std() > 10


def read_picture(shards: Path, key: str) -> bytes:
    import tarfile

    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            member = next((each for each in tar.getmembers() if each.name == f"{key}.png"), None)
            if member is not None:
                file = tar.extractfile(member)
                assert file is not None
                return file.read()
    raise AssertionError(key)


def test_projecting_builds_no_image_model(config: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("extract", config)[0] == 0

    def refuse(*_: object) -> None:
        raise AssertionError("the image model was built")

    monkeypatch.setattr(medclip, "build_medclip", refuse)
    assert run("project", config, "project.pictures=false")[0] == 0


def test_class_labels_name_the_pictures(config: Path, run: Run, tmp_path: Path) -> None:
    assert run("extract", config)[0] == 0
    code, line = run("project", config, "prompts.use=labels", "prompts.classes=[Pneumothorax]", "project.limit=1")
    assert (code, line["samples"]) == (0, 1)
    assert [path.name.split(".", 1)[1] for path in (tmp_path / "maps").glob("*.png")] == ["000-pneumothorax.png"]


def test_a_text_outside_the_span_is_refused_and_one_inside_is_exact(config: Path, run: Run, tmp_path: Path) -> None:
    method = ["method.name=integrated_gradients", "method.n_steps=2", "stack.basis=prompts", "stack.map_size=56"]
    assert run("extract", config, *method, "data.limit=1")[0] == 0
    inside = ["prompts.classes=[Consolidation, Cardiomegaly]", "project.pictures=false"]
    code, _ = run("project", config, *inside)
    assert code == 0
    (info_path,) = (tmp_path / "maps").glob("*.json")
    info = json.loads(info_path.read_text())
    assert max(info["share_outside_span"]) < 1e-3
    assert max(info["missing_share"]) < 1e-3
    stranger = ["prompts.file=null", "prompts.texts=[zzz qqq]", "project.pictures=false"]
    code, line = run("project", config, *stranger)
    assert code == 2
    assert "lies outside the span of this stack's prompts" in line["error"]
    assert "zzz" not in line["error"]
    code, _ = run("project", config, *stranger, "project.span_tolerance=10")
    assert code == 0


def test_raw_and_normalised_maps_come_from_one_occlusion_stack(config: Path, run: Run, tmp_path: Path) -> None:
    assert run("extract", config, "data.limit=1")[0] == 0
    maps = []
    for normalize in ("true", "false"):
        assert run("project", config, f"stack.normalize={normalize}", "project.pictures=false")[0] == 0
        maps.append(np.load(next((tmp_path / "maps").glob("*.npy"))))
    assert np.abs(maps[0] - maps[1]).max() > 0.01 * np.abs(maps[0]).max()


def test_project_refuses_other_weights_and_missing_texts(
    config: Path, run: Run, tmp_path: Path, small_checkpoint: Path
) -> None:
    assert run("extract", config, "data.limit=1")[0] == 0
    code, line = run("project", config, "prompts.file=null")
    assert code == 2
    assert line["error"].startswith("no prompts are configured")
    weights = tmp_path / "weights.yaml"
    sizes = (small_checkpoint / "config.json").read_text()
    weights.write_text(json.dumps({key: json.loads(sizes)[key] for key in ("vision", "text")}))
    settings = [f"output={tmp_path}/other", "seed=5", "text.vocab_size=2000"]
    assert run("weights", weights, *settings)[0] == 0
    code, line = run("project", config, f"model.checkpoint={tmp_path}/other")
    assert code == 3
    assert "texts must come from the same model" in line["error"]


def test_figures_are_drawn_for_the_first_samples(
    run: Run, shards: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    config = tmp_path / "figures.yaml"
    config.write_text(
        f"""
model: {{checkpoint: {small_checkpoint}}}
data: {{shards: "{shards}/x-*.tar", limit: 1}}
prompts: {{file: {PROMPTS}, classes: [Pneumothorax, No Finding]}}
figure_1: [{{name: saliency}}, {{name: occlusion, sliding_window_shapes: 112, strides: 112}}]
figure_2: {{name: occlusion, sliding_window_shapes: 112, strides: 112}}
output: {tmp_path}/figures
"""
    )
    code, line = run("figures", config)
    assert (code, line["figures"]) == (0, 2)
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as figure:
            assert min(figure.size) > 300
    code, line = run("figures", config, "prompts.file=null")
    assert code == 2
    assert line["error"].startswith("prompts.file is not set")
