"""MedCLIP (Wang et al., EMNLP 2022), built from the `medclip` package's own classes, offline, on any device."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from medclip import modeling_medclip as upstream
from torch import Tensor, nn
from torchvision.models import resnet50
from transformers import BertConfig, BertModel, BertTokenizerFast, SwinConfig, SwinModel

from mapstack.errors import CheckpointError
from mapstack.images import MEDCLIP, Preprocessing
from mapstack.models.base import EmbeddingModel, PromptPadding, TextTower
from mapstack.models.checkpoint import fingerprint, load_strictly, read_config, read_fingerprint, read_weights
from mapstack.models.precision import float32_convolutions
from mapstack.models.swin import SwinVariants

Tower = Literal["vit", "resnet50"]

_EMBED_DIM = 512
RANDOM_NOTE = "random weights: shows the machinery, not medicine"

_MAX_TOKENS = 77  # upstream's tokenizer limit
_OFFICIAL_TEXT = {"vocab_size": 28996}  # Bio_ClinicalBERT; every other size is BertConfig's default
_TOKENIZER_OPTIONS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
_LOGIT_SCALE_RANGE = (0.0, 4.6052)  # upstream clamps to it in place at every call of compute_logits


@contextlib.contextmanager
def _offline(sizes: Mapping[str, Any]) -> Iterator[None]:
    """Let upstream's constructors build their backbones from sizes instead of downloading them.

    What they would download is overwritten by the checkpoint anyway.
    """

    def build_backbone(name: str, **_: object) -> Any:
        if name == upstream.constants.VIT_TYPE:
            return SwinModel(SwinConfig(**sizes.get("vision", {})))
        return BertModel(BertConfig(**{**_OFFICIAL_TEXT, **sizes.get("text", {})}, output_hidden_states=True))

    with (
        _replaced(upstream.AutoModel, "from_pretrained", build_backbone),
        _replaced(upstream.AutoTokenizer, "from_pretrained", lambda name: None),
        _replaced(upstream.torchvision.models, "resnet50", lambda pretrained: resnet50(weights=None)),
    ):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    kept = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _fit_head(module: Any, hidden_size: int) -> None:
    """Replace the projection head for a backbone that is not of the official width, which upstream hard-codes."""
    if hidden_size != module.projection_head.in_features:
        module.projection_head = nn.Linear(hidden_size, _EMBED_DIM, bias=False)


def build_medclip(tower: Tower, sizes: Mapping[str, Any]) -> Any:
    """Build upstream's `MedCLIPModel` with random weights.

    Args:
        tower: Which image tower.
        sizes: `{"vision": SwinConfig arguments, "text": BertConfig arguments}`; what is absent is the official size.
    """
    vision_class = upstream.MedCLIPVisionModelViT if tower == "vit" else upstream.MedCLIPVisionModel
    with _offline(sizes):
        model: Any = upstream.MedCLIPModel(vision_cls=vision_class)
    if tower == "vit":
        _fit_head(model.vision_model, model.vision_model.model.num_features)
    _fit_head(model.text_model, model.text_model.model.config.hidden_size)
    return model


class MedCLIPText(TextTower):
    """MedCLIP's text half: the mean over tokens and over hidden states 1, 2 and last, then the projection head.

    Upstream's mean runs over the padding too, hence `prompt_padding` (see `TextTower`).
    """

    def __init__(self, text_model: Any, logit_scale: float, folder: Path, prompt_padding: PromptPadding) -> None:
        super().__init__()
        self.text_model = text_model
        self.logit_scale = logit_scale
        self.prompt_padding = prompt_padding
        self._folder = folder
        self._tokenizer = _read_tokenizer(folder, text_model.model.config.vocab_size)

    def _embed_padded(self, texts: list[str]) -> Float[Tensor, "n_prompts embed_dim"]:
        tokens = self._tokenize(texts).to(self.text_model.projection_head.weight.device)
        embeddings: Tensor = self.text_model(tokens["input_ids"], tokens["attention_mask"])
        return embeddings

    def is_truncated(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether only its beginning is embedded, because it has more tokens than the model reads."""
        return [bool(encoding.overflowing) for encoding in self._tokenize(list(texts)).encodings]

    def _tokenize(self, texts: list[str]) -> Any:
        if self._tokenizer is None:
            raise CheckpointError(
                f"checkpoint '{self._folder}' holds no tokenizer (vocab.txt or tokenizer.json); texts need one; "
                "add the files of Bio_ClinicalBERT."
            )
        # A text tower of few positions has none for what comes behind them.
        n_tokens = min(_MAX_TOKENS, self.text_model.model.config.max_position_embeddings)
        return self._tokenizer(texts, padding=True, truncation=True, max_length=n_tokens, return_tensors="pt")


class MedCLIP(EmbeddingModel):
    """MedCLIP with a Swin or a ResNet-50 image tower."""

    embed_dim = _EMBED_DIM
    preprocessing: Preprocessing = MEDCLIP

    def __init__(self, vision_model: nn.Module, text: MedCLIPText) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.text = text
        self.freeze()

    @float32_convolutions()
    def embed_images(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Embed preprocessed pictures as `I_p`, not normalised."""
        embeddings: Tensor = self.vision_model(pixel_values)
        return embeddings

    @torch.no_grad()
    @float32_convolutions()
    def variant_embedder(self, picture: Float[Tensor, "channels height width"]) -> Callable[[Tensor], Tensor]:
        """Embed variants of one picture; a Swin tower computes only the windows in which they differ from it."""
        vision: Any = self.vision_model
        if not isinstance(vision, upstream.MedCLIPVisionModelViT) or not SwinVariants.serves(vision.model, picture):
            return super().variant_embedder(picture)
        tower = SwinVariants(vision.model, _in_colours(picture))

        @torch.no_grad()
        @float32_convolutions()
        def embed(variants: Tensor) -> Tensor:
            embeddings: Tensor = vision.projection_head(tower.embed(_in_colours(variants)))
            return embeddings

        return embed


def _in_colours(pixel_values: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Repeat a grey channel, as upstream's towers do."""
    return pixel_values.expand(*pixel_values.shape[:-3], 3, -1, -1)


def _read_tokenizer(folder: Path, vocab_size: int) -> BertTokenizerFast | None:
    """Build the WordPiece tokenizer of a checkpoint folder; None where there is none.

    Not by `from_pretrained`, which guesses the class from config.json or the folder's name ("clip" in "medclip").
    Where tokenizer_config.json says nothing, letters are lowered: Bio_ClinicalBERT publishes none, and upstream's
    AutoTokenizer then lowers them although the vocabulary is cased.
    """
    settings = folder / "tokenizer_config.json"
    stored = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    options = {name: stored[name] for name in _TOKENIZER_OPTIONS if name in stored}
    if (folder / "tokenizer.json").exists():
        tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **options)
    elif (folder / "vocab.txt").exists():
        tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), **options)
    else:
        return None
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"tokenizer in '{folder}' knows {len(tokenizer)} tokens, the text tower {vocab_size}; they must fit; "
            "use the tokenizer that the weights were trained with."
        )
    return tokenizer


def _text_tower(model: Any, weights: Mapping[str, Tensor], folder: Path, padding: PromptPadding) -> MedCLIPText:
    scale = math.exp(min(max(float(weights["logit_scale"]), _LOGIT_SCALE_RANGE[0]), _LOGIT_SCALE_RANGE[1]))
    text = MedCLIPText(model, scale, folder, padding)
    text.fingerprint = fingerprint(weights)
    text.note = str(read_config(folder).get("note", ""))
    return text


def load_medclip(folder: Path, *, tower: Tower, prompt_padding: PromptPadding = "none") -> MedCLIP:
    """Load a MedCLIP checkpoint: `pytorch_model.bin` as upstream publishes it, or `model.safetensors`.

    Raises:
        CheckpointError: The folder is missing, damaged, or does not fit the tower.
    """
    weights = read_weights(folder)
    model = _build(tower, folder)
    load_strictly(model, weights, folder)
    return MedCLIP(model.vision_model, _text_tower(model.text_model, weights, folder, prompt_padding))


def load_medclip_text(folder: Path, *, tower: Tower, prompt_padding: PromptPadding = "none") -> MedCLIPText:
    """Load the text half alone; the fingerprint still covers all weights.

    Raises:
        CheckpointError: The folder is missing, damaged, or its text half does not fit.
    """
    weights = read_weights(folder)
    if "logit_scale" not in weights:
        raise CheckpointError(f"checkpoint '{folder}' has no 'logit_scale'; it is no MedCLIP; check model.name.")
    with _offline(read_config(folder)):
        model = upstream.MedCLIPTextModel(proj_bias=False)
    _fit_head(model, model.model.config.hidden_size)
    prefix = "text_model."
    load_strictly(model, {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, folder)
    model.eval().requires_grad_(False)
    return _text_tower(model, weights, folder, prompt_padding)


def read_medclip_fingerprint(folder: Path, *, tower: Tower) -> str:
    """Return `fingerprint` without building a model.

    Raises:
        CheckpointError: The folder is missing or damaged.
    """
    return read_fingerprint(folder)


def _build(tower: Tower, folder: Path) -> Any:
    try:
        return build_medclip(tower, read_config(folder))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"sizes in '{folder / 'config.json'}' build no model ({error}); correct them.") from None


def save_random_medclip(
    folder: Path, *, tower: Tower, sizes: Mapping[str, Any], vocabulary: list[str], seed: int
) -> None:
    """Write a checkpoint of random weights in the official layout, position table included.

    Args:
        folder: Where `pytorch_model.bin`, `config.json` and `vocab.txt` go.
        tower: Which image tower.
        sizes: As `build_medclip`; a text `vocab_size` that is absent is the official one.
        vocabulary: The tokenizer's words, special tokens first.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_medclip(tower, sizes)
    weights = model.state_dict()
    # The official file has this table, which newer transformers no longer saves.
    n_positions = model.text_model.model.config.max_position_embeddings
    weights["text_model.model.embeddings.position_ids"] = torch.arange(n_positions)[None]
    write_medclip(folder, weights, sizes=sizes, vocabulary=vocabulary, note=RANDOM_NOTE)


def write_medclip(
    folder: Path, weights: Mapping[str, Tensor], *, sizes: Mapping[str, Any], vocabulary: list[str], note: str
) -> None:
    """Write a checkpoint folder.

    Args:
        folder: Where `pytorch_model.bin`, `config.json` and `vocab.txt` go.
        weights: Of upstream's `MedCLIPModel`.
        sizes: As `build_medclip`.
        vocabulary: The tokenizer's words, special tokens first.
        note: What the checkpoint says of itself, shown on pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(weights), folder / "pytorch_model.bin")
    config = {**sizes, "note": note}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
