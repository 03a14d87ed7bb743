"""A cache that fails, is taken away, is filled, or was filled for another model: it costs time, never an answer."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapstack.endpoint import Endpoint
from mapstack.endpoint.cache_files import CacheFolder
from mapstack.models import EmbeddingModel, load_model
from tests.serve.asked import PROMPTS, ask, code, content, picture_file
from tests.serve.test_endpoint import assert_same, count_runs, maps_of, offline

MB = 1024**2
WANTED: dict[str, Any] = {"prompts": PROMPTS, "method": "gradient", "output": "npy"}


@pytest.fixture(params=[{"mean": (0.3,)}, {"std": (0.5,)}, {"fit": "crop"}], ids=lambda changed: next(iter(changed)))
def other_model(request: pytest.FixtureRequest, small_checkpoint: Path) -> EmbeddingModel:
    """A model of the same weights whose pictures are prepared otherwise, to the same size."""
    model = load_model("medclip-vit", small_checkpoint)
    model.preprocessing = replace(model.preprocessing, **request.param)
    return model


def test_what_was_kept_for_another_model_is_not_taken(
    make_endpoint: Callable[..., Endpoint], other_model: EmbeddingModel, image: bytes
) -> None:
    first = make_endpoint()
    content(ask(first, image, **WANTED))
    second = make_endpoint(model=other_model)
    sha256 = hashlib.sha256(image).hexdigest()
    assert code(ask(second, image_sha256=sha256, **WANTED)) == "unknown_image"
    answer = content(ask(second, image, **WANTED))
    assert not answer["cached"]
    assert_same(maps_of(answer), offline(other_model, image, {"name": "gradient"}).maps)
    assert content(ask(first, image_sha256=sha256, **WANTED))["cached"]


def empty(folder: Path) -> None:
    (folder / "info.json").write_bytes(b'{"arrays": [], "about": {}}')


def without_about(folder: Path) -> None:
    (folder / "info.json").write_bytes(b'{"arrays": []}')


def other_shape(folder: Path) -> None:
    np.save(folder / "pixel_values.npy", np.zeros((1, 8, 8), np.float32))


def other_size(folder: Path) -> None:
    np.save(folder / "pixels.npy", np.zeros((8, 8), np.uint8))


def other_geometry(folder: Path) -> None:
    info = json.loads((folder / "info.json").read_text())
    info["about"]["geometry"]["box"] = [0, 0, 0, 0]
    (folder / "info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("damage", [empty, without_about, other_shape, other_size, other_geometry])
def test_a_damaged_picture_is_read_again(
    endpoint: Endpoint, image: bytes, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = content(ask(endpoint, image, **WANTED))
    (entry,) = (tmp_path / "cache").glob("picture.*")
    damage(entry)
    sha256 = hashlib.sha256(image).hexdigest()
    assert code(ask(endpoint, image_sha256=sha256, **WANTED)) == "unknown_image"
    again = content(ask(endpoint, image, **WANTED))
    assert_same(maps_of(again), torch.from_numpy(maps_of(first)))
    assert content(ask(endpoint, image_sha256=sha256, **WANTED))["cached"]


def test_a_cache_that_is_taken_away_under_a_server_is_made_again(
    endpoint: Endpoint, image: bytes, tmp_path: Path
) -> None:
    content(ask(endpoint, image, **WANTED))
    for _ in range(2):
        shutil.rmtree(tmp_path / "cache")
        runs = count_runs(endpoint)
        assert not content(ask(endpoint, image, **WANTED))["cached"]
        assert len(runs) >= 1
        assert content(ask(endpoint, image, **WANTED))["cached"]
        assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_a_disk_that_fails_costs_no_answer(endpoint: Endpoint, image: bytes, tmp_path: Path) -> None:
    content(ask(endpoint, image, **WANTED))
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_bytes(b"no folder any more")
    for picture in (image, picture_file(seed=3)):
        for wants_maps in (True, False):
            answer = content(ask(endpoint, picture, wants_maps=wants_maps, **WANTED))
            assert not answer.get("cached")
    assert endpoint.report_cache().n_bytes == 0


def test_an_entry_that_another_worker_evicts_meanwhile_is_a_miss(
    endpoint: Endpoint, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content(ask(endpoint, image, **WANTED))
    folder = endpoint._cache.folder
    assert folder is not None
    for name in ("touch", "inode"):
        real = getattr(folder, name)

        def evict_after(entry: str, real: Callable[[str], object] = real) -> object:
            found = real(entry)
            shutil.rmtree(folder.path(entry), ignore_errors=True)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(folder, name, evict_after)
            content(ask(endpoint, image, **WANTED))
        content(ask(endpoint, image, **WANTED))


def test_pictures_take_no_more_than_their_share(tmp_path: Path, make_endpoint: Callable[..., Endpoint]) -> None:
    """A picture of 200 x 160 px takes 233 kB with what the model sees of it; a quarter of 4 MB holds four of them."""
    endpoint = make_endpoint(cache={"max_bytes": 4 * MB})
    first = picture_file(seed=0)
    assert content(ask(endpoint, first, **WANTED))
    for seed in range(1, 7):
        ask(endpoint, picture_file(seed=seed), prompts=PROMPTS, wants_maps=False)
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert sum(name.startswith("picture.") for name in names) == 4
    assert sum(name.startswith("stack.") for name in names) == 1
    assert content(ask(endpoint, first, **WANTED))["cached"]


def test_a_stack_that_does_not_cover_the_texts_is_not_counted_as_used(endpoint: Endpoint, image: bytes) -> None:
    content(ask(endpoint, image, **{**WANTED, "prompts": ["useless"]}))
    content(ask(endpoint, image, **WANTED))
    folder = endpoint._cache.folder
    assert folder is not None
    stacks = folder.names("stack.")
    assert len(stacks) == 2
    before = {name: folder.path(name).stat().st_mtime_ns for name in stacks}
    endpoint._cache._open.clear()
    assert content(ask(endpoint, image, **WANTED))["cached"]
    touched = [name for name in stacks if folder.path(name).stat().st_mtime_ns != before[name]]
    assert len(touched) == 1
    assert list(endpoint._cache._open) == touched


def test_space_that_was_evicted_is_freed_when_a_stack_is_added(endpoint: Endpoint, image: bytes) -> None:
    """What is mapped stays on the disk although its name is gone: a worker that only misses must let go of it too."""
    content(ask(endpoint, image, **WANTED))
    content(ask(endpoint, image, **WANTED))
    folder, opened = endpoint._cache.folder, endpoint._cache._open
    assert folder is not None
    (name,) = opened
    folder.remove(name)
    content(ask(endpoint, picture_file(seed=3), **WANTED))
    assert name not in opened


def test_a_worker_that_never_wrote_tells_what_the_others_did(
    make_endpoint: Callable[..., Endpoint], image: bytes
) -> None:
    writer, reader = make_endpoint(), make_endpoint()
    content(ask(writer, image, **WANTED))
    assert reader.report_cache().n_bytes == writer.report_cache().n_bytes > 224 * 224 * 4


def test_kinds_are_bounded_by_themselves(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", 4 * MB)
    assert cache.put("stack.a", {"x": np.zeros(MB, np.uint8)}, {})
    for i in range(3):
        assert cache.put(f"picture.{i}", {"x": np.zeros(MB // 2, np.uint8)}, {}, max_share=0.3)
    assert cache.names("") == ["locks", "picture.1", "picture.2", "stack.a"]
    assert not cache.put("picture.large", {"x": np.zeros(2 * MB, np.uint8)}, {}, max_share=0.3)
