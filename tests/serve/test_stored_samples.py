"""Samples of a stack store, answered by their keys: with what they lose, and never as what they are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapstack.basis import Basis
from mapstack.endpoint import Endpoint
from mapstack.errors import ConfigError
from mapstack.explainer import Explainer
from mapstack.methods import make_method
from mapstack.models import EmbeddingModel
from mapstack.readouts import TextReadout
from mapstack.store import Store
from mapstack.stored_stack import read_basis
from tests.serve.asked import PROMPTS, ask, code, content, picture_file
from tests.serve.stores import write_store
from tests.serve.test_endpoint import count_runs, maps_of, offline
from tests.serve.test_serving_docs import SCHEMAS, assert_described
from train_like.project import project_record

STEPS = {"name": "integrated_gradients", "n_steps": 2}


@pytest.fixture
def pictures_store(small_model: EmbeddingModel, tmp_path: Path, image: bytes) -> Path:
    """A store along rows as they are fitted to pictures: it answers any text, with an error."""
    drawn = torch.randn(64, small_model.embed_dim, generator=torch.Generator().manual_seed(0))
    rows = torch.linalg.qr(drawn.T)[0].T.contiguous()
    folder = tmp_path / "pictures-store"
    write_store(folder, Explainer(small_model, make_method(**STEPS)), Basis.of_pictures(rows), {"first": image})
    return folder


def test_a_stored_sample_is_answered_by_its_key(
    make_endpoint: Callable[..., Endpoint], small_model: EmbeddingModel, image: bytes, store: Path
) -> None:
    endpoint = make_endpoint(store=str(store))
    runs = count_runs(endpoint)
    answer = content(ask(endpoint, key="first", prompts=PROMPTS[:1], output="npy"))
    logits = content(ask(endpoint, key="second/\u00e9", prompts=PROMPTS, wants_maps=False))
    assert runs == []
    expected = offline(small_model, image, {"name": "gradient"}, texts=PROMPTS[:1])
    assert np.abs(maps_of(answer) - expected.maps.numpy()).max() <= 1e-3 * expected.maps.abs().max()
    assert answer["maps"][0]["logit"] == pytest.approx(float(expected.logits[0]), abs=1e-4)
    assert (answer["image"]["height"], answer["route"], len(logits["predictions"])) == (200, "prompts", 2)
    assert code(ask(endpoint, key="first", prompts=["an utterly different nodule"])) == "outside_span"
    assert code(ask(endpoint, key="third", prompts=PROMPTS)) == "unknown_key"
    assert code(ask(endpoint, key="first", prompts=PROMPTS, output="png")) == "no_picture"
    assert content(ask(endpoint, image, key="first", prompts=PROMPTS, output="png"))["maps"][0]["png"]
    assert code(ask(endpoint, picture_file(seed=3), key="first", prompts=PROMPTS)) == "bad_image"


def test_a_store_of_another_model_is_refused(
    make_endpoint: Callable[..., Endpoint], demo_model: EmbeddingModel, store: Path
) -> None:
    with pytest.raises(ConfigError, match="was written with weights"):
        make_endpoint(store=str(store), model=demo_model)


def test_an_answer_tells_what_the_basis_of_a_store_loses(
    make_endpoint: Callable[..., Endpoint], pictures_store: Path
) -> None:
    endpoint = make_endpoint(store=str(pictures_store))
    answer = content(ask(endpoint, key="first", prompts=PROMPTS, output="npy"))
    store = Store(pictures_store)
    readout = TextReadout(endpoint_groups(PROMPTS), endpoint._model.text, normalize=True)
    projected = project_record(
        store.read("first", check=True), store.manifest, read_basis(store.manifest, store.basis), readout, None
    )
    told: dict[str, Any] = projected.info
    assert_same_words(answer, told)
    assert told["map_error"] > 0.1
    assert min(told["share_outside_span"]) > 0.1
    assert np.allclose(maps_of(answer), projected.maps.numpy(), atol=1e-6)
    assert_described(answer, SCHEMAS["Explanations"])


def endpoint_groups(texts: list[str]) -> Any:
    from mapstack.prompts import text_groups

    return text_groups(prompt_set=None, texts=texts, use="prompts", ensemble="mean", classes=None, against=None)


def assert_same_words(answer: dict[str, Any], told: dict[str, Any]) -> None:
    """The endpoint and the offline job say the same of the same stack."""
    for name in ("map_error", "route", "method", "completeness", "linear", "normalize"):
        assert answer[name] == told[name], name
    assert answer["route"] == "pictures"
    for name in ("share_outside_span", "missing_share"):
        assert [row[name] for row in answer["maps"]] == pytest.approx(told[name])


def test_what_loses_nothing_says_so(endpoint: Endpoint, image: bytes) -> None:
    answer = content(ask(endpoint, image, prompts=PROMPTS, method="gradient"))
    assert answer["map_error"] is None
    assert {(row["share_outside_span"], row["missing_share"]) for row in answer["maps"]} == {(None, None)}


def test_another_method_or_route_than_the_stored_one_is_refused(
    make_endpoint: Callable[..., Endpoint], pictures_store: Path, image: bytes
) -> None:
    endpoint = make_endpoint(store=str(pictures_store))
    for other in ("gradient", "integrated_gradients", {**STEPS, "n_steps": 3}, {**STEPS, "baseline": "white"}):
        answer = ask(endpoint, key="first", prompts=PROMPTS, method=other)
        assert code(answer) == "bad_request"
        assert b'"field":"method"' in answer.body
    for route in ("direct", "prompts", "axes"):
        assert code(ask(endpoint, key="first", prompts=PROMPTS, route=route)) == "bad_route"
    assert code(ask(endpoint, image, key="first", prompts=PROMPTS, method="gradient")) == "bad_request"
    same = content(ask(endpoint, key="first", prompts=PROMPTS, method=STEPS, route="auto"))
    assert same["cached"]
    assert content(ask(endpoint, key="first", prompts=PROMPTS, method="gradient", wants_maps=False))["predictions"]


def test_the_stores_own_method_may_be_named_whatever_its_parameters_are(
    make_endpoint: Callable[..., Endpoint], small_model: EmbeddingModel, tmp_path: Path, image: bytes
) -> None:
    """Some are tuples, which a store holds as lists."""
    method = {"name": "gradient_shap", "n_samples": 2}
    groups = endpoint_groups(PROMPTS)
    explainer = Explainer(small_model, make_method(**method))
    write_store(tmp_path / "store", explainer, Basis.of(explainer.readout(groups).span), {"first": image})
    endpoint = make_endpoint(store=str(tmp_path / "store"))
    assert content(ask(endpoint, key="first", prompts=PROMPTS, method=method))["cached"]
    for other in ("gradient_shap", {**method, "n_samples": 3}):
        assert code(ask(endpoint, key="first", prompts=PROMPTS, method=other)) == "bad_request"


def test_the_stores_own_route_may_be_named(make_endpoint: Callable[..., Endpoint], store: Path) -> None:
    endpoint = make_endpoint(store=str(store))
    wanted = {"key": "first", "prompts": PROMPTS, "method": "gradient", "route": "prompts"}
    assert content(ask(endpoint, **wanted))["cached"]
