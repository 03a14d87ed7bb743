"""Bad requests by the thousand: valid ones, broken in one place or several, and plain noise."""

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mapstack.endpoint import FIELDS
from tests.serve.asked import PROMPTS


@dataclass(frozen=True)
class Bad:
    """A request that must be refused, as bytes."""

    body: bytes
    content_type: str = "application/json"
    query: str = ""


_WRONG_VALUES: list[Any] = [
    None, True, 0, -1, 3.5, 1e308, 10**30, "", " ", "x", "\ud800", "\x00", "a" * 3000, [], [[]], {}, {"name": []},
    {"name": "captum", "attribution": "os.system"}, ["\udfff"], [1], [None], "../../etc/passwd", "file:///etc/passwd",
    "http://127.0.0.1:1/x.png", "data:image/png;base64,AAAA", [{"a": 1}], {"a": {"b": []}}, ["x"] * 65,
    {"name": "integrated_gradients", "n_steps": -1}, {"name": "integrated_gradients", "n_steps": True},
    {"name": "gradient_shap", "reference_pictures": ["/etc/passwd"]}, {"name": "occlusion", "strides": 0},
    {"name": "occlusion", "strides": 1}, {"name": "gradient", "rows_per_pass": 10**9},
]  # fmt: skip
_RAW_VALUES = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"1" * 5000,
    b'"\xff\xfe"',
    b"'x'",
    b"{",
    b"[" * 3000,
    b"nul",
]


def bad_requests(seed: int, image: bytes) -> Iterator[Bad]:
    """Yield bad requests without end; the same seed gives the same ones."""
    chance = random.Random(seed)
    makers: list[Callable[[random.Random, bytes], Bad]] = [
        _wrong_field, _wrong_field, _raw_field, _unknown_field, _missing, _damaged_image, _no_json, _form, _noise,
        _query, _instances,
    ]  # fmt: skip
    while True:
        yield chance.choice(makers)(chance, image)


def _good(image: bytes) -> dict[str, Any]:
    return {"image": base64.b64encode(image).decode("ascii"), "prompts": PROMPTS[:1], "method": "gradient"}


def _wrong_field(chance: random.Random, image: bytes) -> Bad:
    fields = _good(image)
    for _ in range(chance.choice([1, 1, 2])):
        name = chance.choice(FIELDS)
        fields[name] = chance.choice([value for value in _WRONG_VALUES if not _is_right(name, value)])
    return Bad(json.dumps(fields).encode())


def _is_right(name: str, value: Any) -> bool:
    """Say whether a value is one that the field may have: None is as good as leaving it out."""
    right = {
        "prompts": [["\x00"]],
        "against": [
            "x",
            "../../etc/passwd",
            "file:///etc/passwd",
            "http://127.0.0.1:1/x.png",
            "data:image/png;base64,AAAA",
        ],
        "normalize": [True],
    }
    return value is None or value in right.get(name, [])


def _raw_field(chance: random.Random, image: bytes) -> Bad:
    text = json.dumps({**_good(image), "seed": "HERE"}).encode()
    return Bad(
        text.replace(b'"HERE"', chance.choice(_RAW_VALUES)).replace(b'"seed"', chance.choice([b'"seed"', b'"prompts"']))
    )


def _unknown_field(chance: random.Random, image: bytes) -> Bad:
    name = "".join(chance.choice("abcABC._-/\\\u00e9\u4e2d\n ") for _ in range(chance.randint(0, 30)))
    return Bad(json.dumps({**_good(image), "?" + name: chance.choice(_WRONG_VALUES)}).encode())


def _missing(chance: random.Random, image: bytes) -> Bad:
    fields = _good(image)
    del fields["image"]
    if chance.random() < 0.5:
        fields |= chance.choice([{"image_sha256": "0" * 64}, {"key": "nobody"}, {"image_sha256": "../x"}])
    return Bad(json.dumps(fields).encode())


def _damaged_image(chance: random.Random, image: bytes) -> Bad:
    data = bytearray(image)
    kind = chance.randrange(4)
    if kind == 0:
        data = data[: chance.randrange(len(data) - 1)]
    elif kind == 1:
        at = chance.randrange(8, len(data))
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data = bytearray(chance.choice([b"GIF89a", b"%!PS-Adobe", b"<html>", b"II*\x00", b""]) + chance.randbytes(50))
    else:
        data = bytearray(image[:8] + chance.randbytes(chance.randrange(200)))
    text = base64.b64encode(bytes(data)).decode("ascii")
    if chance.random() < 0.2:
        text = chance.choice([text + "=", "!" + text, text.replace("A", "\n", 1), "\u00e9" + text])
    return Bad(json.dumps({**_good(image), "image": text}).encode())


def _no_json(chance: random.Random, image: bytes) -> Bad:
    text = json.dumps(_good(image)).encode()
    whole = [b"", b"[]", b"null", b"1", b'"x"', b"{}", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\x00", b"{]}"]
    cut = text[: chance.randrange(len(text) - 1)]
    doubled = text[:-1] + b', "method": "gradient"}'
    return Bad(chance.choice([*whole, cut, doubled, text + b"}", b"\xef\xbb\xbf" + text]))


def _form(chance: random.Random, image: bytes) -> Bad:
    boundary = "b" * chance.randint(1, 8)
    parts = chance.choice(
        [
            [("image", b"x")],
            [("image", image[:-9]), ("request", b"{}")],
            [("request", b'{"prompts": 3}'), ("image", image)],
            [("image", image), ("request", b'{"image": "AAAA"}')],
            [("image", image), ("prompts", b"x")],
            [("explain", b"True"), ("accept", b"x")],
            [("image", image), ("request", b"\xff")],
            [("body", b"{}"), ("data", b"{}")],
        ]
    )
    body = b"".join(
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="../{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in parts
    )
    end = (
        chance.choice([f"--{boundary}--\r\n".encode(), b""])
        if chance.random() < 0.3
        else f"--{boundary}--\r\n".encode()
    )
    return Bad(body + end, f"multipart/form-data; boundary={boundary}")


def _noise(chance: random.Random, image: bytes) -> Bad:
    kinds = ["application/json", "text/plain", "image/png", "application/octet-stream", "x", "multipart/form-data"]
    return Bad(chance.randbytes(chance.randrange(1, 300)), chance.choice(kinds))


def _instances(chance: random.Random, image: bytes) -> Bad:
    """KServe's form: a wrong list, or a wrong instance beside a good one."""
    wrong: list[Any] = [[], {}, None, 1, "x", [None], [[]], [{}] * 5, [[_good(image)]], {"0": _good(image)}]
    bad = json.loads(_wrong_field(chance, image).body)
    value = chance.choice([*wrong, [bad], [_good(image), bad], [{"instances": [_good(image)]}]])
    beside: dict[str, Any] = {} if value in wrong else chance.choice([{}, {}, {"parameters": {}}])
    return Bad(json.dumps({"instances": value, **beside}).encode())


def _query(chance: random.Random, image: bytes) -> Bad:
    """A query changes nothing: TorchServe takes no part of a request from it where there is a body."""
    name = chance.choice(["prompts", "customized", "x", "explain", "image", "request"])
    value = chance.choice(["1", "%00", "%ff", "a%0ab", "True"])
    return Bad(json.dumps({**_good(image), "route": "fast"}).encode(), query=f"?{name}={value}")
