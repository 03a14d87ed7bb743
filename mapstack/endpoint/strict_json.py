"""JSON as its standard has it, both ways: Python's own reader and writer let NaN, infinity and double keys pass."""

import json
import math
from typing import Any

from mapstack.endpoint.refusals import Refusal


def loads(text: bytes | bytearray | str) -> Any:
    """Read JSON.

    Raises:
        Refusal: It is not UTF-8, no JSON, nested too deeply, or holds a key twice or a number that is not finite.

    Example:
        >>> loads(b'{"n_steps": 20}')
        {'n_steps': 20}
    """
    try:
        decoded = text if isinstance(text, str) else bytes(text).decode("utf-8")
        return json.loads(
            decoded, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_doubles
        )
    except UnicodeDecodeError as error:
        raise Refusal(
            "bad_encoding", f"the request is not UTF-8 at byte {error.start}; JSON is UTF-8; encode it so."
        ) from None
    except json.JSONDecodeError as error:
        raise Refusal(
            "bad_json", f"the request is no JSON at character {error.pos}; send one JSON object; correct it."
        ) from None
    except (RecursionError, ValueError):
        # ValueError: an integer of thousands of digits.
        raise Refusal(
            "bad_json", "the request nests too deeply or holds a number too long to read; simplify it."
        ) from None


def dumps(value: Any) -> bytes:
    """Write JSON, ASCII only.

    Raises:
        Refusal: It holds NaN or infinity.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    except ValueError:
        raise Refusal(
            "not_finite", "the answer holds a number that is not finite; none is ever sent; try another picture."
        ) from None


def require_plain(value: Any) -> None:
    """Refuse what a laxer reader let pass: NaN, infinity.

    Raises:
        Refusal: A number is not finite.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, float) and not math.isfinite(each):
            _refuse_constant("")


def _refuse_constant(_: str) -> Any:
    raise Refusal("bad_json", "the request holds NaN or infinity; JSON has none; send finite numbers.")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_constant(digits)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Refusal(
            "bad_json", "an object of the request holds a key twice; which one is meant is unknown; drop one."
        )
    return fields
