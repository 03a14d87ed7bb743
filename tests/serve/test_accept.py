"""The Accept header: what it names is the output, what it leaves out is not sent."""

import base64
import io
import json

import numpy as np
import pytest

from mapstack.endpoint import Endpoint
from mapstack.endpoint.accept import JSON_TYPE, NPY_TYPE, PNG_TYPE, choose_output
from mapstack.endpoint.refusals import Refusal
from tests.serve.asked import PROMPTS, ask, code, content
from tests.serve.test_endpoint import count_runs, maps_of

PNG, NPY, JSON = ("png",), ("npy",), ("json",)


@pytest.mark.parametrize(
    ("accept", "asked", "outputs", "kind"),
    [
        ("*/*", None, JSON, JSON_TYPE),
        ("", None, JSON, JSON_TYPE),
        ("text/html", None, JSON, JSON_TYPE),
        ("application/*", None, JSON, JSON_TYPE),
        ("image/png", None, PNG, PNG_TYPE),
        ("IMAGE/PNG", None, PNG, PNG_TYPE),
        ("application/x-npy", None, NPY, NPY_TYPE),
        ("image/png, */*;q=0.1", None, PNG, PNG_TYPE),
        ("image/png;q=0.5, application/json", None, JSON, JSON_TYPE),
        ("image/png;q=0.5, application/x-npy;q=0.6", None, NPY, NPY_TYPE),
        ("application/json, image/png", None, JSON, JSON_TYPE),
        ("image/png, application/json", None, PNG, PNG_TYPE),
        ("application/json;q=0.5, image/png", None, PNG, PNG_TYPE),
        ("image/png;q=0, image/png", None, JSON, JSON_TYPE),
        ("image/png;q=0", None, JSON, JSON_TYPE),
        ("image/png;q=0, */*", PNG, PNG, JSON_TYPE),
        ("image/png;q=0.000", PNG, PNG, JSON_TYPE),
        ("image/png;q=x", PNG, PNG, JSON_TYPE),
        ("image/png;q=nan", PNG, PNG, JSON_TYPE),
        ("*/*", PNG, PNG, JSON_TYPE),
        ("image/png", ("png", "npy"), ("png", "npy"), PNG_TYPE),
        ("application/json", PNG, PNG, JSON_TYPE),
        ("image/png, */*;q=0.1", NPY, NPY, JSON_TYPE),
    ],
)
def test_what_is_named_is_chosen(
    accept: str, asked: tuple[str, ...] | None, outputs: tuple[str, ...], kind: str
) -> None:
    assert choose_output(accept, asked) == (outputs, kind)


@pytest.mark.parametrize(
    ("accept", "asked"),
    [("image/png", JSON), ("image/png", NPY), ("application/json;q=0", None), ("application/json;q=0, */*", PNG)],
)
def test_what_is_left_out_is_not_sent(accept: str, asked: tuple[str, ...] | None) -> None:
    with pytest.raises(Refusal) as caught:
        choose_output(accept, asked)
    assert caught.value.status == 406


def test_a_picture_that_is_asked_for_by_accept_alone_comes_as_one(endpoint: Endpoint, image: bytes) -> None:
    wanted = {"prompts": PROMPTS[:1], "method": "gradient"}
    bare = ask(endpoint, image, **wanted, accept="image/png")
    assert (bare.status, bare.content_type) == (200, "image/png")
    left_out = content(ask(endpoint, image, **wanted, output="png", accept="image/png;q=0, application/json"))
    assert base64.b64decode(left_out["maps"][0]["png"]) == bare.body
    assert code(ask(endpoint, image, **wanted, output="json", accept="image/png")) == "not_acceptable"
    for accept in ("image/png", "application/json;q=0"):  # logits have one form
        assert content(ask(endpoint, image, **wanted, wants_maps=False, output="json", accept=accept))["predictions"]


def test_bare_arrays_tell_of_every_map(endpoint: Endpoint, image: bytes) -> None:
    inside = content(ask(endpoint, image, prompts=PROMPTS, method="gradient", output="npy"))
    bare = ask(endpoint, image, prompts=PROMPTS, method="gradient", accept="application/x-npy")
    assert bare.content_type == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(bare.body)), maps_of(inside))
    summary = json.loads(bare.headers["x-mapstack-summary"])
    assert [row["logit"] for row in summary["maps"]] == [row["logit"] for row in inside["maps"]]
    assert {row["name"] for row in summary["maps"]} == {None}


@pytest.mark.parametrize(("accept", "most"), [("image/png", 1), ("application/x-npy", 8)])
def test_a_bare_answer_of_too_many_maps_is_refused_beforehand(
    endpoint: Endpoint, image: bytes, accept: str, most: int
) -> None:
    runs = count_runs(endpoint)
    texts = [f"text number {i}" for i in range(most + 1)]
    assert code(ask(endpoint, image, prompts=texts, method="gradient", accept=accept)) == "not_acceptable"
    assert runs == []
    answer = ask(endpoint, image, prompts=texts[:most], method="gradient", accept=accept)
    assert (answer.status, answer.content_type) == (200, accept)
    # Proxies read headers into 4 kB unless they are told otherwise.
    assert sum(len(name) + len(value) + 4 for name, value in answer.headers.items()) < 3900
