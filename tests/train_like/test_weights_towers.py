"""Both official downloads, with the configurations that are shipped: Swin and ResNet-50, small and of the real size."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from mapstack.models import load_model
from mapstack.models.medclip import save_random_medclip
from tests.toys import SMALL_TEXT, VOCABULARY
from tests.train_like.conftest import QUICK_VISION
from tests.train_like.jobs import Ended
from tests.train_like.published import WORD_LIST, WORDS, zipped
from tests.train_like.servers import serving
from train_like.errors import WRONG_USE

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = {"medclip-vit": "vit", "medclip-resnet50": "resnet50"}
# Tensors and parameters of the official sizes, the tables that newer transformers builds left out.
OFFICIAL = {"medclip-vit": (421, 136.6e6), "medclip-resnet50": (520, 133.3e6)}
N_WORDS = 28_996  # of Bio_ClinicalBERT's vocab.txt


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def shipped(model: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{model.replace('-', '_')}_weights.yaml").read_text())
    return config


def publish(folder: Path, model: str, sizes: dict[str, Any], words: Sequence[str]) -> Path:
    """Write random weights in the layout of the official ones."""
    save_random_medclip(folder, tower=MODELS[model], sizes=sizes, vocabulary=list(words), seed=3)  # type: ignore[arg-type]
    return folder


def fetch(
    published: Path, model: str, folder: Path, command: Callable[..., Ended], **changes: Any
) -> tuple[Ended, dict[str, Any]]:
    """Run `weights` with the shipped configuration, its URLs led to a server on the loopback."""
    config = shipped(model)
    archive = f"/{config['weights'].split('/', 3)[3]}"
    content = {
        archive: zipped({"pytorch_model.bin": (published / "pytorch_model.bin").read_bytes()}),
        WORDS: (published / "vocab.txt").read_bytes(),
    }
    with serving(content) as served:
        places = {"weights": served.url(archive), "vocabulary": served.url(WORDS)}
        config |= {**places, "output": str(folder / "checkpoint"), "cache": str(folder / "cache"), **changes}
        (folder / "weights.yaml").write_text(yaml.safe_dump(config))
        return command("weights", folder / "weights.yaml"), config


def stored_names(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


SMALL = {"medclip-vit": {"vision": QUICK_VISION, "text": SMALL_TEXT}, "medclip-resnet50": {"text": SMALL_TEXT}}


@pytest.mark.parametrize("model", MODELS)
def test_either_tower_comes_from_its_server(model: str, tmp_path: Path, command: Callable[..., Ended]) -> None:
    published = publish(tmp_path / "published", model, SMALL[model], WORD_LIST)
    ended, config = fetch(published, model, tmp_path, command, **SMALL[model])
    assert ended.code == 0, ended.err
    assert config["model"] == model
    names = stored_names(tmp_path / "checkpoint")
    assert f"{model}: all {len(names)} tensors" in ended.line["verdict"]
    ours, theirs = load_model(model, tmp_path / "checkpoint"), load_model(model, published)
    assert ours.fingerprint == theirs.fingerprint == ended.line["fingerprint"]
    pixel_values = torch.linspace(-1, 1, 224 * 224).reshape(1, 1, 224, 224)
    assert torch.equal(ours.embed_images(pixel_values), theirs.embed_images(pixel_values))
    assert torch.equal(ours.text.embed_texts(["edema"]), theirs.text.embed_texts(["edema"]))
    assert "text_model.model.embeddings.position_ids" in torch.load(published / "pytorch_model.bin", weights_only=True)
    origin = json.loads((tmp_path / "checkpoint" / "origin.json").read_text())
    assert origin["weights"] == config["weights"]


@pytest.mark.parametrize("model", MODELS)
def test_the_weights_of_the_other_tower_are_refused(model: str, tmp_path: Path, command: Callable[..., Ended]) -> None:
    (other,) = MODELS.keys() - {model}
    published = publish(tmp_path / "published", other, SMALL[other], WORD_LIST)
    ended, _ = fetch(published, model, tmp_path, command, **SMALL[model])
    assert ended.code == WRONG_USE
    assert "keys must agree exactly; check model.name" in ended.line["error"]
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_the_official_size_is_taken_as_it_is_published(
    model: str, tmp_path: Path, command: Callable[..., Ended]
) -> None:
    """Every tensor of the real layout, and a word for each of the 28,996 rows of the word table."""
    words = [*VOCABULARY, *(f"[unused{number}]" for number in range(N_WORDS - len(VOCABULARY)))]
    published = publish(tmp_path / "published", model, {}, words)
    ended, config = fetch(published, model, tmp_path, command)
    assert ended.code == 0, ended.err
    assert "vision" not in config
    n_tensors, n_parameters = OFFICIAL[model]
    assert f"{model}: all {n_tensors} tensors" in ended.line["verdict"]
    assert ended.line["parameters"] == pytest.approx(n_parameters, rel=1e-3)
    assert len(stored_names(tmp_path / "checkpoint")) == n_tensors
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {
        "model.safetensors",
        "vocab.txt",
        "origin.json",
    }
    assert load_model(model, tmp_path / "checkpoint").fingerprint == ended.line["fingerprint"]
    # A word less, and the table has a row that no word leads to.
    (published / "vocab.txt").write_text("\n".join(words[:-1]) + "\n")
    ended, _ = fetch(published, model, tmp_path, command, output=str(tmp_path / "short"), cache=str(tmp_path / "other"))
    assert ended.code == WRONG_USE
    assert f"a word a line, {N_WORDS} for these weights" in ended.line["error"]
