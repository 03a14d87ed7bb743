"""The archive: all that the endpoint needs, and nothing of this repository beside it."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mapstack.models.medclip import save_random_medclip
from tests.serve.asked import PROMPTS, body, picture_file
from tests.serve.running import ROOT, Running, last_line, serve

# Runs where this checkout cannot be imported: what it prints comes from the archive alone.
ALONE = """
import json, pathlib, sys
folder, checkout = map(pathlib.Path, sys.argv[1:])

def is_of_checkout(path):
    return not path or pathlib.Path(path).resolve().is_relative_to(checkout) and "site-packages" not in path

sys.path = [str(folder), *(path for path in sys.path if not is_of_checkout(path))]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import medclip_handler
classes = [each for each in vars(medclip_handler).values()
           if isinstance(each, type) and each.__module__ == "medclip_handler"]

class Context:
    system_properties = {"model_dir": str(folder), "gpu_id": None}
    def __init__(self):
        self.metrics = type("Metrics", (), {"cache": {}})()
        self.statuses, self.types = {}, {}
    def get_all_request_header(self, i): return {"Accept": "*/*", "explain": "True"}
    def set_response_status(self, status, phrase, i): self.statuses[i] = status
    def set_response_content_type(self, i, kind): self.types[i] = kind
    def set_response_header(self, i, name, value): pass

context, handler = Context(), classes[0]()
handler.initialize(context)
answers = handler.handle([{"body": sys.stdin.buffer.read()}, {"body": b"{"}], context)
homes = {str(pathlib.Path(module.__file__).resolve()) for name, module in sys.modules.items()
         if name.split(".")[0] in ("mapstack", "serve", "handlers", "train_like", "ts") and module.__file__}
print(json.dumps({"classes": len(classes), "statuses": context.statuses, "answer": json.loads(answers[0]),
                  "foreign": sorted(home for home in homes if not home.startswith(str(folder.resolve())))}))
"""


@pytest.fixture(scope="module")
def unpacked(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(server.config.archive) as archive:
        archive.extractall(folder)
    return folder


def test_the_archive_runs_without_this_repository(unpacked: Path, tmp_path: Path) -> None:
    request = json.dumps(body(picture_file(), prompts=PROMPTS, method="gradient")).encode()
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(unpacked), str(ROOT)],
        cwd=tmp_path,
        input=request,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["foreign"] == []
    assert found["classes"] == 1
    assert found["statuses"] == {"0": 200, "1": 400}
    assert [row["name"] for row in found["answer"]["maps"]] == PROMPTS


def test_the_archive_holds_what_it_must_and_no_more(server: Running, unpacked: Path) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {"medclip_handler.py", "endpoint.json", "prompts.yaml", "model-config.yaml", "requirements.txt"} <= names
    assert {"checkpoint/pytorch_model.bin", "checkpoint/vocab.txt", "mapstack/endpoint/endpoint.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("serve/", "train_like/", "tests/"))]
    requirements = (unpacked / "requirements.txt").read_text().split("\n")
    assert any(line.startswith("torch>=") for line in requirements)
    assert any(line.startswith("transformers") and "<5" in line for line in requirements)
    manifest = json.loads((unpacked / "MAR-INF" / "MANIFEST.json").read_text())
    assert manifest["model"]["handler"] == "medclip_handler.py"


def pack(tmp_path: Path, **overrides: Any) -> "subprocess.CompletedProcess[str]":
    given = {
        "output": tmp_path / "out",
        "name": "trial",
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return serve("pack", [f"{key}={value}" for key, value in given.items()])


def test_pack_says_what_it_made(tmp_path: Path, small_checkpoint: Path) -> None:
    """The small checkpoint has the official layout, position table included."""
    run = pack(tmp_path, model__checkpoint=small_checkpoint)
    assert run.returncode == 0, run.stderr
    line = last_line(run.stdout)
    archive = tmp_path / "out" / "trial.mar"
    assert line["output"] == str(archive)
    assert line["bytes"] == archive.stat().st_size
    assert len(line["sha256"]) == len(line["weights"]) == 64
    assert {"mapstack", "checkpoint", "medclip_handler.py"} <= set(line["contents"])
    assert sorted(path.name for path in archive.parent.iterdir()) == ["trial.mar"]


@pytest.mark.long
def test_a_checkpoint_of_the_official_size_and_layout_is_packed(tmp_path: Path, demo_checkpoint: Path) -> None:
    """All 136.6 million parameters, as MedCLIP publishes them."""
    vocabulary = (demo_checkpoint / "vocab.txt").read_text(encoding="utf-8").splitlines()
    save_random_medclip(tmp_path / "official", tower="vit", sizes={}, vocabulary=vocabulary, seed=0)
    run = pack(tmp_path, model__checkpoint=tmp_path / "official")
    assert run.returncode == 0, run.stderr
    line = last_line(run.stdout)
    assert line["bytes"] > 4 * 136_600_000
    with zipfile.ZipFile(tmp_path / "out" / "trial.mar") as archive:
        assert archive.testzip() is None
        weights = torch.load(archive.open("checkpoint/pytorch_model.bin"), weights_only=True)
    assert "text_model.model.embeddings.position_ids" in weights
    assert sum(each.numel() for name, each in weights.items() if "position_ids" not in name) == pytest.approx(
        136.6e6, rel=1e-3
    )


@pytest.mark.fault("S18")
def test_a_checkpoint_that_is_damaged_or_runs_code_is_not_packed(tmp_path: Path, small_checkpoint: Path) -> None:
    marker = tmp_path / "was-run"

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    damaged = tmp_path / "checkpoint"
    shutil.copytree(small_checkpoint, damaged)
    torch.save({"logit_scale": Code()}, damaged / "pytorch_model.bin")
    run = pack(tmp_path, model__checkpoint=damaged)
    assert run.returncode == 2
    assert "cannot be read" in last_line(run.stdout)["error"]
    assert not marker.exists()
    assert not (tmp_path / "out" / "trial.mar").exists()


@pytest.mark.fault("S18")
def test_an_archive_whose_weights_were_changed_does_not_load(
    unpacked: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    from mapstack.endpoint.packed import open_endpoint
    from mapstack.errors import CheckpointError

    changed = tmp_path / "changed"
    shutil.copytree(unpacked, changed)
    weights = torch.load(changed / "checkpoint" / "pytorch_model.bin", weights_only=True)
    weights["logit_scale"] += 0.5
    torch.save(weights, changed / "checkpoint" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="was packed with weights"):
        open_endpoint(changed)


@pytest.mark.fault("S17")
@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", "x" * 65, ".x"])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    from mapstack.errors import ConfigError
    from serve.config import ServeConfig

    with pytest.raises(ConfigError, match="name"):
        ServeConfig(name=name)
