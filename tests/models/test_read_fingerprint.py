"""What names the weights of a checkpoint folder is read without a model, and is what the loaded model has."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mapstack.errors import CheckpointError
from mapstack.models import EmbeddingModel, load_model, medclip, read_fingerprint
from tests.models.test_clip import folder as clip_folder

__all__ = ["clip_folder"]
OFFICIAL = "pytorch_model.bin"


@pytest.fixture
def checkpoint(small_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(checkpoint / OFFICIAL, weights_only=True)
    return weights


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_file_format_gives_the_fingerprint_of_the_loaded_model(
    checkpoint: Path, small_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    weights = read_weights(checkpoint)
    (checkpoint / OFFICIAL).unlink()
    if form == "safetensors":
        save_file({key: value.contiguous() for key, value in weights.items()}, checkpoint / "model.safetensors")
    else:
        torch.save(weights, checkpoint / OFFICIAL, _use_new_zipfile_serialization=form == "zip")

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(medclip, "build_medclip", refuse)
    assert read_fingerprint("medclip-vit", checkpoint) == small_model.fingerprint


def test_other_weights_and_the_tables_that_are_rebuilt(checkpoint: Path, small_model: EmbeddingModel) -> None:
    weights = read_weights(checkpoint)
    table = {"vision_model.model.encoder.x.relative_position_index": torch.zeros(49, 49, dtype=torch.long)}
    torch.save(weights | table, checkpoint / OFFICIAL)
    assert read_fingerprint("medclip-vit", checkpoint) == small_model.fingerprint
    torch.save(weights | {"logit_scale": torch.tensor(1.0)}, checkpoint / OFFICIAL)
    assert read_fingerprint("medclip-vit", checkpoint) == load_model("medclip-vit", checkpoint).fingerprint
    assert read_fingerprint("medclip-vit", checkpoint) != small_model.fingerprint


def test_clip_has_the_fingerprint_of_the_loaded_model(clip_folder: Path) -> None:
    assert read_fingerprint("clip", clip_folder) == load_model("clip", clip_folder).fingerprint


@pytest.mark.parametrize("content", [b"", b"no weights", None], ids=["empty", "other", "cut"])
def test_a_damaged_file_is_refused(checkpoint: Path, content: bytes | None) -> None:
    path = checkpoint / OFFICIAL
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(CheckpointError, match="the file is damaged or no plain tensor file"):
        read_fingerprint("medclip-vit", checkpoint)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds neither model.safetensors nor pytorch_model.bin"):
        read_fingerprint("medclip-vit", tmp_path)
