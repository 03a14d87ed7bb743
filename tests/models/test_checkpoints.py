"""Loading: strict, safe, one sentence on refusal; prompts independent of their batch-mates."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mapstack.errors import CheckpointError, ConfigError, InputError
from mapstack.models import EmbeddingModel, load_model, load_text_tower


@pytest.fixture
def checkpoint(small_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights = {**weights, **change}
    torch.save({key: value for key, value in weights.items() if value is not None}, folder / "pytorch_model.bin")


def test_safetensors_and_official_layout_are_the_same_model(checkpoint: Path, small_model: EmbeddingModel) -> None:
    weights = torch.load(checkpoint / "pytorch_model.bin", weights_only=True)
    (checkpoint / "pytorch_model.bin").unlink()
    save_file({key: value.contiguous() for key, value in weights.items()}, checkpoint / "model.safetensors")
    again = load_model("medclip-vit", checkpoint)
    assert again.fingerprint == small_model.fingerprint
    pixel_values = torch.zeros(1, 1, 224, 224)
    assert torch.equal(again.embed_images(pixel_values), small_model.embed_images(pixel_values))


def test_the_fingerprint_follows_the_weights(checkpoint: Path, small_model: EmbeddingModel) -> None:
    rewrite(checkpoint, {"logit_scale": torch.tensor(1.0)})
    assert load_model("medclip-vit", checkpoint).fingerprint != small_model.fingerprint


def test_only_the_two_rebuilt_tables_may_be_extra(checkpoint: Path, small_model: EmbeddingModel) -> None:
    table = torch.zeros(49, 49, dtype=torch.long)
    rewrite(checkpoint, {"vision_model.model.encoder.x.relative_position_index": table})
    assert load_model("medclip-vit", checkpoint).fingerprint == small_model.fingerprint
    rewrite(checkpoint, {"vision_model.extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 are unknown \(first: \['vision_model.extra'\]\)"):
        load_model("medclip-vit", checkpoint)


def test_a_missing_key_a_wrong_shape_and_a_nan_are_refused(checkpoint: Path) -> None:
    key = "vision_model.projection_head.weight"
    rewrite(checkpoint, {key: None})
    with pytest.raises(CheckpointError, match=rf"1 keys are missing \(first: \['{key}'\]\)"):
        load_model("medclip-vit", checkpoint)
    rewrite(checkpoint, {key: torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=rf"'{key}' of shape \(2, 2\), the model needs \(512, 48\)"):
        load_model("medclip-vit", checkpoint)
    rewrite(checkpoint, {key: torch.full((512, 48), torch.nan)})
    with pytest.raises(CheckpointError, match=rf"hold NaN or infinity in '{key}'"):
        load_model("medclip-vit", checkpoint)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", pickle.dumps(Bomb()), b"\x80\x02garbage"])
def test_a_damaged_or_hostile_file_is_refused_in_one_sentence(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read \(.*\); the file is damaged") as caught:
        load_model("medclip-vit", checkpoint)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_refused(checkpoint: Path) -> None:
    data = (checkpoint / "pytorch_model.bin").read_bytes()
    (checkpoint / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model("medclip-vit", checkpoint)


def test_wrong_sizes_folders_and_names_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a folder"):
        load_model("medclip-vit", tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        load_model("medclip-vit", tmp_path)
    with pytest.raises(ConfigError, match=r"model 'medclip-vit16' is unknown; .*Did you mean 'medclip-vit'\?"):
        load_model("medclip-vit16", checkpoint)
    sizes = json.loads((checkpoint / "config.json").read_text())
    sizes["vision"]["num_heads"] = [5, 5]
    (checkpoint / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(CheckpointError, match=r"build no model"):
        load_model("medclip-vit", checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"is not valid JSON"):
        load_model("medclip-vit", checkpoint)


def test_without_a_tokenizer_pictures_work_and_texts_say_what_is_missing(checkpoint: Path) -> None:
    (checkpoint / "vocab.txt").unlink()
    model = load_model("medclip-vit", checkpoint)
    assert model.embed_images(torch.zeros(1, 1, 224, 224)).shape == (1, 512)
    with pytest.raises(CheckpointError, match=r"holds no tokenizer"):
        model.text_directions(["heart"])


def test_a_tokenizer_larger_than_the_tower_is_refused(checkpoint: Path) -> None:
    words = (checkpoint / "vocab.txt").read_text() + "\n".join(f"word{i}" for i in range(100))
    (checkpoint / "vocab.txt").write_text(words)
    with pytest.raises(CheckpointError, match=r"knows \d+ tokens, the text tower 120"):
        load_model("medclip-vit", checkpoint)


def test_prompts_do_not_depend_on_batch_mates_unless_upstream_padding_is_asked(
    small_checkpoint: Path, small_model: EmbeddingModel
) -> None:
    short, long = "heart", "no left pleural effusion in the right lung . the heart , nodule"
    alone = small_model.text.embed_texts([short])[0]
    assert torch.equal(small_model.text.embed_texts([long, short])[1], alone)
    assert torch.equal(small_model.text.embed_texts([short, long])[0], alone)
    padded = load_text_tower("medclip-vit", small_checkpoint, prompt_padding="longest").embed_texts([short, long])[0]
    assert (padded - alone).norm() > 1e-4
    torch.testing.assert_close(alone.norm(), torch.tensor(1.0))
    with pytest.raises(InputError, match=re.escape("0 texts were given")):
        small_model.text.embed_texts([])
