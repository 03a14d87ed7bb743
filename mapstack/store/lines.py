"""Lines of JSON that carry their own checksum, for the journals and errors.jsonl.

A process can be killed inside a write, a power cut can leave zeros where a line should be, and a disk can flip a bit.
With a checksum in each line all three are told from a whole line in the same way.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

_TAIL = b',"crc32":"%08x"}\n'
_TAIL_SIZE = len(_TAIL % 0)


def encode_line(fields: Mapping[str, Any]) -> bytes:
    """Write fields (at least one) as one line of ASCII JSON whose last field is the CRC-32 of the others."""
    body = json.dumps(fields, allow_nan=False, separators=(",", ":")).encode("ascii")
    return body[:-1] + _TAIL % zlib.crc32(body)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Read a line of `encode_line`, its newline included; None if a byte of it is missing or changed."""
    body = line[:-_TAIL_SIZE] + b"}"
    if line[-_TAIL_SIZE:] != _TAIL % zlib.crc32(body):
        return None
    fields: dict[str, Any] = json.loads(body)
    return fields


def iter_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each line with the offset [bytes] where it begins; the last one may lack its newline."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start) + 1 or len(content)
        yield start, content[start:end]
        start = end
