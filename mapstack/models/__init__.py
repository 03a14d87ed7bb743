"""The models by name. A new one is a file beside this and a line in the table."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mapstack.errors import ConfigError, unknown_name
from mapstack.models.base import EmbeddingModel, PromptPadding, TextTower, normalised
from mapstack.models.precision import PRECISIONS, in_precision

__all__ = [
    "MODEL_NAMES",
    "PRECISIONS",
    "EmbeddingModel",
    "TextTower",
    "in_precision",
    "load_model",
    "load_text_tower",
    "normalised",
    "read_fingerprint",
]

# By name, so that a job which needs no model, or another one, does not wait for transformers to be imported.
_LOADERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "medclip-vit": ("mapstack.models.medclip", "medclip", {"tower": "vit"}),
    "medclip-resnet50": ("mapstack.models.medclip", "medclip", {"tower": "resnet50"}),
    "clip": ("mapstack.models.clip", "clip", {}),
}
MODEL_NAMES = tuple(_LOADERS)


@torch.inference_mode(False)  # weights that are made in it take part in no gradient
def load_model(name: str, checkpoint: str | Path, *, prompt_padding: PromptPadding = "none") -> EmbeddingModel:
    """Load a model from a checkpoint folder, frozen, on the CPU, in float32.

    Args:
        name: One of `MODEL_NAMES`.
        checkpoint: The folder.
        prompt_padding: See `TextTower`.

    Raises:
        ConfigError: The name is unknown.
        CheckpointError: The checkpoint is missing, damaged, or does not fit.
    """
    model: EmbeddingModel = _loader(name, "load_{}")(Path(checkpoint), prompt_padding=prompt_padding)
    return model


def load_text_tower(name: str, checkpoint: str | Path, *, prompt_padding: PromptPadding = "none") -> TextTower:
    """Load only what embeds texts; same arguments and errors as `load_model`."""
    tower: TextTower = _loader(name, "load_{}_text")(Path(checkpoint), prompt_padding=prompt_padding)
    return tower


def read_fingerprint(name: str, checkpoint: str | Path) -> str:
    """Return the `TextTower.fingerprint` that a checkpoint folder has once it is loaded, sooner where that can be.

    Same errors as `load_model`, except that the weights are not fitted to a model.
    """
    digest: str = _loader(name, "read_{}_fingerprint")(Path(checkpoint))
    return digest


def _loader(name: str, function: str) -> Callable[..., Any]:
    if name not in _LOADERS:
        raise ConfigError(unknown_name("model", name, MODEL_NAMES))
    module, family, arguments = _LOADERS[name]
    return partial(getattr(import_module(module), function.format(family)), **arguments)
