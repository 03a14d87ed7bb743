"""Calls in KServe's form (V1 protocol)."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from mapstack.endpoint import Answer, Endpoint, Raw
from tests.serve.asked import PROMPTS, ask, body, code, content, picture_file
from tests.serve.running import Running
from tests.serve.test_server import send


def call(
    endpoint: Endpoint, instances: object, beside: dict[str, object] | None = None, *, wants_maps: bool = True
) -> Answer:
    request = json.dumps({"instances": instances, **(beside or {})}).encode()
    (answer,) = endpoint.answer([Raw({"body": request}, wants_maps=wants_maps)])
    return answer


def wrapped(image: bytes, **fields: Any) -> dict[str, Any]:
    return {"image": {"b64": base64.b64encode(image).decode("ascii")}, **fields}


@pytest.mark.parametrize("wants_maps", [True, False])
def test_instances_are_answered_as_requests_are(endpoint: Endpoint, image: bytes, wants_maps: bool) -> None:
    other, fields = picture_file(seed=3), {"prompts": PROMPTS, "method": "gradient"}
    alone = [content(ask(endpoint, each, wants_maps=wants_maps, **fields)) for each in (image, other)]
    together = content(call(endpoint, [wrapped(image, **fields), body(other, **fields)], wants_maps=wants_maps))
    (name,) = together
    assert name == ("explanations" if wants_maps else "predictions")
    assert [each["image"] for each in together[name]] == [each["image"] for each in alone]
    rows = "maps" if wants_maps else "predictions"
    for found, expected in zip(together[name], alone, strict=True):
        assert [row["logit"] for row in found[rows]] == pytest.approx([row["logit"] for row in expected[rows]])


def test_what_is_refused_of_one_instance_is_refused_of_all(endpoint: Endpoint, image: bytes) -> None:
    good = body(image, prompts=PROMPTS, method="gradient")
    answer = call(endpoint, [good, {**good, "method": "fast"}])
    assert code(answer) == "unknown_method"
    told = json.loads(answer.body)["error"]
    assert told["message"].startswith("instance 2: method is unknown")
    assert told["field"] == "method"


@pytest.mark.parametrize(
    ("instances", "beside", "expected"),
    [
        ([], {}, "bad_value"),
        ({}, {}, "bad_value"),
        ([1], {}, "bad_value"),
        ([{}] * 5, {}, "too_many_instances"),
        ([{}], {}, "missing_image"),
        ([{}], {"parameters": {}}, "unknown_field"),
        ([{"instances": []}], {}, "unknown_field"),
        ([{"image": {"b64": 1}}], {}, "bad_value"),
        ([{"image": {"b64": "AAAA", "x": 1}}], {}, "bad_value"),
    ],
)
def test_wrong_instances_are_refused(
    endpoint: Endpoint, instances: object, beside: dict[str, object], expected: str
) -> None:
    assert code(call(endpoint, instances, beside)) == expected


def test_instances_share_what_an_answer_may_hold(make_endpoint: Callable[..., Endpoint], image: bytes) -> None:
    """Two arrays of 224 px in base64 take 536 kB: alone each fits, together they do not."""
    endpoint = make_endpoint(limits={"max_answer_bytes": 500_000})
    wanted = body(image, prompts=PROMPTS[:1], method="gradient", output="npy")
    assert len(content(call(endpoint, [wanted]))["explanations"]) == 1
    assert code(call(endpoint, [wanted, wanted])) == "answer_too_large"


def test_instances_share_what_a_call_may_cost(make_endpoint: Callable[..., Endpoint], image: bytes) -> None:
    """Two texts at 10 points are 20 passes: alone they fit into 30, two instances of them do not."""
    endpoint = make_endpoint(limits={"max_passes": 30})
    method = {"name": "integrated_gradients", "n_steps": 10}
    wanted = body(image, prompts=PROMPTS, method=method)
    assert code(call(endpoint, [wanted, wanted])) == "too_costly"
    assert len(content(call(endpoint, [wanted]))["explanations"]) == 1
    assert len(content(call(endpoint, [wanted, wanted]))["explanations"]) == 2  # from the cache, which costs nothing


def test_torchserve_takes_kserves_paths(server: Running, image: bytes) -> None:
    request = json.dumps({"instances": [wrapped(image, prompts=PROMPTS, method="gradient")]}).encode()
    for verb, name in (("explain", "explanations"), ("predict", "predictions")):
        status, answer = send(server, request, "application/json", path=f"/v1/models/medclip:{verb}")
        assert (status, list(json.loads(answer))) == (200, [name])
