"""The engine of every gradient method: one forward pass, then batched vector-Jacobian products over the rows."""

from collections.abc import Callable, Iterator
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.models.base import EmbeddingModel
from mapstack.readouts import Readout

T = TypeVar("T")

# Which rows, and their gradients [rows, points, channels, height, width].
RowGradients = tuple[slice, Tensor]

# How many of a model's rows, points or pictures the device was found to have memory for.
Fits = WeakKeyDictionary[EmbeddingModel, int]

# A product is linear in its cotangent: float16 has digits for small gradients if the cotangent is large, and the
# gradient is divided by the same power of two again. Where that overflows, a smaller one is tried.
_FLOAT16_SCALES = tuple(2.0**exponent for exponent in (12, 8, 4, 0, -4, -8))

# Vectors (rows times points) that one product takes where nothing else is said. More do not fit the cache of a CPU, and
# are slower by up to a third (benchmarks/RESULTS.md); a GPU is only filled by many.
_VECTORS_ON_CPU, _VECTORS_ON_GPU = 8, 256
_POINTS_AT_ONCE = 8
# Variants of a picture that are embedded together; no graph is kept of them. On a CPU more are hardly faster, and take
# memory in proportion.
_PICTURES_ON_CPU, _PICTURES_ON_GPU = 6, 256

_ROWS_THAT_FIT: Fits = WeakKeyDictionary()
_POINTS_THAT_FIT: Fits = WeakKeyDictionary()
_PICTURES_THAT_FIT: Fits = WeakKeyDictionary()


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

    A chunk of rows for which the device has too little memory is halved, and the model's later ones are no larger; for
    points see `gradients_of_parts`.

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

    def pull_back(rows: slice) -> Tensor:
        return _gradient_of_rows(outputs, points, rows, scales)

    return embedding.detach(), _parts_that_fit(model, _ROWS_THAT_FIT, readout.n_rows, rows_per_pass, pull_back)


def gradients_of_parts(
    model: EmbeddingModel,
    points: Float[Tensor, "points channels height width"],
    readout: Readout,
    *,
    rows_per_pass: int | None = None,
) -> Iterator[tuple[slice, tuple[Tensor, Iterator[RowGradients]]]]:
    """Yield which points, and their `row_gradients`: all at once, or as many as the device has memory to run forward.

    The gradients of a part are to be used up before the next part is asked for.
    """

    def run(part: slice) -> tuple[Tensor, Iterator[RowGradients]]:
        return row_gradients(model, points[part], readout, rows_per_pass=rows_per_pass)

    return _parts_that_fit(model, _POINTS_THAT_FIT, len(points), len(points), run)


def embed_by_parts(
    model: EmbeddingModel, n: int, embed: Callable[[slice], Tensor], at_once: int | None = None
) -> Float[Tensor, "pictures embed_dim"]:
    """Embed n pictures part by part.

    Args:
        model: Whose pictures they are.
        n: How many pictures.
        embed: Makes and embeds some of them.
        at_once: How many are made and run at once, at most; None takes as many as the device does best with. Parts
            for which it has too little memory are halved, and the model's later ones are no larger.
    """
    at_once = at_once or pictures_at_once(model.device)
    parts = _parts_that_fit(model, _PICTURES_THAT_FIT, n, at_once, embed)
    return torch.cat([embeddings for _, embeddings in parts])


def _parts_that_fit(
    model: EmbeddingModel, fits: Fits, n: int, most: int, run: Callable[[slice], T]
) -> Iterator[tuple[slice, T]]:
    """Do n things in parts of `most`, or of fewer where the memory does not suffice; yield each with its result."""
    start, size = 0, min(most, fits.get(model, most))
    while start < n:
        part = slice(start, min(start + size, n))
        try:
            result = run(part)
        except torch.OutOfMemoryError:
            if part.stop - part.start == 1:
                raise
            size = fits[model] = -(-(part.stop - part.start) // 2)
            continue
        yield part, result
        del result  # or the graph of a part would be kept beside that of the next
        start = part.stop


def pictures_at_once(device: torch.device) -> int:
    """Return how many pictures a device embeds best together."""
    return _PICTURES_ON_CPU if device.type == "cpu" else _PICTURES_ON_GPU


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
