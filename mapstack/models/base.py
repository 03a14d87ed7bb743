"""What every vision-language model gives mapstack: how it embeds a picture, how it embeds a text."""

import abc
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mapstack.errors import InputError
from mapstack.images import Preprocessing

PromptPadding = Literal["none", "longest"]


class TextTower(nn.Module, abc.ABC):
    """The text half of a model: enough to project a stored stack on new texts, without the image half.

    A subclass implements `_embed_padded`. Parameters are frozen and dropout is off.

    Attributes:
        logit_scale: The learned factor `tau = exp(logit_scale)` on the cosine similarity, already clamped.
        fingerprint: sha256 of all weights of the checkpoint (both halves), in hexadecimal.
        note: What the checkpoint says of itself, shown on pictures ("" when it says nothing).
        prompt_padding: "none" embeds each text alone, so that no answer depends on the other texts asked with it;
            "longest" pads each text to the longest of the call, as upstream's processor does.
    """

    logit_scale: float
    fingerprint: str
    note: str = ""
    prompt_padding: PromptPadding = "none"

    @abc.abstractmethod
    def _embed_padded(self, texts: list[str]) -> Float[Tensor, "n_prompts embed_dim"]:
        """Embed texts, not normalised, each padded to the longest of them."""

    def is_truncated(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether only its beginning is embedded, because it has more tokens than the model reads."""
        return [False] * len(texts)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n_prompts embed_dim"]:
        """Embed texts as unit-length vectors `T_p`.

        Raises:
            InputError: No text was given.
        """
        if not texts:
            raise InputError("0 texts were given; at least one is needed; pass a list with one text or more.")
        batches = [list(texts)] if self.prompt_padding == "longest" else [[text] for text in texts]
        # Out of inference mode, so that a direction may take part in a gradient (see `Method.attribute`).
        with torch.inference_mode(False), torch.no_grad():
            embeddings = torch.cat([self._embed_padded(batch) for batch in batches])
            return embeddings / embeddings.norm(dim=-1, keepdim=True)

    def text_directions(self, texts: Sequence[str]) -> Float[Tensor, "n_prompts embed_dim"]:
        """Return `tau * T_p`: the directions whose dot product with a unit image embedding is the logit."""
        return self.logit_scale * self.embed_texts(texts)


class EmbeddingModel(nn.Module, abc.ABC):
    """A frozen vision-language model, seen as two embeddings and a temperature.

    A subclass implements `embed_images`.

    Attributes:
        text: The text half.
        preprocessing: How a picture becomes `pixel_values`.
        embed_dim: Size D of the shared embedding space (512 for MedCLIP).
    """

    text: TextTower
    preprocessing: Preprocessing
    embed_dim: int

    @abc.abstractmethod
    def embed_images(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Embed preprocessed pictures as `I_p`, not normalised; differentiable in `pixel_values`."""

    def variant_embedder(self, picture: Float[Tensor, "channels height width"]) -> Callable[[Tensor], Tensor]:
        """Return a function that embeds variants of one picture as `embed_images` does, without gradients.

        A tower that can computes only what differs from the picture.
        """
        return torch.no_grad()(self.embed_images)

    @property
    def fingerprint(self) -> str:
        """sha256 of all weights, in hexadecimal."""
        return self.text.fingerprint

    @property
    def logit_scale(self) -> float:
        """The factor `tau` on the cosine similarity."""
        return self.text.logit_scale

    @property
    def note(self) -> str:
        """What the checkpoint says of itself."""
        return self.text.note

    @property
    def precision(self) -> str:
        """The image half's precision, by Lightning's name."""
        return "64-true" if self.dtype == torch.float64 else "32-true"

    @property
    def device(self) -> torch.device:
        """Where the image half runs."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The image half's floating-point type."""
        return next(self.parameters()).dtype

    def text_directions(self, texts: Sequence[str]) -> Float[Tensor, "n_prompts embed_dim"]:
        """Return `tau * T_p` on the device and in the precision of the image half."""
        return self.text.text_directions(texts).to(self.device, self.dtype)

    def freeze(self) -> None:
        """Turn off dropout and the gradients of the weights: only pictures are differentiated."""
        self.eval()
        self.requires_grad_(False)


def normalised(embedding: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch embed_dim"]:
    """Scale embeddings to unit length."""
    return embedding / embedding.norm(dim=-1, keepdim=True)
