"""A WordPiece vocabulary of whole words: for checkpoints that are made here and not fetched."""

import re
import string
from collections.abc import Iterable
from pathlib import Path

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PROMPT_SETS = Path(__file__).resolve().parent.parent / "configs" / "prompts"


def read_prompt_files() -> list[str]:
    """Return the text of the project's prompt sets, comments and all."""
    return [path.read_text(encoding="utf-8") for path in sorted(_PROMPT_SETS.glob("*.yaml"))]


def build_vocabulary(texts: Iterable[str]) -> list[str]:
    """Return the special tokens, single letters and digits for what is unknown, and the words of the texts.

    Example:
        >>> build_vocabulary(["Left lung."])[-3:]
        ['.', 'left', 'lung']
    """
    words = {word for text in texts for word in re.findall(r"[a-z]+|[^\sa-z]", text.lower())}
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = [f"##{letter}" for letter in letters]
    return [*_SPECIAL, *letters, *pieces, *sorted(words - set(letters))]
