"""The official weights end to end: from a server or a file to a checkpoint folder, with every failure named."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mapstack.models import EmbeddingModel, load_model
from tests.toys import SMALL_TEXT
from tests.train_like.conftest import QUICK_VISION
from tests.train_like.jobs import Ended
from tests.train_like.published import WORD_LIST, WORDS, ZIP, saved, zipped
from tests.train_like.servers import Served, serving
from train_like.errors import STOPPED, WRONG_USE
from train_like.trained import embedding_statistics


@pytest.fixture(scope="module")
def weights(job_checkpoint: Path) -> dict[str, torch.Tensor]:
    """In the official layout, with the table that newer transformers no longer has."""
    loaded: dict[str, torch.Tensor] = torch.load(job_checkpoint / "pytorch_model.bin", weights_only=True)
    return loaded


@pytest.fixture
def server(weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    content = {ZIP: zipped({"medclip/pytorch_model.bin": saved(weights)}), WORDS: "\n".join(WORD_LIST).encode()}
    with serving(content) as served:
        yield served


@pytest.fixture
def fetch(server: Served, tmp_path: Path, command: Callable[..., Ended]) -> Callable[..., Ended]:
    """Run `weights` against the server, with some keys changed."""

    def run(**changes: Any) -> Ended:
        config = {
            "source": "official",
            "model": "medclip-vit",
            "output": str(tmp_path / "checkpoint"),
            "weights": server.url(ZIP),
            "vocabulary": server.url(WORDS),
            "vision": QUICK_VISION,
            "text": SMALL_TEXT,
            "cache": str(tmp_path / "cache"),
            "n_tries": 1,
            "timeout_s": 5.0,
        }
        path = tmp_path / "weights.yaml"
        path.write_text(yaml.safe_dump({**config, **changes}))
        return command("weights", path)

    return run


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".checkpoint"))


def test_the_weights_are_really_in(
    fetch: Callable[..., Ended], server: Served, tmp_path: Path, job_model: EmbeddingModel, job_checkpoint: Path
) -> None:
    ended = fetch()
    assert ended.code == 0, ended.err
    assert ended.line["fingerprint"] == job_model.fingerprint
    assert ended.line["verdict"].startswith("medclip-vit: all ")
    assert "none missing, none left over; sha256 not pinned; its embeddings LOOK UNTRAINED" in ended.line["verdict"]
    folder = tmp_path / "checkpoint"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "vocab.txt", "config.json", "origin.json"}
    model = load_model("medclip-vit", folder)
    assert model.fingerprint == job_model.fingerprint
    assert torch.equal(model.text.embed_texts(["edema"]), job_model.text.embed_texts(["edema"]))
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["weights"] == server.url(ZIP)
    assert origin["weights_sha256"] == ended.line["weights_sha256"]
    assert origin["weights_bytes"] == len(server.content[ZIP])
    assert ended.line["golden"] == pytest.approx(embedding_statistics(job_model).golden, abs=1e-5)


def test_what_was_printed_once_can_be_pinned(fetch: Callable[..., Ended], server: Served, tmp_path: Path) -> None:
    line = fetch().line
    pins = {name: line[name] for name in ("weights_sha256", "vocabulary_sha256", "golden")}
    again = fetch(**pins)
    assert again.code == 0, again.err
    assert "sha256 pinned" in again.line["verdict"]
    assert "equal to golden" in again.line["verdict"]
    assert len(server.requests) == 2  # both from the cache
    other = [value + 0.01 for value in line["golden"]]
    ended = fetch(golden=other, output=str(tmp_path / "other"))
    assert ended.code == WRONG_USE
    assert "embeddings of the fixed phantom and sentences are" in ended.line["error"]
    assert not (tmp_path / "other").exists()


def test_a_transfer_that_breaks_off_is_taken_up_by_the_next_run(
    fetch: Callable[..., Ended], server: Served, tmp_path: Path
) -> None:
    n = len(server.content[ZIP])
    server.faults = [("cut", n // 2), ("cut", 0)]
    ended = fetch()
    assert ended.code == STOPPED
    assert ended.line["status"] == "stopped"
    assert f"{n // 2} bytes are kept" in ended.line["error"]
    assert not (tmp_path / "checkpoint").exists()
    assert fetch().code == 0
    assert server.n_sent == n + len(server.content[WORDS])


def test_a_damaged_file_without_a_pin_is_refused_and_fetched_again(
    fetch: Callable[..., Ended], server: Served, tmp_path: Path
) -> None:
    server.faults = [("flip",)]
    ended = fetch()
    assert ended.code == WRONG_USE
    assert "is no whole zip" in ended.line["error"]
    assert not (tmp_path / "checkpoint").exists()
    assert leftovers(tmp_path) == []
    assert fetch().code == 0


def test_offline_the_same_comes_from_local_files(
    fetch: Callable[..., Ended], server: Served, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "w.zip").write_bytes(server.content[ZIP])
    (tmp_path / "vocab.txt").write_bytes(server.content[WORDS])
    (tmp_path / "pytorch_model.bin").write_bytes(saved(weights))
    fingerprints = set()
    for number, name in enumerate(("w.zip", "pytorch_model.bin")):
        ended = fetch(
            weights=str(tmp_path / name),
            vocabulary=str(tmp_path / "vocab.txt"),
            output=str(tmp_path / f"local{number}"),
        )
        assert ended.code == 0, ended.err
        assert ended.line["weights"] == name
        fingerprints.add(ended.line["fingerprint"])
    assert len(fingerprints) == 1
    assert server.requests == []


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no weights", "holds no pytorch_model.bin; the official zip does"),
        ("no zip", "is no whole zip"),
        ("empty", "is no whole zip"),
        ("code", "cannot be read .*; the file is damaged or no plain tensor file"),
        ("no tensors", "are no mapping from names to tensors"),
        ("NaN", "hold NaN or infinity in"),
        ("a key less", "1 keys are missing .*, 0 are unknown"),
        ("a key more", "0 keys are missing .*, 1 are unknown"),
        ("another size", "has '.*' of shape .*, the model needs"),
    ],
)
def test_what_are_no_weights_is_named(
    fetch: Callable[..., Ended],
    server: Served,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    name: str,
    message: str,
) -> None:
    key = "vision_model.projection_head.weight"
    bad: dict[str, Callable[[], bytes]] = {
        "no weights": lambda: zipped({"readme.txt": b"none"}),
        "no zip": lambda: b"not a zip" * 100,
        "empty": lambda: b"",
        "code": lambda: zipped({"pytorch_model.bin": saved({"a": Attack()})}),
        "no tensors": lambda: zipped({"pytorch_model.bin": saved({"a": 1})}),
        "NaN": lambda: zipped({"pytorch_model.bin": saved({**weights, key: weights[key] * torch.nan})}),
        "a key less": lambda: zipped({"pytorch_model.bin": saved({k: v for k, v in weights.items() if k != key})}),
        "a key more": lambda: zipped({"pytorch_model.bin": saved({**weights, "x": weights[key]})}),
        "another size": lambda: zipped({"pytorch_model.bin": saved({**weights, key: weights[key][:, :-1]})}),
    }
    server.content[ZIP] = bad[name]()
    ended = fetch()
    assert ended.code == WRONG_USE
    assert "executed" not in ended.out

    assert re.search(message, ended.line["error"]), ended.line["error"]
    assert not (tmp_path / "checkpoint").exists()
    assert leftovers(tmp_path) == []


def test_a_member_that_leads_out_of_the_folder_is_put_into_it(
    fetch: Callable[..., Ended], server: Served, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    server.content[ZIP] = zipped({"../../../pytorch_model.bin": saved(weights), "../evil.txt": b"x"})
    assert fetch().code == 0
    assert not list(tmp_path.parent.glob("pytorch_model.bin"))
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("content", [b"<html>", b"\xff\xfe", "\n".join(WORD_LIST[:-1]).encode()])
def test_another_vocabulary_is_refused(fetch: Callable[..., Ended], server: Served, content: bytes) -> None:
    whole = server.content[WORDS]
    server.content[WORDS] = content
    ended = fetch()
    assert ended.code == WRONG_USE
    assert "Bio_ClinicalBERT's vocab.txt has a word a line" in ended.line["error"]
    server.content[WORDS] = whole
    assert fetch().code == 0


def test_a_checkpoint_of_other_weights_is_not_replaced(
    fetch: Callable[..., Ended], server: Served, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert fetch().code == 0
    assert fetch().code == 0
    other = {name: value * 1.01 if value.is_floating_point() else value for name, value in weights.items()}
    (tmp_path / "other.zip").write_bytes(zipped({"pytorch_model.bin": saved(other)}))
    ended = fetch(weights=str(tmp_path / "other.zip"))
    assert ended.code == WRONG_USE
    assert "a checkpoint is never replaced" in ended.line["error"]
    assert load_model("medclip-vit", tmp_path / "checkpoint").fingerprint == fetch().line["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ""}, "weights is empty; of official weights it is a URL or a path"),
        ({"weights_sha256": "abc"}, "a sha256 has 64 hexadecimal digits"),
        ({"weights": "nowhere.zip"}, "'nowhere.zip' is neither a file nor an http"),
    ],
)
def test_wrong_keys_are_refused(fetch: Callable[..., Ended], changes: dict[str, Any], message: str) -> None:
    ended = fetch(**changes)
    assert ended.code == WRONG_USE
    assert message in ended.line["error"]


def test_the_demo_model_looks_trained_and_a_random_one_does_not(job_model: EmbeddingModel) -> None:
    demo = Path(__file__).parents[2] / "model_store" / "phantom-medclip"
    assert embedding_statistics(load_model("medclip-vit", demo)).look_trained
    assert not embedding_statistics(job_model).look_trained
