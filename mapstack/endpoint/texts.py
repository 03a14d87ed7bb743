"""A text tower that remembers: embedding the sentences of 14 classes takes longer than most maps."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.models import TextTower
from mapstack.threads import one_thread

_CAPACITY = 4096
_SMALL = 20_000_000  # parameters; the official text tower has 108 million


class RememberingText(TextTower):
    """A text tower in front of another, whose embeddings it keeps in memory, the least recently used going first.

    Where texts are padded to the longest of a call, an embedding depends on the other texts, and none is kept.

    Args:
        tower: The tower that embeds.
    """

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self._tower = tower
        self.logit_scale = tower.logit_scale
        self.fingerprint = tower.fingerprint
        self.note = tower.note
        self.prompt_padding = tower.prompt_padding
        self._is_small = sum(parameter.numel() for parameter in tower.parameters()) < _SMALL
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._is_cut = lru_cache(_CAPACITY)(lambda text: tower.is_truncated([text])[0])

    def _embed_padded(self, texts: list[str]) -> Float[Tensor, "n_prompts embed_dim"]:
        return self._tower._embed_padded(texts)

    def is_truncated(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether only its beginning is embedded, because it has more tokens than the model reads."""
        return [self._is_cut(text) for text in texts]

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n_prompts embed_dim"]:
        """Embed texts as unit-length vectors, each of them once."""
        if self.prompt_padding != "none" or not texts:
            return self._tower.embed_texts(texts)
        rows = [self._embed(text) for text in texts]
        while len(self._known) > _CAPACITY:
            self._known.popitem(last=False)
        return torch.stack(rows)

    def _embed(self, text: str) -> Float[Tensor, " embed_dim"]:
        if text not in self._known:
            with one_thread() if self._is_small else nullcontext():
                self._known[text] = self._tower.embed_texts([text])[0]
        self._known.move_to_end(text)
        return self._known[text]
