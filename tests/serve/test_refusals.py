"""Every bad request is refused with a code and a sentence, before anything is computed, and is not quoted."""

import base64
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mapstack.endpoint import STATUS, Answer, Endpoint, Raw
from mapstack.endpoint.choice import require_affordable
from mapstack.endpoint.refusals import Refusal
from mapstack.errors import ConfigError
from mapstack.methods import CaptumMethod
from tests.picture_files import png_chunk
from tests.serve.asked import PROMPTS, ask, body, code, content, raw
from tests.serve.bad_requests import bad_requests
from tests.test_formats import of_many_scans

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("too_many_prompts", {"prompts": [f"text {i}" for i in range(65)]}),
    ("bad_prompt", {"prompts": ["x" * 2001]}),
    ("bad_prompt", {"prompts": ["\ud83d"]}),
    ("bad_prompt", {"prompts": ["  "]}),
    ("bad_prompt", {"prompts": [3]}),
    ("bad_prompt", {"prompts": ["same", "same"]}),
    ("bad_prompt", {"prompts": ["same"], "against": "same"}),
    ("bad_prompt", {"prompts": ["fine"], "against": "\udfff"}),
    ("missing_prompts", {"prompts": []}),
    ("bad_value", {"prompts": "one text"}),
    ("bad_request", {"prompts": ["x"], "classes": ["Cardiomegaly"]}),
    ("unknown_class", {"classes": ["Cardiomegali"]}),
    ("bad_value", {"classes": [1]}),
    ("unknown_field", {"promts": ["x"]}),
    ("unknown_method", {"method": "gradiant"}),
    ("unknown_method", {"method": {"name": "captum", "attribution": "os.system"}}),
    ("unknown_field", {"method": {"name": "gradient_shap", "reference_pictures": ["/etc/passwd"]}}),
    ("unknown_field", {"method": {"name": "gradient", "rows_per_pass": 512}}),
    ("bad_value", {"method": {"name": "integrated_gradients", "n_steps": 0}}),
    ("bad_value", {"method": {"name": "integrated_gradients", "n_steps": True}}),
    ("bad_value", {"method": {"name": "integrated_gradients", "baseline": "/etc/passwd"}}),
    ("too_costly", {"method": {"name": "integrated_gradients", "n_steps": 1000}, "route": "axes"}),
    ("too_costly", {"method": {"name": "occlusion", "strides": 1}}),
    ("bad_request", {"method": {"name": "occlusion", "sliding_window_shapes": 1024}}),
    ("bad_route", {"method": "saliency", "route": "direct"}),
    ("bad_value", {"route": "fast"}),
    ("bad_value", {"normalize": "yes"}),
    ("bad_value", {"output": []}),
    ("bad_value", {"output": ["png", 1]}),
    ("bad_value", {"frame": 1}),
    ("bad_request", {"image_sha256": "0" * 64}),
    ("unknown_key", {"key": "somebody"}),
    ("bad_value", {"key": ""}),
]


@pytest.mark.fault("S6")
@pytest.mark.parametrize(("expected", "fields"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_fields_are_refused(endpoint: Endpoint, image: bytes, expected: str, fields: dict[str, Any]) -> None:
    answer = ask(endpoint, image, **{"prompts": PROMPTS, "method": "gradient", **without_prompts(fields)})
    assert code(answer) == expected
    assert_quotes_nothing(answer, fields)


def without_prompts(fields: dict[str, Any]) -> dict[str, Any]:
    return {"prompts": None, **fields} if "classes" in fields and "prompts" not in fields else fields


def assert_quotes_nothing(answer: Answer, value: Any) -> None:
    """No text of the request may come back, except the words of our own that it used."""
    ours = ("x", "same", "fine", "fast", "yes", "png", "Cardiomegaly", "gradient", "occlusion", "saliency", "axes")
    ours += ("direct", "integrated_gradients", "gradient_shap", "captum", "one text")
    for text in texts_in(value):
        assert text in ours or text not in answer.body.decode("ascii"), text


def texts_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts_in(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts_in(each)]
    return [value] if isinstance(value, str) and value.strip() else []


CAPTUM: list[tuple[str, dict[str, Any], int]] = [
    ("captum.attr.Saliency", {}, 1),
    ("captum.attr.IntegratedGradients", {}, 50),
    ("captum.attr.IntegratedGradients", {"n_steps": 400}, 400),
    ("captum.attr.GradientShap", {"n_samples": 30}, 30),
    ("captum.attr.NoiseTunnel", {"nt_samples": 8, "n_steps": 20}, 160),
]


@pytest.mark.parametrize(("attribution", "kwargs", "n_points"), CAPTUM, ids=lambda value: str(value)[:40])
def test_a_captum_method_counts_what_it_is_configured_with(
    attribution: str, kwargs: dict[str, Any], n_points: int
) -> None:
    method = CaptumMethod(attribution=attribution, kwargs=kwargs, linear=True)
    require_affordable(method, 3, image_size=224, max_passes=3 * n_points)
    with pytest.raises(Refusal, match=f"{3 * n_points} gradients"):
        require_affordable(method, 3, image_size=224, max_passes=3 * n_points - 1)


@pytest.mark.fault("S6")
def test_too_many_or_too_long_prompts_never_reach_the_tokenizer(endpoint: Endpoint, image: bytes) -> None:
    seen: list[list[str]] = []
    tower = endpoint._model.text._tower  # type: ignore[attr-defined]
    tower._embed_padded = lambda texts: seen.append(texts)
    for prompts in ([f"text {i}" for i in range(65)], ["x" * 2001], ["fine", "x" * 2001]):
        assert code(ask(endpoint, image, prompts=prompts)) in ("too_many_prompts", "bad_prompt")
    assert seen == []


@pytest.mark.fault("S7")
@pytest.mark.parametrize(
    ("expected", "body"),
    [
        ("bad_json", b"{"),
        ("bad_json", b'{"prompts": [NaN]}'),
        ("bad_json", b'{"seed": 1e999}'),
        ("bad_json", b"[" * 200_000),
        ("bad_json", b'{"a": ' * 100_000),
        ("bad_json", b'{"method": "gradient", "method": "occlusion"}'),
        ("bad_json", b"1" * 5000),
        ("bad_json", b""),
        ("bad_request", b"[]"),
        ("bad_request", b"null"),
        ("bad_request", b'"text"'),
        ("bad_encoding", b'{"prompts": ["\xe9"]}'),
        ("bad_encoding", b"\xff\xfe{}"),
        ("missing_image", b"{}"),
        ("missing_image", b'{"image": null}'),
    ],
)
def test_what_is_no_json_is_refused(endpoint: Endpoint, expected: str, body: bytes) -> None:
    for wants_maps in (True, False):
        (answer,) = endpoint.answer([Raw({"body": body}, wants_maps=wants_maps)])
        assert code(answer) == expected


@pytest.mark.fault("S7")
def test_lax_json_that_the_server_already_read_is_refused(endpoint: Endpoint) -> None:
    (answer,) = endpoint.answer([Raw({"body": {"prompts": [float("nan")]}})])
    assert code(answer) == "bad_json"


@pytest.mark.fault("S7")
def test_generated_requests_are_refused(
    endpoint: Endpoint, image: bytes, campaign: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    n, by_code = campaign(400, 10_000), dict.fromkeys(STATUS, 0)
    for bad in islice(bad_requests(0, image), n):
        if bad.content_type.startswith("multipart"):
            continue  # taken apart by the server: see test_server.py
        (answer,) = endpoint.answer([Raw({"body": bad.body}, wants_maps=True)])
        assert 400 <= answer.status < 500, (bad, answer)
        by_code[code(answer)] += 1
    assert by_code["internal_error"] == 0
    figure(f"{sum(by_code.values())} requests in process: {sum(map(bool, by_code.values()))} codes, 0 answers 5xx")


@pytest.mark.fault("S8")
def test_the_size_of_a_picture_is_known_before_it_is_decoded(
    make_endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = make_endpoint(limits={"max_image_bytes": 1000})
    decoded: list[int] = []
    monkeypatch.setattr(base64, "b64decode", lambda text, **_: decoded.append(len(text)) or b"")
    (answer,) = endpoint.answer([Raw({"body": json.dumps({"image": "A" * 2000}).encode()})])
    assert code(answer) == "image_too_large"
    assert decoded == []
    (answer,) = endpoint.answer([Raw({"image": b"\x89PNG\r\n\x1a\n" + bytes(1000), "request": b"{}"})])
    assert code(answer) == "image_too_large"


@pytest.mark.fault("S8")
def test_a_bomb_of_pixels_is_refused_by_its_header(endpoint: Endpoint) -> None:
    import struct

    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    assert code(ask(endpoint, bomb, prompts=PROMPTS)) == "bad_image"


def test_overlays_that_would_take_minutes_are_refused_beforehand(
    make_endpoint: Callable[..., Endpoint], image: bytes
) -> None:
    """A flat picture makes tiny files: their size alone bounds no work. Two overlays of 200 x 160 px have 64,000."""
    endpoint = make_endpoint(limits={"max_answer_bytes": 15_000})
    runs: list[object] = []
    endpoint._model.vision_model.register_forward_pre_hook(lambda *seen: runs.append(seen))  # type: ignore[attr-defined]
    refused = ask(endpoint, image, method="gradient", prompts=PROMPTS, output="png")
    assert code(refused) == "answer_too_large"
    assert "64000" in refused.body.decode()
    assert runs == []


@pytest.mark.fault("S4")
def test_an_answer_that_would_be_too_large_is_refused_beforehand(
    make_endpoint: Callable[..., Endpoint], image: bytes
) -> None:
    endpoint = make_endpoint(limits={"max_answer_bytes": 300_000})
    runs: list[object] = []
    endpoint._model.vision_model.register_forward_pre_hook(lambda *seen: runs.append(seen))  # type: ignore[attr-defined]
    wanted = {"method": "gradient", "prompts": PROMPTS}
    assert code(ask(endpoint, image, **wanted, output="npy")) == "answer_too_large"
    assert runs == []
    content(ask(endpoint, image, **wanted))
    content(ask(endpoint, image, **{**wanted, "prompts": PROMPTS[:1]}, output="npy"))
    small = make_endpoint(limits={"max_answer_bytes": 50_000})
    refused = ask(small, image, **wanted, output="png")
    assert code(refused) == "answer_too_large"
    assert "fewer texts" in refused.body.decode()


@pytest.mark.fault("S16")
def test_no_field_is_opened_as_a_path_or_an_address(
    make_endpoint: Callable[..., Endpoint], store: Path, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins
    import io
    import os
    import socket

    endpoint = make_endpoint(store=str(store))
    content(ask(endpoint, key="first", prompts=PROMPTS))
    content(ask(endpoint, image, prompts=PROMPTS, method="gradient"))  # what is loaded on first use is loaded now
    opened: list[str] = []
    real = io.open

    def watch(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(file))
        return real(file, *args, **kwargs)

    def watch_low(file: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(str(file))
        return real_low(file, *args, **kwargs)

    real_low = os.open
    monkeypatch.setattr(builtins, "open", watch)
    monkeypatch.setattr(io, "open", watch)
    monkeypatch.setattr(os, "open", watch_low)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    places = ["/etc/hostname", "../../etc/hostname", "file:///etc/hostname", "http://127.0.0.1:9/x.png"]
    for place in places:
        for fields in (
            {"image": place},
            {"prompts": [place]},
            {"prompts": ["x"], "against": place},
            {"method": place},
            {"method": {"name": "gradient_shap", "reference_pictures": [place]}},
            {"method": {"name": "integrated_gradients", "baseline": place}},
            {"key": place},
            {"image_sha256": place},
            {"output": place},
        ):
            named = {} if {"key", "image_sha256"} & set(fields) else body(image)
            text = json.dumps({**named, "method": "gradient", **fields})
            (answer,) = endpoint.answer([Raw({"body": text.encode()}, wants_maps=True)])
            if "key" in fields:
                assert "no sample of that key" in answer.body.decode()  # it was looked up
    assert [path for path in opened if "hostname" in path or "x.png" in path] == []


def test_a_size_of_maps_that_does_not_fit_the_model_fails_the_start(make_endpoint: Callable[..., Endpoint]) -> None:
    with pytest.raises(ConfigError, match=r"endpoint\.map_size is 100"):
        make_endpoint(map_size=100)


def test_a_reference_picture_that_is_missing_fails_the_start(
    make_endpoint: Callable[..., Endpoint], tmp_path: Path, image: bytes
) -> None:
    block = {"name": "gradient_shap", "reference_pictures": [str(tmp_path / "normal.png")]}
    with pytest.raises(ConfigError, match=r"reference picture of endpoint\.methods\.shap .*cannot be opened"):
        make_endpoint(methods={"shap": block}, method="shap")
    (tmp_path / "normal.png").write_bytes(image)
    make_endpoint(methods={"shap": block}, method="shap")


def test_a_jpeg_of_countless_scans_is_refused_before_it_is_decoded(endpoint: Endpoint) -> None:
    """A few bytes make a scan, and each costs a pass over all pixels."""
    for n_scans, status in ((100, 200), (101, 422)):
        picture = of_many_scans(n_scans)
        as_body = Raw({"body": bytearray(picture)})
        as_form = Raw({"image": bytearray(picture), "request": b"{}"})
        for answer in endpoint.answer([as_body, as_form, raw(picture, prompts=PROMPTS, wants_maps=False)]):
            assert answer.status == status
            assert (b"more than 100 scans" in answer.body) == (status == 422)
    behind_comments = raw(of_many_scans(1000, b"\xff\xfe\x00\x02" * 60), prompts=PROMPTS, wants_maps=False)
    assert code(endpoint.answer([behind_comments])[0]) == "bad_image"  # more segments than are looked at


def test_every_refusal_is_strict_json_with_a_code(endpoint: Endpoint, image: bytes) -> None:
    (answer,) = endpoint.answer([raw(image[:50], prompts=PROMPTS)])
    assert json.loads(answer.body) == {"error": {"code": "bad_image", "field": "image", "message": str_of(answer)}}
    assert answer.status == STATUS["bad_image"]
    assert answer.content_type == "application/json"


def str_of(answer: Answer) -> str:
    text: str = json.loads(answer.body)["error"]["message"]
    assert "PNG" in text
    return text


def test_a_failure_of_ours_is_a_5xx_that_quotes_nothing(endpoint: Endpoint, image: bytes) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"secret CUDA\n[METRICS] {PROMPTS[0]}")

    endpoint._model.vision_model.register_forward_pre_hook(fail)  # type: ignore[attr-defined]
    for wants_maps in (True, False):
        answer = ask(endpoint, image, prompts=PROMPTS, wants_maps=wants_maps)
        assert (answer.status, answer.code) == (500, "internal_error")
        assert b"secret" not in answer.body
