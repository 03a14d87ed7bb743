"""The whole stack of a record: the endpoint and the offline job never multiply one out."""

import numpy as np
import torch

from mapstack.codecs import decode_factors


def restore(encoded: dict[str, np.ndarray]) -> np.ndarray:
    mixing, rounded, scale = decode_factors(encoded)
    maps = rounded if scale is None else rounded * scale[:, None, None]
    return (maps if mixing is None else torch.tensordot(mixing, maps, dims=1)).numpy()
