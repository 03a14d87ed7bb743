"""From maps to the body of an answer: a JSON summary, overlays on the original picture, arrays."""

import base64
import io
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mapstack.endpoint.accept import JSON_TYPE, NPY_TYPE, PNG_TYPE
from mapstack.endpoint.maps import Mapped
from mapstack.endpoint.refusals import Refusal
from mapstack.endpoint.requests import Request
from mapstack.endpoint.strict_json import dumps
from mapstack.endpoint.subjects import Subject
from mapstack.explainer import Explanation
from mapstack.overlay import overlay_png, scale_of

_NPY_HEADER_BYTES = 128
_BYTES_A_MAP = 2000  # of its summary, without the text
_MAX_BARE = {PNG_TYPE: 1, NPY_TYPE: 8}  # maps; their summaries stand in a header, and proxies take 4 kB of headers
_PIXELS_A_BYTE = 4  # of an overlay: its file is larger than that says unless the picture is flat


@dataclass(frozen=True)
class Answer:
    """What goes back to a client.

    Attributes:
        status: HTTP status.
        content_type: Of the body.
        body: As it is sent.
        headers: Further ones, ASCII.
        code: Why there is no answer, a key of `STATUS`; "" where there is one.
        method: Name of the method, for metrics; "" where there is none.
        route: Which way maps were made, for metrics; "" where none were.
        seconds: From the start of the batch to this answer.
    """

    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    code: str = ""
    method: str = ""
    route: str = ""
    seconds: float = 0.0


def refuse(refusal: Refusal) -> Answer:
    """Return the answer that says no."""
    return Answer(refusal.status, JSON_TYPE, dumps(refusal.describe()), code=refusal.code)


def answer_logits(
    request: Request, subject: Subject, logits: torch.Tensor, note: str, truncated: Collection[str]
) -> Answer:
    """Return what `/predictions` answers: logits, and their softmax over the texts of the request.

    Args:
        request: What was asked.
        subject: Of which picture.
        logits: One a text group.
        note: What the checkpoint says of itself.
        truncated: Names of the groups with a text of which the model reads the beginning only.

    Raises:
        Refusal: A number is not finite.
    """
    shares = logits.double().softmax(dim=-1)
    rows = [
        {
            "name": group.name,
            "logit": float(logit),
            "probability": float(share),
            "truncated": group.name in truncated,
        }
        for group, logit, share in zip(request.groups, logits, shares, strict=True)
    ]
    body = {"image": _describe_image(subject), "note": note, "predictions": rows}
    return Answer(200, JSON_TYPE, dumps(body))


def check_size(request: Request, subject: Subject, map_size: int, max_bytes: int) -> None:
    """Refuse, before anything is computed, what no answer may hold.

    Raises:
        Refusal: The answer would be too large, or a bare one hold too many maps.
    """
    if not request.wants_maps:
        return
    n_texts = len(request.groups)
    if n_texts > _MAX_BARE.get(request.content_type, n_texts):
        raise Refusal(
            "not_acceptable",
            f"the request has {n_texts} texts, and a bare {request.content_type} shows at most "
            f"{_MAX_BARE[request.content_type]}; ask for fewer texts, or accept application/json.",
        )
    if "npy" in request.outputs and request.content_type != PNG_TYPE:
        height, width = (map_size, map_size) if request.frame == "model" else subject.geometry.original
        n_bytes = 4 * n_texts * height * width + _NPY_HEADER_BYTES
        if request.content_type == JSON_TYPE:
            n_bytes = n_bytes * 4 // 3 + _BYTES_A_MAP * n_texts
        _require_size(n_bytes, max_bytes)
    if "png" in request.outputs and request.content_type != NPY_TYPE:
        _require_drawable(n_texts, subject, max_bytes)


def _require_drawable(n_texts: int, subject: Subject, max_bytes: int) -> None:
    """Refuse overlays that would take minutes to draw: how large their files are is known only then."""
    height, width = subject.geometry.original
    n_pixels = n_texts * height * width
    if n_pixels > _PIXELS_A_BYTE * max_bytes:
        raise Refusal(
            "answer_too_large",
            f"{n_texts} overlays of {height} x {width} pixels have {n_pixels}; at most {_PIXELS_A_BYTE * max_bytes} "
            "are drawn for an answer; ask for fewer texts, or for output=npy with frame=model.",
            field="output",
        )


def answer_maps(request: Request, subject: Subject, mapped: Mapped, max_bytes: int, seconds: float) -> Answer:
    """Return what `/explanations` answers.

    Raises:
        Refusal: A number is not finite, the answer is too large, or the overlay needs a picture that is not at hand.
    """
    explanation = mapped.explanation
    if not torch.isfinite(explanation.maps).all():
        raise Refusal(
            "not_finite", "the maps hold NaN or infinity, which is never sent; try another picture or method."
        )
    if request.content_type == PNG_TYPE:
        return _answer_overlay(request, subject, mapped, max_bytes, seconds)
    if request.content_type == NPY_TYPE:
        body = _npy(_framed(explanation, request.frame))
        return _raw(request, mapped, NPY_TYPE, body, max_bytes, seconds)
    rows = _describe_maps(mapped)
    answer = {
        "image": _describe_image(subject),
        "note": explanation.note,
        **_describe(request, mapped, seconds),
        "maps": rows,
    }
    if "npy" in request.outputs:
        answer["npy"] = base64.b64encode(_npy(_framed(explanation, request.frame))).decode("ascii")
        answer["frame"] = request.frame
    if "png" in request.outputs:
        n_bytes = 0
        for index, row in enumerate(rows):
            png, row["colour_limit"] = _overlay(subject, explanation, index)
            n_bytes += len(png) * 4 // 3
            _require_size(n_bytes, max_bytes)  # at the first overlay too many, not after all of them
            row["png"] = base64.b64encode(png).decode("ascii")
    body = dumps(answer)
    _require_size(len(body), max_bytes)
    return Answer(200, JSON_TYPE, body, method=request.method_name, route=explanation.route, seconds=seconds)


def _answer_overlay(request: Request, subject: Subject, mapped: Mapped, max_bytes: int, seconds: float) -> Answer:
    png, limit = _overlay(subject, mapped.explanation, 0)
    answer = _raw(request, mapped, PNG_TYPE, png, max_bytes, seconds)
    answer.headers["x-mapstack-colour-limit"] = repr(limit)
    return answer


def _raw(request: Request, mapped: Mapped, kind: str, body: bytes, max_bytes: int, seconds: float) -> Answer:
    """Return a body that is no JSON; what JSON would say stands in a header, without the texts."""
    _require_size(len(body), max_bytes)
    explanation = mapped.explanation
    rows = [{**row, "name": None} for row in _describe_maps(mapped)]
    summary = dumps({**_describe(request, mapped, seconds), "maps": rows})
    headers = {"x-mapstack-summary": summary.decode("ascii"), "x-mapstack-note": ascii(explanation.note)[1:-1]}
    return Answer(200, kind, body, headers, method=request.method_name, route=explanation.route, seconds=seconds)


def _require_size(n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise Refusal(
            "answer_too_large",
            f"the answer would have {n_bytes} bytes or more; at most {max_bytes} are sent; ask for fewer texts, for "
            "frame=model, or for output=json.",
            field="output",
        )


def _describe_image(subject: Subject) -> dict[str, Any]:
    height, width = subject.geometry.original
    return {"sha256": subject.sha256, "height": height, "width": width}


def _describe(request: Request, mapped: Mapped, seconds: float) -> dict[str, Any]:
    explanation = mapped.explanation
    return {
        "method": explanation.method if request.key is not None else request.method.describe(),
        "route": explanation.route,
        "linear": explanation.is_linear,
        "normalize": explanation.normalize,
        "completeness": explanation.completeness,
        "n_steps": explanation.n_steps or None,
        "is_converged": explanation.is_converged,
        "costs": dict(explanation.costs) or None,
        "map_error": mapped.losses.get("map_error"),
        "unit": "logit per unit of brightness" if _is_slope(explanation) else "logit per pixel",
        "cached": mapped.is_cached,
        "seconds": round(seconds, 4),
    }


def _is_slope(explanation: Explanation) -> bool:
    return explanation.method in ("gradient", "saliency")


def _describe_maps(mapped: Mapped) -> list[dict[str, Any]]:
    return [_describe_map(mapped, index) for index in range(len(mapped.explanation.names))]


def _describe_map(mapped: Mapped, index: int) -> dict[str, Any]:
    explanation = mapped.explanation
    attribution = explanation.maps[index]
    residual = None if explanation.residual is None else float(explanation.residual[index])
    return {
        "name": explanation.names[index],
        "logit": float(explanation.logits[index]),
        "map_sum": float(explanation.density * attribution.sum()),
        "difference": None if explanation.difference is None else float(explanation.difference[index]),
        "residual": residual,
        # Captum's word for the residual of a method that promises none.
        "convergence_delta": None if explanation.completeness == "no" else residual,
        **{
            name: mapped.losses[name][index] if name in mapped.losses else None
            for name in ("share_outside_span", "missing_share")
        },
        "peak": _peak(explanation, index),
        "truncated": explanation.names[index] in explanation.truncated,
    }


def _peak(explanation: Explanation, index: int) -> dict[str, float]:
    """Say where the highest score lies [px], original-image frame; the first one, row by row."""
    attribution, geometry = explanation.maps[index], explanation.geometry
    row, column = divmod(int(attribution.argmax()), attribution.shape[1])
    scale = geometry.image_size / attribution.shape[0]
    row0, column0, row1, column1 = geometry.box
    height, width = geometry.original
    return {
        "row": _inside(((row + 0.5) * scale - row0) / (row1 - row0) * height, height),
        "column": _inside(((column + 0.5) * scale - column0) / (column1 - column0) * width, width),
        "value": float(explanation.density * attribution[row, column]),
    }


def _inside(place: float, length: int) -> float:
    return round(min(max(place, 0.0), float(length)), 2)


def _framed(explanation: Explanation, frame: str) -> np.ndarray:
    maps = explanation.maps if frame == "model" else explanation.original_maps()
    return maps.float().numpy()


def _npy(maps: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, maps, allow_pickle=False)
    return buffer.getvalue()


def _overlay(subject: Subject, explanation: Explanation, index: int) -> tuple[bytes, float]:
    """Draw one map on the original picture; return the file, and where its colours end."""
    if subject.picture is None:
        raise Refusal(
            "no_picture",
            "a stack store keeps no pictures to draw on; send the image with its key, or ask for output=npy or json.",
            field="output",
        )
    attribution = explanation.geometry.to_original(explanation.density * explanation.maps[index]).numpy()
    signed = explanation.method != "saliency" or bool((attribution < 0).any())
    limit = scale_of([attribution], signed=signed).limit
    return overlay_png(np.asarray(subject.picture.image), attribution, signed=signed, limit=limit or None), limit
