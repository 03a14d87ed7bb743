"""`weights`: a checkpoint folder. Random weights in the official layout, so far."""

import re
from pathlib import Path
from typing import Any

from mapstack.config import WeightsConfig
from mapstack.errors import ConfigError
from mapstack.models import load_model
from mapstack.models.medclip import save_random_medclip
from train_like.errors import DONE
from train_like.result import Result

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_PROMPT_SETS = Path(__file__).resolve().parent.parent / "configs" / "prompts"


def make_weights(config: WeightsConfig) -> Result:
    """Write a checkpoint, load it as any job would, and say what is in it.

    Raises:
        ConfigError: The sizes build no model.
    """
    vocabulary = _vocabulary()
    text: dict[str, Any] = dict(config.text)
    if text:
        text.setdefault("vocab_size", len(vocabulary))
    sizes = {name: block for name, block in (("vision", dict(config.vision)), ("text", text)) if block}
    folder = Path(config.output)
    try:
        save_random_medclip(
            folder,
            tower="vit" if config.model == "medclip-vit" else "resnet50",
            sizes=sizes,
            vocabulary=vocabulary,
            seed=config.seed,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sizes under vision or text build no model ({error}); correct them.") from None
    model = load_model(config.model, folder)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Result(DONE, {"output": config.output, "fingerprint": model.fingerprint, "parameters": n_parameters})


def _vocabulary() -> list[str]:
    """Return a WordPiece vocabulary of the words of the project's prompt sets, and of single letters for the rest."""
    words = {
        word
        for path in sorted(_PROMPT_SETS.glob("*.yaml"))
        for word in re.findall(r"[a-z]+|[^\sa-z]", path.read_text(encoding="utf-8").lower())
    }
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    pieces = [f"##{letter}" for letter in letters]
    return [*_SPECIAL, *letters, *pieces, *sorted(words - set(letters))]
