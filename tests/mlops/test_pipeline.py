"""docs/mlops.md: the DVC pipeline runs, and MLflow's client logs what it made."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from mapstack.phantom import phantom
from tests.mlops.blocks import ROOT, block, write_blocks
from tests.picture_files import encode
from train_like.cli import main
from train_like.tarshards import Sample, write_shards

needs_dvc = pytest.mark.skipif(find_spec("dvc") is None, reason="the extra `mlops` is not installed")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra `mlops` is not installed")


@dataclass(frozen=True)
class Pipeline:
    """A folder in which the steps run as a user runs them."""

    folder: Path

    def run(self, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of this Python's environment there, on this checkout."""
        scripts = str(Path(sys.executable).parent)
        own = {
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc-site"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.folder / ".dvc-global"),
            "GIT_CEILING_DIRECTORIES": str(self.folder.parent),
            **environment,
        }
        return subprocess.run(
            command, cwd=self.folder, env={**os.environ, **own}, capture_output=True, text=True, check=False
        )

    def dvc(self, *arguments: str) -> str:
        done = self.run("dvc", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def line(self, step: str) -> dict[str, Any]:
        """The JSON line of a step; standard output held nothing else."""
        found: dict[str, Any] = json.loads((self.folder / "out" / f"{step}.json").read_text())
        return found

    @contextlib.contextmanager
    def changed(self, **keys: object) -> Iterator[None]:
        """Change archive.yaml for a while."""
        path = self.folder / "archive.yaml"
        before = path.read_text()
        path.write_text(yaml.safe_dump({**yaml.safe_load(before), **keys}))
        try:
            yield
        finally:
            path.write_text(before)


def samples() -> Iterator[Sample]:
    """Two phantoms, and what is no picture."""
    for number in range(2):
        film = phantom(number, size=224, labels=["Pleural Effusion"])
        yield Sample(f"film-{number}", encode(_image(film.pixels)), "png", {"labels": list(film.labels)}, {})
    yield Sample("torn", b"no picture", "png", {"labels": []}, {})


def _image(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The pipeline's folder, where a run was stopped after one picture."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_blocks(folder, "archive.yaml", "dvc.yaml", "log_run.py")
    (folder / "shards").mkdir()
    write_shards(samples(), folder / "shards", "films", 3)
    checkpoint = folder / "model_store" / "phantom-medclip"
    checkpoint.mkdir(parents=True)
    for path in (ROOT / "model_store" / "phantom-medclip").iterdir():
        (checkpoint / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        assert main(["extract", "archive.yaml", "data.limit=1", "data.num_workers=0"]) == 0
    return Pipeline(folder)


@pytest.fixture(scope="module")
def pipeline(begun: Pipeline) -> Pipeline:
    """The same, after `dvc repro`."""
    begun.dvc("init", "--no-scm", "--quiet")
    begun.dvc("repro")
    return begun


@needs_dvc
def test_repro_goes_on_where_a_run_was_stopped_and_a_bad_picture_stops_nothing(pipeline: Pipeline) -> None:
    extracted, projected = pipeline.line("extract"), pipeline.line("project")
    assert (extracted["status"], extracted["done"], extracted["failed"]) == ("some_failed", 2, 1)
    assert extracted["computed_by_rank_0"] == 1
    assert (projected["status"], projected["samples"], projected["texts"]) == ("some_failed", 2, 2)
    assert (projected["failed"], projected["missing"]) == (1, 0)
    assert len(list((pipeline.folder / "out" / "maps").glob("*.png"))) == 4
    errors = (pipeline.folder / "out" / "store" / "errors.jsonl").read_text()
    assert "torn" in errors
    metrics = json.loads(pipeline.dvc("metrics", "show", "--json"))[""]["data"]
    assert metrics["out/extract.json"]["data"]["done"] == 2


@needs_dvc
def test_only_what_changed_is_run_again(pipeline: Pipeline) -> None:
    def stale() -> list[str]:
        return sorted(json.loads(pipeline.dvc("status", "--json")))

    assert stale() == []
    assert pipeline.dvc("repro").count("didn't change") == 2
    with pipeline.changed(prompts={"texts": ["cardiomegaly"]}):
        assert stale() == ["project"]
    with pipeline.changed(data={"shards": "shards/*.tar", "batch_size": 1}):
        assert stale() == []
    with pipeline.changed(method={"name": "gradient"}):
        assert stale() == ["extract"]
    manifest = pipeline.folder / "out" / "store" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"done": 2', '"done": 3'))
    assert stale() == ["extract", "project"]
    manifest.write_text(before)


def logged(pipeline: Pipeline, *arguments: str) -> Path:
    """Log steps, and return the folder of the run."""
    store = pipeline.folder / "mlruns"
    before = set(store.glob("*/*/params")) if store.exists() else set()
    done = pipeline.run(
        *("python", "log_run.py", *arguments), MLFLOW_TRACKING_URI=f"file:{store}", MLFLOW_ALLOW_FILE_STORE="true"
    )
    assert done.returncode == 0, done.stderr
    (made,) = set(store.glob("*/*/params")) - before
    return made.parent


def value(metric: Path) -> float:
    return float(metric.read_text().split()[1])


@needs_dvc
@needs_mlflow
def test_mlflow_gets_parameters_metrics_and_figures(pipeline: Pipeline) -> None:
    run = logged(pipeline, "--figures", "out/maps", "out/extract.json", "out/project.json")
    identity = json.loads((pipeline.folder / "out" / "store" / "manifest.json").read_text())["identity"]
    assert (run / "params" / "extract.method.name").read_text() == "occlusion"
    assert (run / "params" / "extract.weights").read_text() == identity["weights"]
    assert [value(run / "metrics" / f"extract.{name}") for name in ("done", "failed")] == [2, 1]
    assert value(run / "metrics" / "project.largest_residual") == pipeline.line("project")["largest_residual"]
    assert (run / "tags" / "extract.status").read_text() == "some_failed"
    assert len(list((run / "artifacts" / "figures").glob("*.png"))) == 4
    assert (run / "artifacts" / "extract" / "manifest.json").exists()
    private = logged(pipeline, "out/extract.json")
    assert list(private.rglob("*.png")) == []


EVALUATION = """
model: {name: medclip-vit, checkpoint: model_store/phantom-medclip}
validation: {shards: "regions/validation-*.tar"}
data: {shards: "regions/test-*.tar"}
prompts: {file: prompts.yaml, against: No Finding}
candidates: [{name: occlusion, sliding_window_shapes: 112, strides: 112}]
n: 2
n_validation: 2
n_matrix: 1
n_axes: 1
workers: 0
output: out/evaluation
"""


@needs_mlflow
@pytest.mark.long
def test_mlflow_gets_an_evaluation(begun: Pipeline) -> None:
    write_regions(begun.folder)
    ended = begun.run("python", "-m", "train_like", "evaluate", "evaluate.yaml")
    assert ended.returncode == 0, ended.stderr
    (begun.folder / "out" / "evaluate.json").write_text(ended.stdout)
    run = logged(begun, "--figures", "out/evaluation/figures", "out/evaluate.json")
    metrics = json.loads((begun.folder / "out" / "evaluation" / "metrics.json").read_text())
    assert (run / "params" / "evaluate.fingerprint").read_text() == metrics["about"]["fingerprint"]
    settings = metrics["localisation"]["settings"]
    found = {str(path.relative_to(run / "metrics")): path for path in (run / "metrics").rglob("*") if path.is_file()}
    rates = [value(path) for name, path in found.items() if name.startswith("evaluate.hit_rate.")]
    assert sorted(rates) == sorted(each["hit"]["mean"] for each in settings)
    drawn = list((begun.folder / "out" / "evaluation" / "figures").rglob("*.png"))
    assert len(list((run / "artifacts" / "figures").rglob("*.png"))) == len(drawn) > 0


def write_regions(folder: Path) -> None:
    """Phantoms with masks, and how to evaluate on them."""
    for seed, name in ((50, "validation"), (70, "test")):
        films = [phantom(seed + number, size=224, labels=["Pleural Effusion"]) for number in range(2)]
        shown = [
            Sample(
                f"film-{number}",
                encode(_image(film.pixels)),
                "png",
                {"labels": list(film.labels)},
                {each.label: each.mask for each in film.findings},
            )
            for number, film in enumerate(films)
        ]
        write_shards(shown, folder / "regions", name, 2)
    classes = [{"label": "No Finding", "prompts": ["Clear."]}, {"label": "Pleural Effusion", "prompts": ["Effusion."]}]
    (folder / "prompts.yaml").write_text(json.dumps({"classes": classes}))
    (folder / "evaluate.yaml").write_text(EVALUATION)


def test_the_commands_of_the_document_name_what_is_there() -> None:
    text = block("log_run.py")
    for name in ("manifest.json", "metrics.json"):
        assert f'"{name}"' in text
    stages = yaml.safe_load(block("dvc.yaml"))["stages"]
    assert stages["project"]["deps"] == list(stages["extract"]["outs"][0])
    keys = {key for stage in stages.values() for each in stage["params"] for key in each["archive.yaml"]}
    assert keys | {"data", "output"} == set(yaml.safe_load(block("archive.yaml")))
