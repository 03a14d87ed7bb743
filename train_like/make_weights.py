"""`weights`: a checkpoint folder. Random weights in the official layout, so far."""

from pathlib import Path
from typing import Any

from mapstack.errors import ConfigError
from mapstack.job_configs import WeightsConfig
from mapstack.models import load_model
from mapstack.models.medclip import save_random_medclip
from train_like.errors import DONE
from train_like.result import Result
from train_like.vocabulary import build_vocabulary, read_prompt_files


def make_weights(config: WeightsConfig) -> Result:
    """Write a checkpoint, load it as any job would, and say what is in it.

    Raises:
        ConfigError: The sizes build no model.
    """
    vocabulary = build_vocabulary(read_prompt_files())
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
