"""Small real models whose attributions can be known, shared by the tests of every room."""

import hashlib

import torch
from torch import Tensor, nn

from mapstack.geometry import Geometry
from mapstack.images import MEDCLIP, Inputs, Prepared, Preprocessing
from mapstack.models import EmbeddingModel, TextTower

SMALL_VISION = {
    "image_size": 224,
    "patch_size": 8,
    "embed_dim": 24,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 7,
}
SMALL_TEXT = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
VOCABULARY += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
VOCABULARY += ["no", "left", "right", "lung", "effusion", "pleural", "heart", "nodule", "in", "the", ".", ","]


class SeededText(TextTower):
    """Embeds a text as the random vector that its bytes seed."""

    def __init__(self, embed_dim: int, logit_scale: float = 10.0) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.logit_scale = logit_scale
        self.fingerprint = "0" * 64

    def _embed_padded(self, texts: list[str]) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        return torch.stack([torch.randn(self.embed_dim, generator=torch.Generator().manual_seed(s)) for s in seeds])


class LinearModel(EmbeddingModel):
    """I_p = W x + c on a 16 px picture: its attributions are known by hand."""

    def __init__(self, embed_dim: int = 6, image_size: int = 16, channels: int = 1) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        n_pixels = channels * image_size**2
        self.weight = nn.Parameter(torch.randn(embed_dim, n_pixels, generator=source, dtype=torch.float64))
        self.offset = nn.Parameter(torch.randn(embed_dim, generator=source, dtype=torch.float64))
        self.preprocessing = Preprocessing(image_size, MEDCLIP.mean * channels, MEDCLIP.std * channels, fit="pad")
        self.embed_dim = embed_dim
        self.text = SeededText(embed_dim)
        self.freeze()

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.flatten(1) @ self.weight.T + self.offset


class CurvedModel(LinearModel):
    """A smooth model that is not linear, in float64, with a convolution so that neighbours matter."""

    def __init__(self, embed_dim: int = 6, image_size: int = 16, channels: int = 1) -> None:
        super().__init__(embed_dim, image_size, channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.tower = nn.Sequential(
                nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * image_size**2, embed_dim)
            ).double()
        self.freeze()

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        embedding: Tensor = self.tower(pixel_values)
        return embedding


def random_inputs(n: int, model: EmbeddingModel, *, seed: int = 0) -> Inputs:
    """Pictures without padding, in the model's precision."""
    size, channels = model.preprocessing.image_size, len(model.preprocessing.mean)
    source = torch.Generator().manual_seed(seed)
    brightness = torch.rand(n, channels, size, size, generator=source, dtype=model.dtype)
    mean = torch.tensor(model.preprocessing.mean, dtype=model.dtype)[:, None, None]
    std = torch.tensor(model.preprocessing.std, dtype=model.dtype)[:, None, None]
    digests = tuple(hashlib.sha256(str((seed, i)).encode()).hexdigest() for i in range(n))
    return Inputs((brightness - mean) / std, torch.ones(n, size, size, dtype=torch.bool), digests)


def random_pictures(model: EmbeddingModel, n: int = 2) -> list[Prepared]:
    """The same, one by one, as a job prepares them."""
    inputs = random_inputs(n, model)
    size = model.preprocessing.image_size
    whole = Geometry((size, size), size, (0.0, 0.0, float(size), float(size)))
    return [Prepared(inputs.pixel_values[i].float(), whole, inputs.sha256[i]) for i in range(n)]
