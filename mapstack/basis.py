"""The directions of a stack that is not along the D unit axes: the span of a prompt set, or rows fitted to pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.errors import InputError, SpanError

# Text embeddings are float32 sums of thousands of terms: below this share of the largest, a singular value is rounding.
_RANK_TOLERANCE = 1e-6
_ORTHONORMAL = 1e-4
_SAME = 1.001  # the set itself, embedded on another machine
_N_CHECKS = 4  # they tell the error of a fitted basis to about a quarter of itself (benchmarks/few_rows.py)


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of the span of a prompt set, or of what the stacks of some pictures have in common.

    Attributes:
        rows: Orthonormal rows, without the temperature.
        centre: The mean of the set's unit-length text embeddings, as far as it lies in the span. Texts of one model
            lie close to their mean, so that every text looks well covered unless the mean is taken off first.
        own_share: The largest `share_outside` of the set itself: 0 unless a tolerance has shortened the basis.
        worst: Where it has, the text of the set of which most is left out, of unit length.
        checks: Where the basis is fitted to pictures, random directions of what it leaves out: what is attributed to
            them tells the error of a picture's maps. Such a basis answers any text.
    """

    rows: Float[Tensor, "rows embed_dim"]
    centre: Float[Tensor, " embed_dim"]
    own_share: float = 0.0
    worst: Float[Tensor, " embed_dim"] | None = None
    checks: Float[Tensor, "checks embed_dim"] | None = None

    @classmethod
    def of_pictures(cls, rows: Float[Tensor, "rows embed_dim"]) -> "Basis":
        """Return a basis of rows that were fitted to pictures (see `fit_rows`).

        Raises:
            InputError: The rows are not orthonormal.
        """
        exact = rows.double()
        identity = torch.eye(len(rows), dtype=torch.float64)
        if not 0 < len(rows) <= rows.shape[-1] or not (exact @ exact.T - identity).abs().max() < _ORTHONORMAL:
            raise InputError(
                f"rows of shape {tuple(rows.shape)} are no basis; they must be orthonormal, float32 [rows, embed_dim]; "
                "make them with the command basis."
            )
        # What a random direction leaves behind has, on average, the energy of all that is left out.
        drawn = torch.randn(_N_CHECKS, rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        checks = drawn - drawn @ exact.T @ exact
        return cls(rows, torch.zeros_like(rows[0]), checks=checks.to(rows.dtype))

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
        worst, checks = (None if each is None else each.to(like) for each in (self.worst, self.checks))
        return replace(self, rows=self.rows.to(like), centre=self.centre.to(like), worst=worst, checks=checks)

    @property
    def name(self) -> str:
        """What `stack.basis` calls it."""
        return "prompts" if self.checks is None else "pictures"

    def rows_and_residual(self) -> Float[Tensor, "rows_and_residual embed_dim"]:
        """Return the rows, and where they are not exact directions of what they leave out, for `split_off_residual`."""
        residual = self.checks
        if self.worst is not None:
            residual = self.residual(self.worst)[None]
        return self.rows if residual is None else torch.cat([self.rows, residual])

    def split_off_residual(
        self, values: Float[Tensor, "batch rows_and_residual height width"]
    ) -> tuple[Float[Tensor, "batch rows height width"], tuple[float, ...]]:
        """Return the attributions of the rows, and what each picture's maps lose, as a share of their root mean square.

        For prompts, the map of the text of which most is left out; for pictures, the maps of all texts (estimated).
        Nothing is said where the basis is exact.
        """
        kept, left_out = values[:, : len(self)], values[:, len(self) :].flatten(2)
        # A picture that is its own baseline has maps of zeros, of which nothing is lost.
        if self.worst is not None:
            lost = left_out[:, 0].norm(dim=1)
            whole = torch.einsum("r,brhw->bhw", self.coordinates(self.worst), kept).flatten(1) + left_out[:, 0]
            return kept, tuple((lost / whole.norm(dim=1).clamp_min(torch.finfo(lost.dtype).tiny)).tolist())
        if self.checks is not None:
            energy = left_out.double().square().sum(dim=2).mean(dim=1)
            whole_energy = kept.double().square().flatten(1).sum(dim=1) + energy
            return kept, tuple((energy / whole_energy.clamp_min(torch.finfo(energy.dtype).tiny)).sqrt().tolist())
        return kept, ()

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
        if self.checks is not None:
            return
        worst = float(self.share_outside(directions).max())
        tolerance = max(tolerance, _SAME * self.own_share)
        if not worst <= tolerance:
            raise SpanError(
                f"a text lies outside the span of this stack's prompts (share {worst:.3g}, tolerance {tolerance:.3g}); "
                "a stack of basis 'prompts' answers texts of its span only; extract with stack.basis=axes, or add the "
                "text to the prompts."
            )


def fit_rows(
    grams: Sequence[Float[Tensor, "embed_dim embed_dim"]], tolerance: float
) -> tuple[Float[Tensor, "rows embed_dim"], list[float]]:
    """Find the directions in which the stacks of pictures have nearly all of their energy.

    Args:
        grams: Of each picture's stack S along the axes, `S @ S.T`; at least two.
        tolerance: Largest error of a picture's maps, over all texts (Frobenius norm), that may be left.

    Returns:
        Orthonormal rows, strongest first, as many as keep the tolerance for every picture whose own stack is left out
        of the fit; and that error of the worst picture for every number of rows, from 0 to D.

    Raises:
        InputError: There are fewer than two pictures, or one without any attribution.
    """
    shares = [gram.double() / gram.double().trace() for gram in grams]
    if len(shares) < 2 or not all(bool(share.isfinite().all()) for share in shares):
        raise InputError(
            f"{len(grams)} pictures cannot be fitted; two or more are needed, each with a map that is not zero; raise "
            "data.limit."
        )
    whole = torch.stack(shares).sum(dim=0)
    left_out = []
    for share in shares:
        others = torch.linalg.eigh(whole - share)[1].flip(1)
        kept = torch.einsum("dr,de,er->r", others, share, others).cumsum(0)
        left_out.append(torch.cat([torch.ones(1, dtype=kept.dtype), (1 - kept).clamp_min(0)]).sqrt())
    errors = torch.stack(left_out).amax(dim=0)
    errors[-1] = 0.0
    n_rows = max(1, int((errors > tolerance).sum()))
    return torch.linalg.eigh(whole)[1].flip(1)[:, :n_rows].T.float().contiguous(), errors.tolist()
