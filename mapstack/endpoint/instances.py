"""KServe's form of a call: `{"instances": [...]}` in, `{"predictions": [...]}` or `{"explanations": [...]}` out.

Every instance is a request of ours. KServe knows no answer for one instance alone: what is refused of one is refused of
all.

Source:
    KServe, "V1 protocol".
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mapstack.endpoint.answers import Answer, refuse
from mapstack.endpoint.refusals import Refusal
from mapstack.endpoint.requests import Raw
from mapstack.endpoint.strict_json import loads

# By its first bytes, so that the body of every other request is read once only.
_BEGINNING = re.compile(rb'\s*\{\s*"instances"\s*:')
_LONGEST_BEGINNING = 64


def split(raw: Raw, max_instances: int) -> list[Raw] | None:
    """Return the instances of a request, or None where it has another form.

    Raises:
        Refusal: It is no JSON, or `instances` is no list of objects, or has too many.
    """
    body = next(iter(raw.parts.values())) if set(raw.parts) in ({"body"}, {"data"}) else None
    if not isinstance(body, bytes | bytearray) or not _BEGINNING.match(body[:_LONGEST_BEGINNING]):
        return None
    content = loads(body)
    instances = content["instances"]
    if len(content) > 1:
        raise Refusal("unknown_field", "there is a field beside instances; everything stands in them; move it there.")
    if not isinstance(instances, list) or not instances or not all(isinstance(each, dict) for each in instances):
        raise Refusal("bad_value", "instances is wrong; it is a list of objects, at least one; correct it.")
    if len(instances) > max_instances:
        raise Refusal(
            "too_many_instances",
            f"the request holds {len(instances)} instances; at most {max_instances} are answered; send the rest in a "
            "second request.",
        )
    return [Raw({"body": _with_plain_image(each)}, wants_maps=raw.wants_maps) for each in instances]


def join(answers: Sequence[Answer], *, wants_maps: bool) -> Answer:
    """Return one answer for those of all instances, or the first refusal among them."""
    for number, answer in enumerate(answers, 1):
        if answer.code:
            told = json.loads(answer.body)["error"]
            refusal = Refusal(answer.code, f"instance {number}: {told['message']}", field=told["field"])
            return replace(refuse(refusal), seconds=answer.seconds)
    name = b"explanations" if wants_maps else b"predictions"
    return replace(answers[0], body=b'{"%s":[%s]}' % (name, b",".join(answer.body for answer in answers)))


def _with_plain_image(instance: dict[str, Any]) -> dict[str, Any]:
    """Take base64 out of the object that KServe's protocol wraps it in."""
    image = instance.get("image")
    return {**instance, "image": image["b64"]} if isinstance(image, dict) and set(image) == {"b64"} else instance
