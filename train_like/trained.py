"""Whether a checkpoint has learned anything: what its embeddings say of unrelated sentences and pictures.

Users of MedCLIP report that its weights were silently not loaded. A model with random weights embeds everything nearly
alike, and no text moves its score more on the one picture than on the other.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from mapstack.images import collate, from_array, prepare
from mapstack.models import EmbeddingModel, normalised
from mapstack.phantom import phantom

SENTENCES = (
    "The heart is enlarged.",
    "There is a pneumothorax on the right.",
    "Both lungs are clear.",
    "A small left pleural effusion blunts the costophrenic angle.",
    "The tip of the endotracheal tube lies above the carina.",
    "An old rib fracture has healed.",
    "Diffuse interstitial edema.",
    "A nodule in the left upper lobe.",
)
"""Fixed, and about different things."""

_FILMS: tuple[tuple[int, Sequence[str]], ...] = (
    (7, ["Pleural Effusion"]),
    (1, ["Pneumothorax"]),
    (2, []),
    (3, ["Cardiomegaly"]),
)
# Of random weights at most 0.006, small or of the official sizes, Swin or ResNet; of the demo model 0.3. The other two
# numbers divide less well: sentences of a trained model can be embedded alike, too.
_UNMOVED = 0.02


@dataclass(frozen=True)
class EmbeddingStatistics:
    """What the embeddings of fixed, unrelated sentences and phantoms say.

    Attributes:
        text_cosine: Mean over pairs of sentences; near 1 where all are embedded alike.
        image_cosine: Mean over pairs of pictures.
        interaction: Standard deviation of the cosines of pictures with sentences, once what each sentence and each
            picture has on its own is taken out; near 0 where they know nothing of each other.
        golden: Cosines of the first picture with each sentence: the numbers that tell two loads apart.
    """

    text_cosine: float
    image_cosine: float
    interaction: float
    golden: tuple[float, ...]

    @property
    def look_trained(self) -> bool:
        """Whether a sentence moves the score more on one picture than on another."""
        return self.interaction > _UNMOVED

    def describe(self) -> dict[str, object]:
        """Return the numbers for a report."""
        numbers = {name: value for name, value in asdict(self).items() if name != "golden"}
        return {**{name: round(float(value), 4) for name, value in numbers.items()}, "look_trained": self.look_trained}


def embedding_statistics(model: EmbeddingModel) -> EmbeddingStatistics:
    """Embed the fixed sentences and phantoms."""
    films = [from_array(phantom(seed, labels=labels).pixels) for seed, labels in _FILMS]
    inputs = collate([prepare(film, model.preprocessing) for film in films])
    with torch.no_grad():
        images = normalised(model.embed_images(inputs.pixel_values.to(model.device, model.dtype))).cpu().float()
        texts = model.text.embed_texts(SENTENCES).cpu().float()
    cosines = images @ texts.mT
    interaction = cosines - cosines.mean(0, keepdim=True) - cosines.mean(1, keepdim=True) + cosines.mean()
    return EmbeddingStatistics(
        text_cosine=_mean_of_pairs(texts),
        image_cosine=_mean_of_pairs(images),
        interaction=float(interaction.std()),
        golden=tuple(round(float(value), 6) for value in cosines[0]),
    )


def _mean_of_pairs(embeddings: torch.Tensor) -> float:
    cosines = embeddings @ embeddings.mT
    n = len(cosines)
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
