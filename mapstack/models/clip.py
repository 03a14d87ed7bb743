"""CLIP as transformers builds it: the proof that another vision-language model is one adapter."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizerFast

from mapstack.errors import CheckpointError
from mapstack.images import Preprocessing
from mapstack.models.base import EmbeddingModel, PromptPadding, TextTower
from mapstack.models.checkpoint import fingerprint
from mapstack.models.precision import float32_convolutions


class CLIPText(TextTower):
    """CLIP's text half; it reads the token at the end of the text, so padding does not enter."""

    def __init__(self, model: Any, folder: Path, prompt_padding: PromptPadding) -> None:
        super().__init__()
        self.model: Any = model
        self.logit_scale = math.exp(model.logit_scale.item())
        self.prompt_padding = prompt_padding
        self.fingerprint = fingerprint(model.state_dict())
        self._tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)

    def _embed_padded(self, texts: list[str]) -> Float[Tensor, "n_prompts embed_dim"]:
        embeddings: Tensor = self.model.get_text_features(**self._tokenize(texts).to(self.model.device))
        return embeddings

    def is_truncated(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether only its beginning is embedded, because it has more tokens than the model reads."""
        return [bool(encoding.overflowing) for encoding in self._tokenize(list(texts)).encodings]

    def _tokenize(self, texts: list[str]) -> Any:
        n_tokens = self.model.config.text_config.max_position_embeddings
        return self._tokenizer(texts, padding=True, truncation=True, max_length=n_tokens, return_tensors="pt")


class CLIP(EmbeddingModel):
    """A CLIP checkpoint folder as transformers saves it."""

    def __init__(self, model: Any, text: CLIPText, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model: Any = model
        self.text = text
        self.preprocessing = preprocessing
        self.embed_dim = model.config.projection_dim
        self.freeze()

    @float32_convolutions()
    def embed_images(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Embed preprocessed pictures as `I_p`, not normalised."""
        embeddings: Tensor = self.model.get_image_features(pixel_values)
        return embeddings


def load_clip(folder: Path, *, prompt_padding: PromptPadding = "none") -> CLIP:
    """Load a local CLIP folder; nothing is downloaded.

    Raises:
        CheckpointError: The folder is missing or damaged, or its keys do not fit.
    """
    model = _read_model(folder)
    text = CLIPText(model, folder, prompt_padding)
    return CLIP(model, text, _read_preprocessing(folder, model.config.vision_config.image_size))


def load_clip_text(folder: Path, *, prompt_padding: PromptPadding = "none") -> CLIPText:
    """Load what embeds texts. transformers reads a CLIP folder whole; only the text half is used."""
    model = _read_model(folder)
    model.eval().requires_grad_(False)
    return CLIPText(model, folder, prompt_padding)


def read_clip_fingerprint(folder: Path) -> str:
    """Return `fingerprint`. It covers what transformers makes of the folder, which it therefore loads.

    Raises:
        CheckpointError: The folder is missing or damaged, or its keys do not fit.
    """
    return fingerprint(_read_model(folder).state_dict())


def _read_model(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"'{folder}' has no config.json; a CLIP checkpoint is a folder that transformers saved.")
    try:
        # Fused attention has no forward-mode derivative, which the choice of integration points needs.
        model, report = CLIPModel.from_pretrained(
            folder, local_files_only=True, attn_implementation="eager", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"CLIP checkpoint '{folder}' cannot be loaded ({reason}); fetch it again.") from None
    faults = {name: keys for name, keys in report.items() if keys}
    if faults:
        raise CheckpointError(f"CLIP checkpoint '{folder}' does not fit ({sorted(faults)}); keys must agree exactly.")
    return model


def _read_preprocessing(folder: Path, image_size: int) -> Preprocessing:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; it names the mean and deviation that the weights were trained on.")
    config = json.loads(path.read_text(encoding="utf-8"))
    return Preprocessing(image_size, tuple(config["image_mean"]), tuple(config["image_std"]), fit="crop")
