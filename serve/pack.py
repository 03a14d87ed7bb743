"""`pack`: everything that the endpoint needs, in one TorchServe archive."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import mapstack
from mapstack.endpoint.packed import CHECKPOINT, PROMPTS, write_settings
from mapstack.endpoint.settings import EndpointConfig
from mapstack.errors import CheckpointError, ConfigError
from mapstack.models.checkpoint import OFFICIAL_NAME, SAFETENSORS_NAME, fingerprint, read_weights
from serve.config import ServeConfig
from serve.errors import ServerError

HANDLER = Path(__file__).parents[1] / "handlers" / "medclip_handler.py"
_CHECKPOINT_FILES = (
    OFFICIAL_NAME,
    SAFETENSORS_NAME,
    "config.json",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "merges.txt",
    "preprocessor_config.json",
)
# Run in a process of its own, which sees no mapstack but the staged one.
_TRIAL = """
import pathlib, sys
stage = sys.argv[1]
sys.path.insert(0, stage)
import mapstack, medclip_handler
from mapstack.endpoint.packed import open_endpoint
home = pathlib.Path(mapstack.__file__).resolve()
if not home.is_relative_to(pathlib.Path(stage).resolve()):
    sys.exit(f"mapstack was imported from {home}, not from the archive")
open_endpoint(pathlib.Path(stage))
"""


def pack(config: ServeConfig) -> dict[str, Any]:
    """Write the archive.

    Returns:
        Path, sha256, size and contents.

    Raises:
        ConfigError: A file is missing or wrong.
        CheckpointError: The checkpoint does not load.
        ServerError: The staged handler does not run, or the archiver fails.
    """
    if shutil.which("torch-model-archiver", path=_scripts()) is None:
        raise ConfigError("torch-model-archiver is not installed; packing needs it; pip install -e '.[serve]'.")
    Path(config.output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mapstack-pack-") as scratch:
        stage = Path(scratch, "stage")
        stage.mkdir()
        weights = _fill(stage, config)
        _try_out(stage, Path(scratch))
        _archive(stage, config, Path(scratch))
    return _describe(config.archive, weights)


def _fill(stage: Path, config: ServeConfig) -> str:
    """Lay out the inside of the archive; return the fingerprint of the weights."""
    package = Path(mapstack.__file__).parent
    shutil.copytree(package, stage / "mapstack", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copy(HANDLER, stage)
    checkpoint = Path(config.model.checkpoint)
    weights = fingerprint(read_weights(checkpoint))
    (stage / CHECKPOINT).mkdir()
    for name in _CHECKPOINT_FILES:
        if (checkpoint / name).exists():
            shutil.copy(checkpoint / name, stage / CHECKPOINT / name)
    if config.prompts is not None:
        _copy_prompts(Path(config.prompts), stage / PROMPTS)
    endpoint = _with_absolute_paths(config.endpoint)
    model = {"name": config.model.name, "prompt_padding": config.model.prompt_padding}
    write_settings(stage, model=model, endpoint=endpoint, fingerprint=weights)
    (stage / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    (stage / "model-config.yaml").write_text(_model_config(config), encoding="utf-8")
    return weights


def _with_absolute_paths(config: EndpointConfig) -> dict[str, Any]:
    """Return the endpoint's settings for workers, which run in another folder."""
    endpoint = config.to_dict()
    for block, key in ((endpoint, "store"), (endpoint["cache"], "folder")):
        if block[key] is not None:
            block[key] = os.path.abspath(block[key])
    for method in endpoint["methods"].values():
        if "reference_pictures" in method:
            method["reference_pictures"] = [os.path.abspath(path) for path in method["reference_pictures"]]
    return endpoint


def _copy_prompts(source: Path, target: Path) -> None:
    try:
        shutil.copy(source, target)
    except OSError as error:
        raise ConfigError(
            f"prompt file '{source}' cannot be read ({error.strerror}); set prompts to a YAML file, or to null."
        ) from None


def _requirements() -> list[str]:
    """Return what the packed mapstack needs, for hosts that install per model."""
    return sorted(each for each in metadata.requires("mapstack") or [] if "extra ==" not in each)


def _model_config(config: ServeConfig) -> str:
    server = config.server
    lines = {
        "minWorkers": server.workers,
        "maxWorkers": server.workers,
        "batchSize": server.batch_size,
        "maxBatchDelay": server.max_batch_delay_ms,
        "responseTimeout": server.response_timeout_s,
        "startupTimeout": server.startup_timeout_s,
        "jobQueueSize": server.queue,
    }
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def _try_out(stage: Path, scratch: Path) -> None:
    """Import the staged handler and load the model once, in a clean process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    trial = subprocess.run(
        [sys.executable, "-c", _TRIAL, str(stage)], cwd=scratch, env=environment, capture_output=True, text=True
    )
    if trial.returncode:
        last = trial.stderr.strip().splitlines()[-1:] or ["no message"]
        if "CheckpointError" in last[0]:
            raise CheckpointError(last[0].split("CheckpointError: ", 1)[-1])
        raise ServerError(f"the staged handler does not run ({last[0]}); an archive of it would not load; correct it.")


def _archive(stage: Path, config: ServeConfig, scratch: Path) -> None:
    """Run the archiver, which empties a folder named after the model in its temporary folder: give it a private one."""
    temporary = scratch / "archiver"
    temporary.mkdir()
    extra = [
        path for path in stage.iterdir() if path.name not in (HANDLER.name, "model-config.yaml", "requirements.txt")
    ]
    content = scratch / "content"
    content.mkdir()
    for path in extra:
        path.rename(content / path.name)
    command = [
        str(shutil.which("torch-model-archiver", path=_scripts())),
        *("--model-name", config.name, "--version", "1.0", "--force", "--archive-format", "zip-store"),
        *("--handler", str(stage / HANDLER.name), "--extra-files", str(content)),
        *("--config-file", str(stage / "model-config.yaml")),
        *("--requirements-file", str(stage / "requirements.txt"), "--export-path", str(scratch)),
    ]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    made = scratch / config.archive.name
    if run.returncode or not made.exists():
        last = (run.stderr or run.stdout).strip().splitlines()[-1:] or ["no message"]
        raise ServerError(f"torch-model-archiver failed ({last[0]}); see its message; correct the configuration.")
    # Beside its final place first: a server that starts meanwhile meets the old archive or the new one, whole.
    partial = config.archive.with_name(config.archive.name + ".partial")
    shutil.copy(made, partial)
    partial.replace(config.archive)


def _scripts() -> str:
    """Return the folder of this environment's commands, which need not be on the PATH."""
    return str(Path(sys.executable).parent)


def _describe(archive: Path, weights: str) -> dict[str, Any]:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        manifest = json.loads(opened.read("MAR-INF/MANIFEST.json"))
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "output": str(archive),
        "sha256": digest,
        "bytes": archive.stat().st_size,
        "weights": weights,
        "handler": manifest["model"]["handler"],
        "files": len(names),
        "contents": sorted({name.split("/")[0] for name in names}),
    }
