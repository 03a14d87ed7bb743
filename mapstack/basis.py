"""The directions a stack is made along: the D unit axes, or an orthonormal basis of the span of a prompt set."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.errors import InputError, SpanError

# Text embeddings are float32 sums of thousands of terms: below this share of the largest, a singular value is rounding.
_RANK_TOLERANCE = 1e-6
_SAME = 1.001  # the set itself, embedded on another machine


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of the span of a prompt set.

    Attributes:
        rows: Orthonormal rows, without the temperature.
        centre: The mean of the set's unit-length text embeddings, as far as it lies in the span. Texts of one model
            lie close to their mean, so that every text looks well covered unless the mean is taken off first.
        own_share: The largest `share_outside` of the set itself: 0 unless a tolerance has shortened the basis.
        worst: Where it has, the text of the set of which most is left out, of unit length.
    """

    rows: Float[Tensor, "rows embed_dim"]
    centre: Float[Tensor, " embed_dim"]
    own_share: float = 0.0
    worst: Float[Tensor, " embed_dim"] | None = None

    @classmethod
    def of(cls, directions: Float[Tensor, "n_prompts embed_dim"], tolerance: float = 0.0) -> "Basis":
        """Return a basis of the span of directions, of as many rows as their rank, or of the fewest that suffice.

        Args:
            directions: At least one that is not zero.
            tolerance: Largest share of a direction, |residual| / |direction|, that may lie outside the basis.

        Raises:
            InputError: No direction was given, or all are zero.
        """
        exact = directions.double()
        exact = exact[exact.any(dim=-1)]
        if not len(exact):
            raise InputError("0 directions of non-zero length were given; a basis needs one; give a prompt.")
        _, singular, rows = torch.linalg.svd(exact, full_matrices=False)
        rows = rows[: int((singular > _RANK_TOLERANCE * singular[0]).sum())]
        unit = exact / exact.norm(dim=-1, keepdim=True)
        if tolerance == 0:
            return cls(rows.to(directions.dtype), unit.mean(dim=0).to(directions.dtype))
        left_out = (1 - (unit @ rows.T).square().cumsum(dim=1)).clamp(min=0).sqrt()
        rows = rows[: int((left_out.amax(dim=0) > tolerance).sum()) + 1]
        shortened = cls(rows, unit.mean(dim=0) @ rows.T @ rows)
        worst = unit[shortened.residual(unit).norm(dim=-1).argmax()]
        return replace(shortened, own_share=float(shortened.share_outside(unit).max()), worst=worst).to(directions)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, like: Tensor) -> "Basis":
        """Return the basis on the device and in the precision of a tensor."""
        worst = None if self.worst is None else self.worst.to(like)
        return replace(self, rows=self.rows.to(like), centre=self.centre.to(like), worst=worst)

    def rows_and_residual(self) -> Float[Tensor, "rows_and_residual embed_dim"]:
        """Return the rows, and where they are not exact what they leave out of the worst text."""
        return self.rows if self.worst is None else torch.cat([self.rows, self.residual(self.worst)[None]])

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
        """Refuse directions that lie further outside the span than the set itself.

        Raises:
            SpanError: `share_outside` of one is above the tolerance.
        """
        worst = float(self.share_outside(directions).max())
        tolerance = max(tolerance, _SAME * self.own_share)
        if worst > tolerance:
            raise SpanError(
                f"a text lies outside the span of this stack's prompts (share {worst:.3g}, tolerance {tolerance:.3g}); "
                "a stack of basis 'prompts' answers texts of its span only; extract with stack.basis=axes, or add the "
                "text to the prompts."
            )
