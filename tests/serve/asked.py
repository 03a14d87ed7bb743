"""Requests as clients send them."""

import base64
import json
from typing import Any

from PIL import Image

from mapstack.endpoint import Answer, Endpoint, Raw
from mapstack.phantom import phantom
from tests.picture_files import encode

PROMPTS = ["Small right pleural effusion blunting the costophrenic angle.", "There is no pneumothorax."]


def picture_file(seed: int = 7, height: int = 200, width: int = 160) -> bytes:
    """A phantom, cut to a portrait: its padding shows whether the geometry is right."""
    pixels = phantom(seed=seed, labels=["Pleural Effusion"], size=224).pixels
    return encode(Image.fromarray(pixels[:height, :width]))


def body(image: bytes | None = None, **fields: Any) -> dict[str, Any]:
    named = {} if image is None else {"image": base64.b64encode(image).decode("ascii")}
    return {**named, **fields}


def raw(image: bytes | None = None, *, accept: str = "*/*", wants_maps: bool = True, **fields: Any) -> Raw:
    return Raw({"body": json.dumps(body(image, **fields)).encode()}, accept, wants_maps)


def ask(endpoint: Endpoint, image: bytes | None = None, **fields: Any) -> Answer:
    (answer,) = endpoint.answer([raw(image, **fields)])
    return answer


def content(answer: Answer, status: int = 200) -> dict[str, Any]:
    assert answer.status == status, answer.body
    found: dict[str, Any] = json.loads(answer.body, parse_constant=lambda name: fail(name))
    return found


def fail(name: str) -> None:
    raise AssertionError(f"the answer holds {name}")


def code(answer: Answer) -> str:
    assert 400 <= answer.status < 500, answer.body
    found: str = json.loads(answer.body)["error"]["code"]
    assert found == answer.code
    return found
