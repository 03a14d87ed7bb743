"""From an image embedding to the numbers that are explained.

A method attributes a *readout*: a function of the embedding with one number a row. Two exist. `DirectionReadout` is
the dot product with fixed directions, which is all that the stack needs. `TextReadout` is the final output of
MedCLIP's `PromptClassifier`, with its ensembles; where it takes no maximum it is a `DirectionReadout` in disguise.
"""

import abc
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mapstack.models.base import TextTower, normalised
from mapstack.prompts import TextGroup, all_texts


class Readout(nn.Module, abc.ABC):
    """A function from image embeddings to `n_rows` numbers.

    Attributes:
        n_rows: How many numbers it gives for a picture.
        normalize: Whether it reads `I_p / |I_p|`, as MedCLIP's logit does, or the raw `I_p`.
        is_linear: Whether each number is a dot product with that embedding.
    """

    n_rows: int
    normalize: bool
    is_linear: bool

    @abc.abstractmethod
    def _read(self, embedded: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch rows"]:
        """Read embeddings that are already of unit length where `normalize` asks for it."""

    def forward(self, embedding: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch rows"]:
        """Read raw embeddings `I_p`."""
        return self._read(normalised(embedding) if self.normalize else embedding)

    def logits(self, embedding: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch rows"]:
        """Read them as the model does, whatever is explained: of unit length."""
        return self._read(normalised(embedding))


class DirectionReadout(Readout):
    """The dot products with directions; `None` stands for the D unit axes."""

    is_linear = True
    directions: Tensor | None

    def __init__(
        self, directions: Float[Tensor, "rows embed_dim"] | None, *, embed_dim: int, normalize: bool = True
    ) -> None:
        super().__init__()
        if directions is not None and directions.is_inference():
            with torch.inference_mode(False):  # autograd refuses to save such a tensor, but not its copy
                directions = directions.clone()
        self.register_buffer("directions", directions, persistent=False)
        self.n_rows = embed_dim if directions is None else len(directions)
        self.normalize = normalize

    def _read(self, embedded: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch rows"]:
        return embedded if self.directions is None else embedded @ self.directions.T


class TextReadout(Readout):
    """The logit of each text group: the mean or the maximum over its texts, less that of what it is held against.

    Args:
        groups: What is explained; one row each.
        text: Embeds the texts; each is embedded once.
        normalize: False reads the raw embedding, the paper's literal wording.
        device: Where the directions live.
        dtype: Their floating-point type.

    Attributes:
        span: Every direction that a row can read, whichever text wins.

    Source:
        `medclip.PromptClassifier`: `ensemble=True` is the mean of the logits over a class's prompts, `False` their
        maximum. It runs the image tower once per class; a readout shares one run.
    """

    span: Tensor

    def __init__(
        self,
        groups: Sequence[TextGroup],
        text: TextTower,
        *,
        normalize: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.normalize = normalize
        self.n_rows = len(groups)
        self.is_linear = all(group.ensemble == "mean" or len(group.texts) == 1 for group in groups)
        # Out of inference mode, so that the directions may take part in a gradient (see `Method.attribute`).
        with torch.inference_mode(False):
            texts = all_texts(groups)
            directions = text.text_directions(texts).to(device, dtype)
            row = {each: directions[index] for index, each in enumerate(texts)}
            candidates = [self._candidate_directions(group, row) for group in groups]
            self.register_buffer("span", torch.cat(candidates), persistent=False)
        self._n_candidates = [len(each) for each in candidates]

    @staticmethod
    def _candidate_directions(group: TextGroup, row: dict[str, Tensor]) -> Float[Tensor, "candidates embed_dim"]:
        directions = torch.stack([row[each] for each in group.texts])
        if group.ensemble == "mean":
            directions = directions.mean(dim=0, keepdim=True)
        if group.against:
            directions = directions - torch.stack([row[each] for each in group.against]).mean(dim=0)
        return directions

    @property
    def _candidates(self) -> tuple[Float[Tensor, "candidates embed_dim"], ...]:
        return torch.split(self.span, self._n_candidates)

    @property
    def directions(self) -> Float[Tensor, "rows embed_dim"]:
        """One direction a row; only where no row takes a maximum."""
        if not self.is_linear:
            raise RuntimeError("a maximum has no fixed direction; ask for directions_at(embedding).")
        return self.span

    def _read(self, embedded: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch rows"]:
        return torch.stack([(embedded @ each.T).amax(dim=-1) for each in self._candidates], dim=-1)

    def directions_at(self, embedding: Float[Tensor, "batch embed_dim"]) -> Float[Tensor, "batch rows embed_dim"]:
        """Return the direction that each row reads at a picture: for a maximum, that of the winning text."""
        winners = [each[(embedding @ each.T).argmax(dim=-1)] for each in self._candidates]
        return torch.stack(winners, dim=1)


def truncated_groups(groups: Sequence[TextGroup], text: TextTower) -> list[TextGroup]:
    """Return the groups with a text of which the model reads the beginning only: another end would change no map."""
    texts = all_texts(groups)
    cut = {each for each, is_cut in zip(texts, text.is_truncated(texts), strict=True) if is_cut}
    return [group for group in groups if cut.intersection(group.texts + group.against)]


def direction_readout(readout: TextReadout) -> Readout:
    """Return the one matrix product that a readout without a maximum is; the readout itself otherwise."""
    if not readout.is_linear:
        return readout
    directions = readout.directions
    return DirectionReadout(directions, embed_dim=directions.shape[1], normalize=readout.normalize)
