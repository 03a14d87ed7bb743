"""Texts of which the model reads the beginning only: every answer names them, however it was made."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mapstack.basis import Basis
from mapstack.endpoint import Endpoint, EndpointConfig
from mapstack.endpoint.texts import RememberingText
from mapstack.explainer import Explainer
from mapstack.methods import make_method
from mapstack.models import EmbeddingModel, load_model
from mapstack.prompts import PromptClass, PromptSet, text_groups
from tests.serve.asked import ask, content
from tests.serve.running import Running
from tests.serve.stores import write_store
from tests.serve.test_endpoint import count_runs, maps_of
from tests.serve.test_serving_docs import SCHEMAS, assert_described
from tests.toys import SeededText

N_READ = 75  # of 77, without the two marks around a text
WHOLE, LONG = " ".join(["lung"] * N_READ), " ".join(["lung"] * N_READ + ["heart"])
TEXTS = ["heart", LONG, WHOLE]
CUT = [False, True, False]


def cut(answer: dict[str, Any]) -> list[bool]:
    rows = answer.get("maps") or answer["predictions"]
    return [row["truncated"] for row in rows]


@pytest.mark.parametrize("route", ["auto", "direct", "prompts", "axes"])
def test_maps_tell_it_computed_and_from_the_cache(endpoint: Endpoint, image: bytes, route: str) -> None:
    wanted = {"prompts": TEXTS, "method": "gradient", "output": "npy"}
    first = content(ask(endpoint, image, **wanted, route=route))
    assert (first["cached"], cut(first)) == (False, CUT)
    assert_described(first, SCHEMAS["Explanations"])
    maps = maps_of(first)
    assert abs(maps[1] - maps[2]).max() <= 1e-5 * abs(maps[2]).max()  # its end changed nothing
    if route == "direct":
        return
    runs = count_runs(endpoint)
    again = content(ask(endpoint, image, **{**wanted, "prompts": TEXTS[::-1]}))
    assert (again["cached"], runs, cut(again)) == (True, [], CUT[::-1])


def test_logits_tell_it(endpoint: Endpoint, image: bytes) -> None:
    for _ in range(2):  # the second time the texts are remembered
        answer = content(ask(endpoint, image, prompts=TEXTS, wants_maps=False))
        assert cut(answer) == CUT
        assert_described(answer, SCHEMAS["Predictions"])


def test_a_text_that_others_are_contrasted_with_counts(endpoint: Endpoint, image: bytes) -> None:
    for wants_maps in (True, False):
        wanted = {"prompts": ["heart", "nodule"], "method": "gradient", "wants_maps": wants_maps}
        assert cut(content(ask(endpoint, image, **wanted, against=LONG))) == [True, True]
        assert cut(content(ask(endpoint, image, **wanted, against=WHOLE))) == [False, False]


@pytest.mark.parametrize("ensemble", ["mean", "max"])
def test_a_class_with_such_a_prompt_counts(small_checkpoint: Path, image: bytes, ensemble: str) -> None:
    classes = PromptSet((PromptClass("A", ("heart", LONG)), PromptClass("B", ("heart", WHOLE))))
    endpoint = Endpoint(load_model("medclip-vit", small_checkpoint), EndpointConfig(ensemble=ensemble), classes)
    for wants_maps in (True, False):
        answer = content(ask(endpoint, image, method="gradient", wants_maps=wants_maps))
        assert cut(answer) == [True, False]


def test_a_stored_sample_tells_it(
    make_endpoint: Callable[..., Endpoint], small_model: EmbeddingModel, image: bytes, tmp_path: Path
) -> None:
    explainer = Explainer(small_model, make_method("gradient"))
    groups = text_groups(prompt_set=None, texts=TEXTS, use="prompts", ensemble="mean", classes=None, against=None)
    write_store(tmp_path / "store", explainer, Basis.of(explainer.readout(groups).span), {"first": image})
    endpoint = make_endpoint(store=str(tmp_path / "store"))
    for wants_maps in (True, False):
        assert cut(content(ask(endpoint, key="first", prompts=TEXTS, wants_maps=wants_maps))) == CUT


def test_a_text_is_counted_once() -> None:
    class Short(SeededText):
        def is_truncated(self, texts: Sequence[str]) -> list[bool]:
            counted.extend(texts)
            return [len(text) > 3 for text in texts]

    counted: list[str] = []
    remembering = RememberingText(Short(4))
    assert remembering.is_truncated(["a", "long", "a"]) == [False, True, False]
    assert remembering.is_truncated(["long", "b"]) == [True, False]
    assert counted == ["a", "long", "b"]


def test_the_server_tells_it_in_every_form(server: Running, image: bytes) -> None:
    texts = ["heart", " ".join(["lung"] * 200)]
    client, wanted = server.client(), {"prompts": texts, "method": "gradient"}
    assert cut(client.predict(image, prompts=texts)) == [False, True]
    for _ in range(2):  # the second time from the cache
        assert cut(client.explain(image, **wanted)) == [False, True]
    reply = client.call("explanations", image, wanted, accept="application/x-npy")
    rows = json.loads(reply.headers["x-mapstack-summary"])["maps"]
    assert [(row["name"], row["truncated"]) for row in rows] == [(None, False), (None, True)]
