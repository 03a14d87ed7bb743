"""What a command answers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """How a command ended.

    Attributes:
        code: The exit code.
        summary: Totals and output path, for the JSON line.
        is_reporter: Whether this process prints the line; one rank does.
    """

    code: int
    summary: dict[str, Any]
    is_reporter: bool = True
