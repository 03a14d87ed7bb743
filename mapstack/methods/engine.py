"""The engine of every gradient method: one forward pass, then batched vector-Jacobian products over the rows."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.models.base import EmbeddingModel
from mapstack.readouts import Readout

# Which rows, and their gradients [rows, points, channels, height, width].
RowGradients = tuple[slice, Tensor]


def row_gradients(
    model: EmbeddingModel,
    points: Float[Tensor, "points channels height width"],
    readout: Readout,
    *,
    rows_per_pass: int,
) -> tuple[Float[Tensor, "points embed_dim"], Iterator[RowGradients]]:
    """Return the embeddings, and the gradient of every row of the readout in chunks of rows.

    Each point is run forward once, however many rows there are. The rows of different points do not mix, since no
    layer of an image tower in evaluation mode mixes the pictures of a batch; so the gradient of the sum over points
    is the gradient of each.

    Args:
        model: Frozen; called with gradients on, outside inference mode (see `Method.attribute`).
        points: Pictures in the model-input frame.
        readout: What is differentiated.
        rows_per_pass: Rows that one batched product takes; more cost memory in proportion.
    """
    points = points.detach().requires_grad_()
    embedding = model.embed_images(points)
    outputs = readout(embedding)

    def chunks() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, readout.n_rows, rows_per_pass):
            rows = slice(start, min(start + rows_per_pass, readout.n_rows))
            is_last = rows.stop == readout.n_rows
            yield rows, _chunk_gradient(outputs, points, rows, retain_graph=not is_last)

    return embedding.detach(), chunks()


def _chunk_gradient(outputs: Tensor, points: Tensor, rows: slice, *, retain_graph: bool) -> Tensor:
    n_points, n_rows = outputs.shape
    unit = torch.eye(n_rows, dtype=outputs.dtype, device=outputs.device)[rows]
    cotangents = unit[:, None, :].expand(-1, n_points, -1)
    (gradient,) = torch.autograd.grad(outputs, points, cotangents, is_grads_batched=True, retain_graph=retain_graph)
    return gradient
