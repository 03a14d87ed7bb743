"""The image half of a model in another floating-point precision."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mapstack.errors import ConfigError, unknown_name
from mapstack.models.base import EmbeddingModel

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
"""Lightning's names: all in float32 or float64, or products in bfloat16 or float16 and sums in float32."""

_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class _Inside:
    """How many blocks of `float32_convolutions` are open in all threads, and torch's setting before the first."""

    lock = threading.Lock()
    n_open = 0
    kept = ""


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Let convolutions of float32 be of float32 on every GPU.

    From NVIDIA's Ampere on, torch lets cuDNN round their factors to TF32's 10 bits unless it is told not to, though it
    does so for no matrix product. The setting is the process's: it is put back when the last block is left, whichever
    thread that is in.
    """
    with _Inside.lock:
        if not _Inside.n_open:
            _Inside.kept = _convolutions().fp32_precision
            _convolutions().fp32_precision = "ieee"
        _Inside.n_open += 1
    try:
        yield
    finally:
        with _Inside.lock:
            _Inside.n_open -= 1
            if not _Inside.n_open:
                _convolutions().fp32_precision = _Inside.kept


def convolution_rounding() -> str:
    """Return how a GPU rounds the factors of float32 convolutions now, by torch's name: "ieee" for not at all."""
    return str(_convolutions().fp32_precision)


def _convolutions() -> Any:
    return torch.backends.cudnn.conv  # type: ignore[attr-defined]


class MixedPrecision(EmbeddingModel):
    """A model whose image half multiplies in half precision; pictures and embeddings are float32.

    Only the image half: the projections, sums and residuals around it keep their digits, which they would lose if a
    whole step ran under autocast.

    Args:
        model: In float32.
        precision: "bf16-mixed", or "16-mixed" for cards without bfloat16.
    """

    def __init__(self, model: EmbeddingModel, precision: str) -> None:
        super().__init__()
        self.full = model
        self._precision = precision
        self.text = model.text
        self.preprocessing = model.preprocessing
        self.embed_dim = model.embed_dim

    @property
    def precision(self) -> str:
        """The image half's precision, by Lightning's name."""
        return self._precision

    def embed_images(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Embed pictures under autocast; the backward pass then runs in the same precision."""
        with self._autocast(pixel_values.device):
            embedding: Tensor = self.full.embed_images(pixel_values)
        return embedding.float()

    def variant_embedder(self, picture: Float[Tensor, "channels height width"]) -> Callable[[Tensor], Tensor]:
        """Embed variants of a picture as the model itself does, under autocast."""
        with self._autocast(picture.device):
            embed_variants = self.full.variant_embedder(picture)

        def embed(variants: Tensor) -> Tensor:
            with self._autocast(variants.device):
                return embed_variants(variants).float()

        return embed

    @contextmanager
    def _autocast(self, device: torch.device) -> Iterator[None]:
        with torch.autocast(device.type, _MIXED[self._precision]), _float32_layer_norms(self.full):
            yield


@contextmanager
def _float32_layer_norms(model: nn.Module) -> Iterator[None]:
    """Let layer norms read float32, as autocast does on a GPU but not on a CPU.

    Their batched backward pass refuses float32 weights beside anything else (torch 2.15).
    """

    def widen(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.float() for each in inputs)

    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(widen) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def in_precision(model: EmbeddingModel, precision: str) -> EmbeddingModel:
    """Return a model of float32 in one of `PRECISIONS`.

    Raises:
        ConfigError: The precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ConfigError(unknown_name("precision", precision, PRECISIONS))
    if precision in _MIXED:
        return MixedPrecision(model, precision)
    return model.double() if precision == "64-true" else model
