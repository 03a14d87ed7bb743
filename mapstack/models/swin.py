"""A Swin tower on many variants of one picture, computing only what differs between them and the picture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Float[Tensor, "pictures tokens width"]


@dataclass(frozen=True)
class _Step:
    """A layer that works on groups of tokens, none of which sees another group.

    Attributes:
        sources: The tokens that each group reads [groups, read].
        targets: The tokens of the next step that each group writes [groups, written].
        run: Takes the tokens of some groups [n, read, width] and the numbers of these groups [n]; returns what they
            write [n, written, width of the next step].
    """

    sources: Int[Tensor, "groups read"]
    targets: Int[Tensor, "groups written"]
    run: Callable[[Tensor, Tensor], Tensor]


class SwinVariants:
    """Embeds variants of one picture with a Swin tower.

    Where a variant equals the picture, so do its tokens, until attention carries a difference to them: to one window
    in each block. In the first stages most windows of a picture that was changed in one place are still the picture's
    own, and are taken from it.

    Args:
        tower: transformers' `SwinModel`.
        picture: In the model-input frame, three channels, of a size that `serves` the tower.
    """

    def __init__(self, tower: Any, picture: Float[Tensor, "3 height width"]) -> None:
        self._tower = tower
        self._picture = picture
        tokens, (side, _) = tower.embeddings(picture[None])
        self._steps = list(_steps(tower, side, tokens))
        self._tokens: list[Tensor] = []
        for step in self._steps:
            tokens, _ = _advance(step, tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool), None)
            self._tokens.append(tokens)

    @staticmethod
    def serves(tower: Any, picture: Float[Tensor, "channels height width"]) -> bool:
        """Say whether a picture is a square that the tower divides without padding, of which this class knows nothing.

        The windows of all stages divide theirs, too.
        """
        patch, n_stages, window = tower.config.patch_size, len(tower.config.depths), tower.config.window_size
        height, width = picture.shape[-2:]
        sides = [width // patch // 2**stage for stage in range(n_stages)]
        is_divisible = height == width and width % (patch * 2 ** (n_stages - 1)) == 0
        return is_divisible and all(side <= window or side % window == 0 for side in sides)

    def embed(self, variants: Float[Tensor, "variants 3 height width"]) -> Float[Tensor, "variants hidden_size"]:
        """Return what the tower pools of each variant, not differentiable."""
        patch = self._tower.config.patch_size
        differs = (variants != self._picture).any(dim=1)
        n_per_side = differs.shape[-1] // patch
        patches = differs.reshape(-1, n_per_side, patch, n_per_side, patch)
        changed = patches.any(dim=4).any(dim=2).flatten(1)
        tokens, _ = self._tower.embeddings(variants)
        for step, unchanged in zip(self._steps, self._tokens, strict=True):
            tokens, changed = _advance(step, tokens, changed, unchanged)
        pooled: Tensor = self._tower.pooler(self._tower.layernorm(tokens).transpose(1, 2))
        return pooled.flatten(1)


def _advance(
    step: _Step,
    tokens: Tokens,
    changed: Bool[Tensor, "pictures tokens"],
    unchanged: Float[Tensor, "1 after next_width"] | None,
) -> tuple[Tensor, Tensor]:
    """Run a step on the groups that a change has reached.

    Args:
        step: What is run.
        tokens: Before it.
        changed: Which of them differ from those of the picture.
        unchanged: The picture's own tokens after the step, for all other groups; None where there are none.

    Returns:
        The tokens after the step, and which of them differ.
    """
    pictures, groups = changed[:, step.sources].any(dim=-1).nonzero(as_tuple=True)
    n_after = step.targets.numel()
    after_changed = changed.new_zeros(len(tokens), n_after)
    if unchanged is not None and not len(groups):
        return unchanged.expand(len(tokens), -1, -1), after_changed
    written = step.run(tokens[pictures[:, None], step.sources[groups]], groups)
    if unchanged is None:
        after = written.new_empty(len(tokens), n_after, written.shape[-1])
    else:
        after = unchanged.repeat(len(tokens), 1, 1)
    places = (pictures[:, None], step.targets[groups])
    after[places], after_changed[places] = written, True
    return after, after_changed


def _steps(tower: Any, side: int, like: Tensor) -> Iterator[_Step]:
    """List the blocks of a tower and the mergings between its stages; `like` has its dtype and device."""
    for stage in tower.encoder.layers:
        for block in stage.blocks:
            block.set_shift_and_window_size((side, side))
            yield _block(block, side, like)
        if stage.downsample is not None:
            yield _merging(stage.downsample, side, like.device)
            side //= 2


def _block(block: Any, side: int, like: Tensor) -> _Step:
    """Return attention within windows, which where they are shifted see only what is adjacent, and the perceptron."""
    shift, window = block.shift_size, block.window_size
    numbers = torch.arange(side**2, device=like.device).view(side, side).roll((-shift, -shift), (0, 1))
    n_per_side = side // window
    windows = numbers.reshape(n_per_side, window, n_per_side, window).transpose(1, 2).reshape(-1, window**2)
    masks = block.get_attn_mask(side, side, like.dtype, like.device)

    def run(tokens: Tensor, groups: Tensor) -> Tensor:
        mask = None if masks is None else masks[groups]
        tokens = tokens + block.attention(block.layernorm_before(tokens), mask)[0]
        after: Tensor = tokens + block.output(block.intermediate(block.layernorm_after(tokens)))
        return after

    return _Step(windows, windows, run)


def _merging(merging: Any, side: int, device: torch.device) -> _Step:
    """Return what makes one token of two by two, taken column by column."""
    numbers = torch.arange(side**2, device=device).view(side // 2, 2, side // 2, 2)
    sources = numbers.permute(0, 2, 3, 1).reshape(-1, 4)

    def run(tokens: Tensor, groups: Tensor) -> Tensor:
        merged: Tensor = merging.reduction(merging.norm(tokens.flatten(1)))
        return merged[:, None]

    return _Step(sources, torch.arange(len(sources), device=device)[:, None], run)
