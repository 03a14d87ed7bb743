"""The inside of a model archive: how `serve pack` lays it out, and how a handler makes an endpoint of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mapstack.config_files import merge
from mapstack.endpoint.endpoint import Endpoint
from mapstack.endpoint.settings import EndpointConfig
from mapstack.errors import CheckpointError, ConfigError
from mapstack.models import load_model
from mapstack.prompts import load_prompt_set

CHECKPOINT = "checkpoint"
PROMPTS = "prompts.yaml"
SETTINGS = "endpoint.json"

# How the process that starts a server and its workers understand each other.
CACHE_VARIABLE, BUSY_VARIABLE = "MAPSTACK_CACHE", "MAPSTACK_BUSY"
LOAD_FAILED = "[mapstack] the model cannot be loaded: "


def write_settings(folder: Path, *, model: Mapping[str, Any], endpoint: Mapping[str, Any], fingerprint: str) -> None:
    """Write what the handler reads beside the checkpoint.

    Args:
        folder: The inside of the archive.
        model: `name` and `prompt_padding`, as in `mapstack.config.ModelConfig`.
        endpoint: As it stands in the configuration file.
        fingerprint: Of the weights: a handler refuses others.
    """
    settings = {"model": dict(model), "endpoint": dict(endpoint), "weights": fingerprint}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def open_endpoint(folder: Path, *, device: str = "cpu", cache_folder: Path | None = None) -> Endpoint:
    """Make the endpoint of an unpacked archive.

    Args:
        folder: The inside of the archive.
        device: Where the model runs.
        cache_folder: In place of the configured one.

    Raises:
        ConfigError: The settings are missing or wrong.
        CheckpointError: The checkpoint is damaged, does not fit, or is not the one that was packed.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        model_settings, expected = settings["model"], settings["weights"]
        config = merge(EndpointConfig, [settings["endpoint"]], prefix="endpoint.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"'{folder / SETTINGS}' cannot be read ({type(error).__name__}); an archive holds it; pack again."
        ) from None
    model = load_model(model_settings["name"], folder / CHECKPOINT, prompt_padding=model_settings["prompt_padding"])
    if model.fingerprint != expected:
        raise CheckpointError(
            f"the archive was packed with weights {expected[:12]}..., it holds {model.fingerprint[:12]}...; it was "
            "changed or damaged; pack again."
        )
    prompts = folder / PROMPTS
    return Endpoint(
        model.to(torch.device(device)),
        config,
        load_prompt_set(prompts) if prompts.exists() else None,
        cache_folder,
    )
