"""Every error that mapstack raises on purpose.

A message is one sentence in three parts: what was wrong, with the named thing and its value; the rule; what to do.
It never holds pixels, report text or a prompt: those can identify a patient.
"""

import difflib
from collections.abc import Sequence


class MapstackError(Exception):
    """The root of mapstack's own errors."""


class ConfigError(MapstackError, ValueError):
    """A configuration key or value is wrong."""


class InputError(MapstackError, ValueError):
    """An argument of a public function is wrong."""


class ImageError(InputError):
    """A picture cannot be read, or is refused."""


class SpanError(InputError):
    """A text lies outside the span of a reduced stack, beyond the stated tolerance."""


class CheckpointError(MapstackError, ValueError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class StoreError(MapstackError, RuntimeError):
    """A stack store is damaged, held by another job, or belongs to another configuration."""


class StoreDiskError(StoreError, OSError):
    """The disk below a stack store is full, unreadable or failing; the OSError is the cause."""


class ShardError(MapstackError, ValueError):
    """An input shard is damaged or refused."""


def unknown_name(what: str, name: object, choices: Sequence[str]) -> str:
    """Return the sentence for a name that is none of the choices, with the nearest right one.

    Example:
        >>> unknown_name("codec", "flot16", ["float16", "int8"])
        "codec 'flot16' is unknown; choose one of float16, int8. Did you mean 'float16'?"
    """
    written = str(name)

    def closeness(choice: str) -> float:
        ratio = difflib.SequenceMatcher(None, written, choice).ratio()
        return ratio + 0.2 * (written[:1] == choice[:1])  # an abbreviation keeps the first letter

    nearest = max(choices, key=closeness, default=None)
    hint = f" Did you mean '{nearest}'?" if nearest is not None and closeness(nearest) > 0.6 else ""
    return f"{what} '{written}' is unknown; choose one of {', '.join(choices)}.{hint}"
