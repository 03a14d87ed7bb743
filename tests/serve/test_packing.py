"""The archive: all that the endpoint needs, and nothing of this repository beside it."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mapstack.config_files import load_config, merge
from mapstack.endpoint import EndpointConfig
from mapstack.errors import ConfigError
from mapstack.models.medclip import save_random_medclip
from serve.config import ServeConfig
from serve.pack import _with_absolute_paths
from serve.torchserve_files import properties
from tests.serve.asked import PROMPTS, body, picture_file
from tests.serve.running import ROOT, Running, last_line, serve

# Runs without this environment's packages, hence without this checkout: what it prints comes from the archive, and from
# what a host has.
ALONE = """
import json, pathlib, sys
folder, packages = map(pathlib.Path, sys.argv[1:])
sys.path = [str(folder), str(packages), *sys.path]
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


def closure(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Find what installing requirements brings, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(Requirement(each), "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        distribution = metadata.distribution(name)
        wanted = ["", *requirement.extras] if name not in found else list(requirement.extras)
        found[name] = distribution
        waiting += [(Requirement(each), one) for one in wanted for each in distribution.requires or []]
    return found


def host(unpacked: Path, folder: Path) -> list[str]:
    """Lay out the packages of a host: four that every such host has, and what the archive's requirements file says."""
    lines = (unpacked / "requirements.txt").read_text(encoding="utf-8").splitlines()
    brought = closure(["torch", "transformers", "medclip", "captum", *lines])
    for distribution in brought.values():
        for part in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            source = Path(str(distribution.locate_file(part)))
            if source.exists() and not (folder / part).exists():
                (folder / part).symlink_to(source)
    return sorted(brought)


def test_the_archive_runs_without_this_repository(unpacked: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    names = host(unpacked, packages)
    assert not {"mapstack", "torchserve", "lightning", "webdataset", "pytest", "hypothesis"} & set(names)
    request = json.dumps(body(picture_file(), prompts=PROMPTS, method="gradient")).encode()
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", ALONE, str(unpacked), str(packages)],
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


def test_torchserve_gets_the_limits_that_were_packed(server: Running, tmp_path: Path) -> None:
    """The endpoint keeps to those of the archive; one answer beyond TorchServe's own kills the worker."""
    later = load_config(
        ServeConfig, ROOT / "configs" / "serve.yaml", [*server.overrides, "endpoint.limits.max_answer_bytes=50000000"]
    )
    lines = dict(line.split("=", 1) for line in properties(later, tmp_path).splitlines())
    assert int(lines["max_response_size"]) == server.config.max_answer_bytes == 700_000 + 65_536
    assert int(lines["max_request_size"]) == server.config.max_request_bytes
    for content in (b"no archive", None):
        broken = replace(later, output=str(tmp_path))
        if content is not None:
            broken.archive.write_bytes(content)
        else:
            broken.archive.unlink()
        with pytest.raises(ConfigError, match="cannot be read .* pack again"):
            properties(broken, tmp_path)


def test_paths_are_packed_so_that_workers_find_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TorchServe's workers run in a temporary folder of its own."""
    monkeypatch.chdir(tmp_path)
    shap = {"name": "gradient_shap", "reference_pictures": ["normal.png", "/elsewhere/normal.png"]}
    blocks = {"store": "store", "cache": {"folder": "cache"}, "methods": {"shap": shap}}
    packed = _with_absolute_paths(merge(EndpointConfig, [blocks]))
    again = merge(EndpointConfig, [packed])
    assert again.store == str(tmp_path / "store")
    assert again.cache.folder == str(tmp_path / "cache")
    assert again.methods["shap"].reference_pictures == (str(tmp_path / "normal.png"), "/elsewhere/normal.png")
    plain = _with_absolute_paths(EndpointConfig())
    assert (plain["store"], plain["cache"]["folder"]) == (None, None)


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
    with pytest.raises(ConfigError, match="name"):
        ServeConfig(name=name)
