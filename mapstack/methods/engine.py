"""The engine of every gradient method: one forward pass, then batched vector-Jacobian products over the rows."""

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.models.base import EmbeddingModel
from mapstack.readouts import Readout

# Which rows, and their gradients [rows, points, channels, height, width].
RowGradients = tuple[slice, Tensor]

# A product is linear in its cotangent: float16 has digits for small gradients if the cotangent is large, and the
# gradient is divided by the same power of two again. Where that overflows, a smaller one is tried.
_FLOAT16_SCALES = tuple(2.0**exponent for exponent in (12, 8, 4, 0, -4, -8))

# Vectors (rows times points) that one product takes where nothing else is said. More do not fit the cache of a CPU, and
# are slower by up to a third (benchmarks/RESULTS.md); a GPU is only filled by many.
_VECTORS_ON_CPU, _VECTORS_ON_GPU = 8, 256
_POINTS_AT_ONCE = 8

_ROWS_THAT_FIT: WeakKeyDictionary[EmbeddingModel, int] = WeakKeyDictionary()


def row_gradients(
    model: EmbeddingModel,
    points: Float[Tensor, "points channels height width"],
    readout: Readout,
    *,
    rows_per_pass: int | None = None,
) -> tuple[Float[Tensor, "points embed_dim"], Iterator[RowGradients]]:
    """Return the embeddings, and the gradient of every row of the readout in chunks of rows.

    Each point is run forward once, however many rows there are. The rows of different points do not mix, since no
    layer of an image tower in evaluation mode mixes the pictures of a batch; so the gradient of the sum over points
    is the gradient of each.

    A chunk for which the device has too little memory is halved, and the model's later chunks are no larger.

    Args:
        model: Frozen; called with gradients on, outside inference mode (see `Method.attribute`).
        points: Pictures in the model-input frame.
        readout: What is differentiated.
        rows_per_pass: Rows that one batched product takes at most; more cost memory in proportion. None takes as many
            as the device does best with.
    """
    if rows_per_pass is None:
        rows_per_pass = max(1, _vectors(points.device) // len(points))
    points = points.detach().requires_grad_()
    embedding = model.embed_images(points)
    outputs = readout(embedding)
    scales = _FLOAT16_SCALES if model.precision == "16-mixed" else (1.0,)

    def chunks() -> Iterator[RowGradients]:
        start, n_rows = 0, min(rows_per_pass, _ROWS_THAT_FIT.get(model, rows_per_pass))
        while start < readout.n_rows:
            rows = slice(start, min(start + n_rows, readout.n_rows))
            try:
                gradient = _gradient_of_rows(outputs, points, rows, scales)
            except torch.OutOfMemoryError:
                if n_rows == 1:
                    raise
                n_rows = _ROWS_THAT_FIT[model] = -(-n_rows // 2)
                continue
            yield rows, gradient
            start = rows.stop

    return embedding.detach(), chunks()


def points_at_once(asked: int | None, n_rows: int, device: torch.device) -> int:
    """Return how many points of a path are run together: as many as asked, or as the device does best with."""
    return asked or max(1, min(_POINTS_AT_ONCE, _vectors(device) // n_rows))


def _vectors(device: torch.device) -> int:
    return _VECTORS_ON_CPU if device.type == "cpu" else _VECTORS_ON_GPU


def _gradient_of_rows(outputs: Tensor, points: Tensor, rows: slice, scales: tuple[float, ...]) -> Tensor:
    n_points, n_rows = outputs.shape
    unit = torch.eye(n_rows, dtype=outputs.dtype, device=outputs.device)[rows]
    cotangents = unit[:, None, :].expand(-1, n_points, -1)

    def pull_back(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(outputs, points, cotangent, retain_graph=True)[0]

    for scale in scales:
        gradient = torch.vmap(pull_back)(scale * cotangents)
        if scale == scales[-1] or gradient.isfinite().all():
            break
    return gradient if scale == 1 else gradient / scale
