"""The directions a stack is made along: the D unit axes, or an orthonormal basis of the span of a prompt set."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.errors import InputError, SpanError

# Text embeddings are float32 sums of thousands of terms: below this share of the largest, a singular value is rounding.
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of the span of a prompt set.

    Attributes:
        rows: Orthonormal rows, without the temperature.
        centre: The mean of the set's unit-length text embeddings. Texts of one model lie close to their mean, so that
            every text looks well covered unless the mean is taken off first.
    """

    rows: Float[Tensor, "rows embed_dim"]
    centre: Float[Tensor, " embed_dim"]

    @classmethod
    def of(cls, directions: Float[Tensor, "n_prompts embed_dim"]) -> "Basis":
        """Return a basis of the span of directions, of as many rows as their rank.

        Raises:
            InputError: No direction was given, or all are zero.
        """
        exact = directions.double()
        if not exact.any():
            raise InputError("0 directions of non-zero length were given; a basis needs one; give a prompt.")
        _, singular, rows = torch.linalg.svd(exact, full_matrices=False)
        rank = int((singular > _RANK_TOLERANCE * singular[0]).sum())
        unit = exact / exact.norm(dim=-1, keepdim=True)
        return cls(rows[:rank].to(directions.dtype), unit.mean(dim=0).to(directions.dtype))

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, like: Tensor) -> "Basis":
        """Return the basis on the device and in the precision of a tensor."""
        return replace(self, rows=self.rows.to(like), centre=self.centre.to(like))

    def coordinates(self, directions: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch rows"]:
        """Return the weights of the rows that come nearest to each direction."""
        return directions @ self.rows.T

    def residual(self, directions: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch embed_dim"]:
        """Return the part of each direction that lies outside the span."""
        return directions - self.coordinates(directions) @ self.rows

    def share_outside(self, directions: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch"]:
        """Return |residual| / |direction - centre|, both for directions of unit length: 0 inside, 1 orthogonal.

        Example:
            >>> basis = Basis.of(torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]))
            >>> basis.share_outside(torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 2.0]])).round(decimals=3)
            tensor([0.0000, 0.8160])
        """
        unit = directions / directions.norm(dim=-1, keepdim=True)
        distance = (unit - self.centre).norm(dim=-1).clamp(min=torch.finfo(unit.dtype).eps)
        return self.residual(unit).norm(dim=-1) / distance

    def require(self, directions: Float[Tensor, "*batch embed_dim"], tolerance: float) -> None:
        """Refuse directions that lie outside the span.

        Raises:
            SpanError: `share_outside` of one is above the tolerance.
        """
        worst = float(self.share_outside(directions).max())
        if worst > tolerance:
            raise SpanError(
                f"a text lies outside the span of this stack's prompts (share {worst:.3g}, tolerance {tolerance:.3g}); "
                "a stack of basis 'prompts' answers texts of its span only; extract with stack.basis=axes, or add the "
                "text to the prompts."
            )
