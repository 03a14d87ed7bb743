"""CLIP through the same interface: another model is one adapter."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import mapstack
from mapstack.errors import CheckpointError
from mapstack.images import from_array, prepare
from mapstack.models import load_model, load_text_tower
from train_like.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder as transformers saves one, small."""
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    text = {**tower, "vocab_size": len(tokens), "bos_token_id": 52, "eos_token_id": 53, "max_position_embeddings": 24}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def test_logits_equal_transformers(folder: Path) -> None:
    ours = load_model("clip", folder)
    theirs = CLIPModel.from_pretrained(folder).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)
    rgb = np.repeat(pixels[..., None], 3, axis=2)
    expected_pixels = CLIPImageProcessor.from_pretrained(folder)(rgb, return_tensors="pt")["pixel_values"]
    prepared = prepare(from_array(pixels), ours.preprocessing)
    assert (prepared.pixel_values - expected_pixels[0]).abs().max() <= 1e-6
    texts = ["a heart", "pleural effusion"]
    tokens = ours.text._tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**tokens, pixel_values=expected_pixels).logits_per_image
        image = ours.embed_images(prepared.pixel_values[None])
        found = image / image.norm() @ ours.text_directions(texts).T
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("method", [{"name": "integrated_gradients", "n_steps": "auto"}, {"name": "gradient"}])
def test_explain_takes_it_like_any_model(folder: Path, method: dict[str, object]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)
    found = mapstack.explain(pixels, ["heart"], model="clip", checkpoint=folder, method=method)
    assert found.maps.shape == (1, 32, 32)
    assert found.maps.abs().max() > 0
    assert found.original_maps().shape == (1, 50, 40)


def test_the_text_half_and_damaged_folders(folder: Path, tmp_path: Path) -> None:
    tower = load_text_tower("clip", folder)
    assert tower.fingerprint == load_model("clip", folder).fingerprint
    with pytest.raises(CheckpointError, match="has no config.json"):
        load_model("clip", tmp_path)
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model("clip", tmp_path)


def test_it_goes_through_the_same_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = from_array(np.random.default_rng(1).integers(0, 256, (50, 40), dtype=np.uint8)).image
    png = io.BytesIO()
    picture.save(png, "PNG")
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        member = tarfile.TarInfo("a.png")
        member.size = len(png.getvalue())
        shard.addfile(member, io.BytesIO(png.getvalue()))
    config = tmp_path / "job.yaml"
    config.write_text(
        f"""
model: {{name: clip, checkpoint: {folder}}}
data: {{shards: {tmp_path}/x.tar, batch_size: 1, num_workers: 0}}
method: {{name: integrated_gradients, n_steps: 4}}
stack: {{map_size: 32, codec: float32}}
prompts: {{texts: [a heart]}}
output: {tmp_path}/store
project: {{output: {tmp_path}/maps}}
"""
    )
    for command in ("extract", "project"):
        assert main([command, str(config)]) == 0
    by_job = np.load(tmp_path / "maps" / "a.maps.npy")
    method = {"name": "integrated_gradients", "n_steps": 4}
    by_hand = mapstack.explain(
        png.getvalue(), ["a heart"], model="clip", checkpoint=folder, method=method, route="axes"
    )
    assert np.abs(by_job - by_hand.maps.numpy()).max() <= 1e-5 * np.abs(by_job).max()
    assert (tmp_path / "maps" / "a.000-text.png").exists()
