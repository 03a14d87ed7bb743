"""The cache of stacks: bounded, shared, computed once, and never a source of wrong or foreign maps."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapstack.endpoint import Endpoint
from mapstack.endpoint.cache_files import CacheFolder
from mapstack.errors import ConfigError
from tests.serve.asked import PROMPTS, ask, code, content, picture_file
from tests.serve.test_endpoint import assert_same, count_runs, maps_of, offline

MB = 1024**2


def bytes_in(cache: CacheFolder) -> int:
    return sum(file.stat().st_size for file in cache.root.glob("[!l]*/*"))


def entry(n_bytes: int, value: int = 0) -> dict[str, np.ndarray]:
    return {"stack": np.full(n_bytes, value, np.uint8)}


def test_the_least_recently_used_goes_first_and_the_bound_holds(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", 3 * MB)
    for name in ("a", "b"):
        assert cache.put(name, entry(MB), {})
    assert cache.touch("a")
    for i in range(6):
        assert cache.put(f"c{i}", entry(MB), {})
        assert bytes_in(cache) <= cache.n_bytes() <= 3 * MB
        assert cache.touch("a")
    assert cache.names("") == ["a", "c5", "locks"]
    assert not cache.put("too large", entry(4 * MB), {})
    assert cache.names("") == ["a", "c5", "locks"]


def test_what_is_mapped_outlives_its_name(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", 3 * MB)
    cache.put("a", entry(MB, value=7), {"n": 1})
    found = cache.read("a")
    assert found is not None
    cache.remove("a")
    assert cache.read("a") is None
    assert int(found[0]["stack"].sum()) == 7 * MB


def test_a_writer_that_died_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", 3 * MB)
    partial = cache.root / "tmp.4711"
    partial.mkdir()
    (partial / "stack.npy").write_bytes(b"half")
    cache.put("a", entry(10), {})
    assert cache.names("") == ["a", "locks"]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00v\x00{'descr'", None])
def test_a_damaged_entry_is_computed_again(
    endpoint: Endpoint, image: bytes, tmp_path: Path, damage: bytes | None
) -> None:
    wanted = {"prompts": PROMPTS, "method": "gradient", "output": "npy"}
    first = content(ask(endpoint, image, **wanted))
    endpoint._cache._open.clear()
    for folder in (tmp_path / "cache").glob("stack.*"):
        target = folder / ("info.json" if damage is None else "stack.npy")
        target.write_bytes(b'{"arrays": [], "about": {}}' if damage is None else damage)
    second = content(ask(endpoint, image, **wanted))
    assert not second["cached"]
    assert_same(maps_of(second), torch.from_numpy(maps_of(first)))
    assert content(ask(endpoint, image, **wanted))["cached"]


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o750, 0o701])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="can be entered by others"):
        CacheFolder(folder, MB)


def test_a_full_disk_costs_the_cache_and_no_answer(
    make_endpoint: Callable[..., Endpoint], image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = make_endpoint()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    for _ in range(2):
        assert not content(ask(endpoint, image, prompts=PROMPTS, method="gradient"))["cached"]


def test_without_a_cache_everything_is_computed(make_endpoint: Callable[..., Endpoint], image: bytes) -> None:
    endpoint = make_endpoint(cache={"max_bytes": 0})
    for _ in range(2):
        assert not content(ask(endpoint, image, prompts=PROMPTS, method="gradient"))["cached"]
    sha256 = hashlib.sha256(image).hexdigest()
    assert code(ask(endpoint, prompts=PROMPTS, image_sha256=sha256)) == "unknown_image"


def test_other_pictures_parameters_and_forms_are_never_mixed_up(endpoint: Endpoint, image: bytes) -> None:
    occlusion = {"name": "occlusion", "sliding_window_shapes": 56, "strides": 56}
    asked = [
        (image, {"method": "gradient"}),
        (picture_file(seed=3), {"method": "gradient"}),
        (image, {"method": "gradient", "normalize": False}),
        (image, {"method": {"name": "integrated_gradients", "n_steps": 2}}),
        (image, {"method": {"name": "integrated_gradients", "n_steps": 3}}),
        (image, {"method": {"name": "integrated_gradients", "n_steps": 3, "baseline": "white"}}),
        (image, {"method": occlusion}),
        (image, {"method": {**occlusion, "strides": 28}}),
    ]
    answers = [content(ask(endpoint, each, prompts=PROMPTS, **fields, output="npy")) for each, fields in asked]
    assert [answer["cached"] for answer in answers] == [False] * len(asked)
    assert len({answer["npy"] for answer in answers}) == len(asked)
    # Occlusion's one sweep serves the raw embedding too.
    raw = content(ask(endpoint, image, prompts=PROMPTS, method=occlusion, normalize=False, output="npy"))
    assert raw["cached"]
    assert_same(maps_of(raw), offline(endpoint._model, image, occlusion, normalize=False).maps)


def _ask_at_once(make: Any, barrier: Any, results: Any, image: bytes) -> None:
    torch.set_num_threads(1)
    endpoint = make()
    runs = count_runs(endpoint)
    barrier.wait()
    answer = content(ask(endpoint, image, prompts=PROMPTS, method="gradient", output="npy"))
    results.put((len(runs), answer["cached"], answer["npy"]))


@pytest.mark.fault("S11")
def test_workers_that_are_asked_the_same_at_once_compute_it_once(
    make_endpoint: Callable[..., Endpoint], image: bytes, figure: Callable[[str], None]
) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_ask_at_once, args=(make_endpoint, barrier, results, image)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(n_runs for n_runs, _, _ in found) == 1
    assert sorted(is_cached for _, is_cached, _ in found) == [False, True, True, True]
    figure("4 workers asked the same at once: 1 computation")


def test_the_files_are_private(endpoint: Endpoint, image: bytes, tmp_path: Path) -> None:
    ask(endpoint, image, prompts=PROMPTS, method="gradient")
    folder = tmp_path / "cache"
    assert os.stat(folder).st_mode & 0o077 == 0
