"""From what a client sent to a request that can be answered, every field checked before anything is computed."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from mapstack.endpoint.accept import choose_output
from mapstack.endpoint.choice import choose_method
from mapstack.endpoint.refusals import Refusal, unknown_choice
from mapstack.endpoint.settings import EndpointConfig
from mapstack.endpoint.strict_json import loads, require_plain
from mapstack.errors import MapstackError
from mapstack.methods import Method
from mapstack.prompts import PromptSet, TextGroup, text_fault, text_groups
from mapstack.routes import Route

FIELDS = (
    "image",
    "image_sha256",
    "key",
    "prompts",
    "classes",
    "against",
    "method",
    "route",
    "normalize",
    "output",
    "frame",
)
"""Every field of a request."""

OUTPUTS = ("json", "png", "npy")
ROUTES = ("auto", "direct", "prompts", "axes")
FRAMES = ("model", "original")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_KEY_LENGTH = 4096
_IMAGE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


@dataclass(frozen=True)
class Raw:
    """A request as it came in.

    Attributes:
        parts: One part "body" (or "data"), or the parts of a multipart form: "image" and "request".
        accept: The Accept header.
        wants_maps: Whether maps are asked for, or logits only.
    """

    parts: Mapping[str, Any]
    accept: str = "*/*"
    wants_maps: bool = False


@dataclass(frozen=True, eq=False)
class Request:
    """A request whose fields are all right.

    Attributes:
        image: The bytes of the picture's file; None where it is named otherwise.
        image_sha256: Of a picture that the server has seen before; None where it is given otherwise.
        key: Of a sample in the server's stack store.
        groups: What is explained.
        method_name: As the server calls it.
        method: The attribution method.
        route: As in `mapstack.Explainer.explain`.
        normalize: As in `mapstack.Explainer`.
        outputs: Of `OUTPUTS`.
        content_type: Media type of the answer.
        frame: Frame of the arrays of output npy.
        wants_maps: Whether maps are asked for.
        given: The fields that the request itself sets.
    """

    image: bytes | None
    image_sha256: str | None
    key: str | None
    groups: tuple[TextGroup, ...]
    method_name: str
    method: Method
    route: Route
    normalize: bool
    outputs: tuple[str, ...]
    content_type: str
    frame: Literal["model", "original"]
    wants_maps: bool
    given: frozenset[str]


def parse(raw: Raw, config: EndpointConfig, prompt_set: PromptSet | None) -> Request:
    """Check a request.

    Raises:
        Refusal: Something about it is wrong.
    """
    fields, image = _fields_of(raw)
    for position, name in enumerate(fields, 1):
        if name not in FIELDS:
            told = unknown_choice(f"field {position} of the request ({len(name)} characters)", name, FIELDS)
            raise Refusal("unknown_field", told)
    if image is None and fields.get("image") is not None:
        image = _decode_base64(fields["image"], config.limits.max_image_bytes)
    elif image is not None and "image" in fields:
        raise Refusal("bad_request", "the request holds two pictures; send one; drop the field or the part.")
    if image is not None:
        _check_size(len(image), config.limits.max_image_bytes)
    method_name, method = choose_method(_given(fields, "method", config.method), config)
    outputs, content_type = choose_output(raw.accept if raw.wants_maps else "*/*", _outputs(fields))
    request = Request(
        image=image,
        image_sha256=_sha256(fields),
        key=_text(fields, "key", _MAX_KEY_LENGTH),
        groups=_groups(fields, config, prompt_set),
        method_name=method_name,
        method=method,
        route=cast(Route, _choice(fields, "route", ROUTES)),
        normalize=_flag(fields, "normalize", config.normalize),
        outputs=outputs,
        content_type=content_type,
        frame=cast(Literal["model", "original"], _choice(fields, "frame", FRAMES)),
        wants_maps=raw.wants_maps,
        given=frozenset(name for name, value in fields.items() if value is not None),
    )
    _check_picture(request)
    return request


def _check_picture(request: Request) -> None:
    n_named = sum(each is not None for each in (request.image, request.image_sha256, request.key))
    if n_named == 0:
        raise Refusal(
            "missing_image",
            "the request names no picture; send image (base64 in JSON, or a part of a multipart form), the "
            "image_sha256 of an earlier answer, or the key of a stored sample.",
            field="image",
        )
    if request.image_sha256 is not None and n_named > 1:
        raise Refusal("bad_request", "image_sha256 stands for the picture; send it alone; drop image or key.")


def _fields_of(raw: Raw) -> tuple[dict[str, Any], bytes | None]:
    """Return the fields, and the picture where it came as bytes."""
    parts = dict(raw.parts)
    image: bytes | None = None
    for name in ("body", "data"):
        if len(parts) == 1 and name in parts:
            content = parts[name]
            if isinstance(content, bytes | bytearray) and bytes(content[:8]).startswith(_IMAGE_SIGNATURES):
                return {}, bytes(content)
            return _object(content), None
    if "image" in parts:
        image = _bytes(parts.pop("image"))
    # A form that was cut short comes without its last part: were either left out by right, that would go unnoticed.
    fields = None if "request" not in parts else _object(parts.pop("request"))
    if parts or fields is None:
        raise Refusal(
            "bad_request",
            "the request has no body, or its parts are not the known ones; send a JSON object, or a multipart form "
            "with the parts image (a file) and request (a JSON object, which may be empty).",
        )
    return fields, image


def _bytes(content: object) -> bytes:
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    raise Refusal("bad_request", "the part image is no file; send the bytes of a PNG or JPEG.", field="image")


def _object(content: object) -> dict[str, Any]:
    if isinstance(content, bytes | bytearray | str):
        content = loads(content)
    else:
        require_plain(content)  # the server read it, by Python's lax rules
    if not isinstance(content, dict):
        raise Refusal(
            "bad_request", f"the request is a JSON {type(content).__name__}; it must be an object; send fields in it."
        )
    return content


def _decode_base64(text: object, max_bytes: int) -> bytes:
    if not isinstance(text, str):
        raise _wrong("image", text, "base64 text")
    _check_size(len(text) // 4 * 3 - 2, max_bytes)
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            "bad_base64",
            f"image ({len(text)} characters) is no base64; it is the standard alphabet with padding, without line "
            "breaks or a prefix; encode the file again.",
            field="image",
        ) from None


def _check_size(n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise Refusal(
            "image_too_large",
            f"the picture's file has {n_bytes} bytes; at most {max_bytes} are read; compress or reduce it.",
            field="image",
        )


def _given(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    value = fields.get(name)
    return default if value is None else value


def _wrong(name: str, value: object, rule: str) -> Refusal:
    return Refusal("bad_value", f"{name} is a {type(value).__name__}; it must be {rule}; correct it.", field=name)


def _text(fields: Mapping[str, Any], name: str, max_length: int) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= max_length:
        raise _wrong(name, value, f"a text of 1 to {max_length} characters")
    return value


def _sha256(fields: Mapping[str, Any]) -> str | None:
    value = _text(fields, "image_sha256", 64)
    if value is not None and not _SHA256.fullmatch(value):
        raise _wrong("image_sha256", value, "64 hexadecimal digits in lower case")
    return value


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    value = _given(fields, name, default)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _choice(fields: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    """Return one of the choices; the first is the default."""
    value = _given(fields, name, choices[0])
    if not isinstance(value, str) or value not in choices:
        raise Refusal("bad_value", unknown_choice(name, value, choices), field=name)
    return value


def _outputs(fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the outputs that the request asks for; None where it leaves that to the Accept header."""
    value = fields.get("output")
    if value is None:
        return None
    wanted = value if isinstance(value, list) else [value]
    if (
        not wanted
        or len(wanted) > len(OUTPUTS)
        or not all(isinstance(each, str) and each in OUTPUTS for each in wanted)
    ):
        raise Refusal(
            "bad_value", f"output is wrong; it is one of {', '.join(OUTPUTS)}, or a list of them.", field="output"
        )
    return tuple(dict.fromkeys(wanted))


def _groups(fields: Mapping[str, Any], config: EndpointConfig, prompt_set: PromptSet | None) -> tuple[TextGroup, ...]:
    texts, classes = fields.get("prompts"), fields.get("classes")
    against = _against(fields, config)
    if texts is not None and classes is not None:
        raise Refusal("bad_request", "prompts and classes are both given; one says what to explain; drop one.")
    if texts is not None:
        return _made(None, _checked_prompts(texts, config), None, against, config)
    if prompt_set is None:
        raise Refusal("missing_prompts", "the request holds no prompts, and the server no classes; send prompts.")
    return _made(prompt_set, (), _checked_classes(classes, prompt_set), against, config)


def _against(fields: Mapping[str, Any], config: EndpointConfig) -> str | None:
    value = fields.get("against")
    if value is not None:
        _check_prompt(value, "against", "against", config.limits.max_prompt_length)
    return value


def _checked_prompts(texts: object, config: EndpointConfig) -> tuple[str, ...]:
    """Check texts; their number and lengths first, before anything walks them."""
    if not isinstance(texts, list):
        raise _wrong("prompts", texts, "a list of texts, at least one")
    if not texts:
        raise Refusal(
            "missing_prompts",
            "prompts is an empty list; it holds at least one text; give one, or leave the field out.",
            field="prompts",
        )
    if len(texts) > config.limits.max_prompts:
        raise Refusal(
            "too_many_prompts",
            f"the request holds {len(texts)} prompts; at most {config.limits.max_prompts} are answered; send the rest "
            "in a second request.",
            field="prompts",
        )
    for position, text in enumerate(texts, 1):
        _check_prompt(text, f"prompt {position}", "prompts", config.limits.max_prompt_length)
    return tuple(texts)


def _check_prompt(text: object, name: str, field: str, max_length: int) -> None:
    if isinstance(text, str) and len(text) > max_length:
        raise Refusal(
            "bad_prompt",
            f"{name} has {len(text)} characters; a text has at most {max_length}; shorten it.",
            field=field,
        )
    fault = text_fault(text)
    if fault is not None:
        raise Refusal("bad_prompt", f"{name} {fault}", field=field)


def _checked_classes(classes: object, prompt_set: PromptSet) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if not isinstance(classes, list) or not classes or not all(isinstance(each, str) for each in classes):
        raise _wrong("classes", classes, "a list of class labels, at least one")
    for position, label in enumerate(classes, 1):
        if label not in prompt_set.labels:
            told = unknown_choice(f"class {position}", label, prompt_set.labels)
            raise Refusal("unknown_class", told, field="classes")
    return tuple(dict.fromkeys(classes))


def _made(
    prompt_set: PromptSet | None,
    texts: tuple[str, ...],
    classes: tuple[str, ...] | None,
    against: str | None,
    config: EndpointConfig,
) -> tuple[TextGroup, ...]:
    try:
        return text_groups(
            prompt_set=prompt_set,
            texts=texts,
            use=cast(Any, config.use),
            ensemble=cast(Any, config.ensemble),
            classes=classes,
            against=against,
        )
    except MapstackError:
        # What is left after the checks above. The library's sentence may name what a request holds.
        raise Refusal(
            "bad_prompt",
            "a text is given twice, or contrasted with itself; the map would say nothing new; drop or change it.",
            field="prompts",
        ) from None
