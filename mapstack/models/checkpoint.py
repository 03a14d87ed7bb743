"""Reading and writing the weights of a checkpoint folder, and the fingerprint that names them."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mapstack.errors import CheckpointError

OFFICIAL_NAME = "pytorch_model.bin"
SAFETENSORS_NAME = "model.safetensors"

# Older transformers saved these index tables with the weights; newer ones build them. No other extra key is let pass.
_REBUILT_BUFFERS = ("position_ids", "relative_position_index")


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a checkpoint folder; an absent file means the official sizes and gives {}.

    Raises:
        CheckpointError: The folder is missing, or the file is no JSON object.
    """
    _require_folder(folder)
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not valid JSON ({error}); repair it or remove it.") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"'{path}' holds a {type(config).__name__}; it must hold one JSON object.")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Map the weights of a checkpoint folder into memory, without running any code of the file.

    Raises:
        CheckpointError: No folder, no weight file, a damaged one, or one that holds something else than finite tensors.
    """
    path, weights = _map_weights(folder)
    for key, value in weights.items():
        if not _is_finite(value):
            raise CheckpointError(f"weights '{path}' hold NaN or infinity in '{key}'; fetch the file again.")
    return weights


def read_fingerprint(folder: Path) -> str:
    """Return the `fingerprint` of the weights of a checkpoint folder in the time that hashing them takes.

    Raises:
        CheckpointError: No folder, no weight file, or a damaged one.
    """
    _, weights = _map_weights(folder)
    return fingerprint(weights)


def _map_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    _require_folder(folder)
    official, safe = folder / OFFICIAL_NAME, folder / SAFETENSORS_NAME
    path = safe if safe.exists() else official
    if not path.exists():
        raise CheckpointError(f"checkpoint '{folder}' holds neither {SAFETENSORS_NAME} nor {OFFICIAL_NAME}; add one.")
    try:
        if path == safe:
            weights = load_file(path)
        else:
            # torch maps no file of its oldest format, which is no zip.
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"weights '{path}' cannot be read ({type(error).__name__}: {reason}); the file is damaged or no plain "
            "tensor file; fetch it again."
        ) from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"weights '{path}' are no mapping from names to tensors; save model.state_dict().")
    return path, {key: value for key, value in weights.items() if not key.endswith(_REBUILT_BUFFERS)}


def _is_finite(value: Tensor) -> bool:
    """Say so by the extremes, which are NaN where any value is, and take no copy of the weights."""
    return not value.is_floating_point() or not value.numel() or all(x.isfinite() for x in value.aminmax())


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint '{folder}' is not a folder; a checkpoint is a folder with {OFFICIAL_NAME} or "
            f"{SAFETENSORS_NAME} and tokenizer files; set model.checkpoint to one."
        )


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load weights whose names and shapes must fit the module exactly.

    Raises:
        CheckpointError: A key is missing, left over, or of another shape.
    """
    expected = {key: value for key, value in module.state_dict().items() if not key.endswith(_REBUILT_BUFFERS)}
    missing = sorted(expected.keys() - weights.keys())
    extra = sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"checkpoint '{folder}' does not fit: {len(missing)} keys are missing (first: {missing[:1]}), "
            f"{len(extra)} are unknown (first: {extra[:1]}); keys must agree exactly; check model.name and config.json."
        )
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            raise CheckpointError(
                f"checkpoint '{folder}' has '{key}' of shape {tuple(weights[key].shape)}, the model needs "
                f"{tuple(value.shape)}; check model.name and config.json."
            )
    module.load_state_dict(dict(weights), strict=False)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes: the same for both file formats of the same weights."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(cast(Any, value.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
