"""The stack: the attributions along a basis of the embedding space, and their projection on any text.

`Stack` is the paper's: one map a direction. `OcclusionStack` is the same in factored form. Both answer
`project(directions)` with one map a direction and picture, `F_out = sum_i (tau * T_p)_i F_i`.
"""

import abc
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from mapstack.basis import Basis
from mapstack.codecs import weighted_sums
from mapstack.errors import InputError
from mapstack.geometry import reduce_area
from mapstack.methods.occlusion import Sweep
from mapstack.models.base import normalised

Directions = Float[Tensor, "n_prompts embed_dim"] | Float[Tensor, "batch n_prompts embed_dim"]


@dataclass(frozen=True)
class Projectable(abc.ABC):
    """What the two forms of a stack share: the numbers that their maps explain.

    Attributes:
        embedding: Raw `I_p` of each picture.
        normalize: Whether maps explain `direction . I_p / |I_p|`, MedCLIP's logit, or the raw dot product.
        n_steps: Points used for each picture; empty for a method without a path.
        is_converged: Whether `n_steps: auto` met its tolerance for each picture; empty where points were fixed.
    """

    embedding: Float[Tensor, "batch embed_dim"]
    normalize: bool
    n_steps: tuple[int, ...] = field(default=(), kw_only=True)
    is_converged: tuple[bool, ...] = field(default=(), kw_only=True)

    @abc.abstractmethod
    def project(self, directions: Directions) -> Float[Tensor, "batch n_prompts height width"]:
        """Return the map of each direction; directions are shared by the pictures or given for each."""

    @abc.abstractmethod
    def read_baseline(self) -> Float[Tensor, "batch embed_dim"] | None:
        """Return what maps read at the baseline, or None for a method without one."""

    def axis_maps(self) -> Float[Tensor, "batch embed_dim height width"]:
        """Return the map of each dimension of the embedding that maps read: the `F_i` of the paper."""
        return self.project(torch.eye(self.embedding.shape[1]).to(self.embedding))

    @property
    def density(self) -> float:
        """What a map is multiplied by for its sum to be in logits."""
        return 1.0

    def read_picture(self) -> Float[Tensor, "batch embed_dim"]:
        """Return what maps read at the picture."""
        return normalised(self.embedding) if self.normalize else self.embedding

    def logits(self, directions: Directions) -> Float[Tensor, "batch n_prompts"]:
        """Return the model's logit for each direction `tau * T_p`: always of the normalised embedding."""
        return _dot(directions, normalised(self.embedding))

    def difference(self, directions: Directions) -> Float[Tensor, "batch n_prompts"] | None:
        """Return what a complete map sums to: the explained number at the picture less that at the baseline."""
        baseline = self.read_baseline()
        return None if baseline is None else _dot(directions, self.read_picture() - baseline)

    def residual(
        self, maps: Float[Tensor, "batch n_prompts height width"], directions: Directions
    ) -> Float[Tensor, "batch n_prompts"] | None:
        """Return by how much the maps' sums, times `density`, miss the difference that they explain [logit]."""
        difference = self.difference(directions)
        return None if difference is None else self.density * maps.sum(dim=(-2, -1)) - difference


@dataclass(frozen=True)
class Stack(Projectable):
    """Attributions along the rows of a basis, dense or as a product of two factors.

    Attributes:
        values: Attributions, model-input frame, reduced to `map_size` by area sums; of a store as they are kept there.
        basis: The directions of the rows; None for the D unit axes.
        baseline_embedding: What was read at the baseline, of unit length where `normalize`; None without one.
        is_raw: Whether `values` are of the raw embedding although maps explain the normalised one. The gradient's
            stack is kept so, because it serves both (see `_tangent`).
        mixing: The weights with which `values` make the rows; None where they are the rows.
        map_error: What a basis that is not exact loses of each picture's maps, as a share of their root mean square:
            see `Basis.split_off_residual`.
        scale: What the rows of `values` are multiplied by; None for 1.
    """

    values: Float[Tensor, "batch rows height width"] | Int8[Tensor, "batch rows height width"]
    basis: Basis | None = None
    baseline_embedding: Float[Tensor, "batch embed_dim"] | None = None
    is_raw: bool = False
    mixing: Float[Tensor, "batch basis_rows rows"] | None = None
    map_error: tuple[float, ...] = field(default=(), kw_only=True)
    scale: Float[Tensor, "batch rows"] | None = field(default=None, kw_only=True)

    def __getitem__(self, pictures: slice) -> "Stack":
        """Return the stack of some of the pictures."""
        mixing, scale, baseline = self.mixing, self.scale, self.baseline_embedding
        return replace(
            self,
            values=self.values[pictures],
            mixing=None if mixing is None else mixing[pictures],
            scale=None if scale is None else scale[pictures],
            embedding=self.embedding[pictures],
            baseline_embedding=None if baseline is None else baseline[pictures],
            n_steps=self.n_steps[pictures],
            is_converged=self.is_converged[pictures],
            map_error=self.map_error[pictures],
        )

    def explaining(self, *, normalize: bool) -> "Stack":
        """Return the stack that explains the normalised or the raw embedding.

        Raises:
            InputError: This stack serves only the one that it was made for.
        """
        if normalize != self.normalize and not self.is_raw:
            raise InputError(
                f"stack was made with normalize={self.normalize}, normalize={normalize} was asked; only a gradient or "
                "occlusion stack along the axes serves both; extract again with the other."
            )
        return replace(self, normalize=normalize)

    def project(self, directions: Directions) -> Float[Tensor, "batch n_prompts height width"]:
        """Return the map of each direction: the weighted sum of the stack's rows."""
        per_picture = directions.expand(len(self.embedding), -1, -1)
        if self.is_raw and self.normalize:
            per_picture = _tangent(per_picture, self.embedding)
        weights = per_picture if self.basis is None else self.basis.coordinates(per_picture)
        if self.mixing is not None:
            weights = weights @ self.mixing
        if self.scale is not None:
            weights = weights * self.scale[:, None]
        return weighted_sums(weights, self.values)

    def axis_maps(self) -> Float[Tensor, "batch embed_dim height width"]:
        """Return the map of each dimension of the embedding: the rows themselves, where the basis is the axes."""
        if self.basis is not None or self.mixing is not None or self.scale is not None:
            return super().axis_maps()
        if not (self.is_raw and self.normalize):
            return self.values
        # `_tangent` of every axis at once: a correction of rank one.
        unit = normalised(self.embedding)
        along = torch.einsum("bd,bdhw->bhw", unit, self.values)
        length = self.embedding.norm(dim=-1)[:, None, None, None]
        return (self.values - unit[:, :, None, None] * along[:, None]) / length

    def read_baseline(self) -> Float[Tensor, "batch embed_dim"] | None:
        """Return what maps read at the baseline."""
        return self.baseline_embedding

    def missing_share(self, directions: Directions) -> Float[Tensor, "batch n_prompts"]:
        """Return the share of the explained difference that lies outside the span of the basis."""
        per_picture = directions.expand(len(self.embedding), -1, -1)
        baseline = self.read_baseline()
        if self.basis is None or baseline is None:
            return per_picture.new_zeros(per_picture.shape[:2])
        change = self.read_picture() - baseline
        whole, outside = _dot(per_picture, change).abs(), _dot(self.basis.residual(per_picture), change).abs()
        return outside / whole.clamp(min=torch.finfo(whole.dtype).eps)


@dataclass(frozen=True)
class OcclusionStack(Projectable):
    """The factored stack of occlusion: raw embeddings of one sweep, exact for every text, raw and normalised alike.

    Attributes:
        sweep: The embeddings, one a window.
        map_size: Side of the maps that `project` gives.
    """

    sweep: Sweep
    map_size: int

    def __getitem__(self, pictures: slice) -> "OcclusionStack":
        """Return the stack of some of the pictures."""
        part = replace(
            self.sweep,
            embedding=self.sweep.embedding[pictures],
            occluded=self.sweep.occluded[pictures],
            at_baseline=self.sweep.at_baseline[pictures],
        )
        return replace(self, embedding=part.embedding, sweep=part)

    @property
    def density(self) -> float:
        """What a map is multiplied by for each window's score to be counted once."""
        return self.sweep.windows.density

    def explaining(self, *, normalize: bool) -> "OcclusionStack":
        """Return the stack that explains the normalised or the raw embedding."""
        return replace(self, normalize=normalize)

    def project(self, directions: Directions) -> Float[Tensor, "batch n_prompts height width"]:
        """Return the map of each direction: the fall of its dot product under each window, spread over pixels."""
        per_picture = directions.expand(len(self.embedding), -1, -1)
        fallen = self.read_picture()[:, None] - self._read(self.sweep.occluded)
        scores = torch.einsum("bnd,bwd->bnw", per_picture, fallen)
        return reduce_area(self.sweep.windows.expand(scores), self.map_size)

    def read_baseline(self) -> Float[Tensor, "batch embed_dim"]:
        """Return what maps read at the baseline."""
        return self._read(self.sweep.at_baseline)

    def _read(self, embedding: Tensor) -> Tensor:
        return normalised(embedding) if self.normalize else embedding


def _dot(directions: Directions, read: Float[Tensor, "batch embed_dim"]) -> Float[Tensor, "batch n_prompts"]:
    return torch.einsum("bnd,bd->bn", directions.expand(len(read), -1, -1), read)


def _tangent(
    directions: Float[Tensor, "batch n_prompts embed_dim"], embedding: Float[Tensor, "batch embed_dim"]
) -> Float[Tensor, "batch n_prompts embed_dim"]:
    """Return the directions whose raw gradient is the gradient of the normalised dot product.

    With y = I_p, d(T . y/|y|) = (T - (T . y) y/|y|^2)/|y| . dy: exact for gradients, and for nothing that moves y far.
    """
    length = embedding.norm(dim=-1)[:, None, None]
    unit = normalised(embedding)[:, None]
    return (directions - (directions * unit).sum(dim=-1, keepdim=True) * unit) / length
