"""The maps that are scored: of many texts on one picture, by each method and route."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from mapstack.aggregation import aggregate
from mapstack.errors import ConfigError
from mapstack.explainer import Explainer
from mapstack.images import Inputs, collate
from mapstack.methods import Method, Occlusion
from mapstack.models import EmbeddingModel
from mapstack.readouts import DirectionReadout
from mapstack.stack import OcclusionStack, Projectable, Stack
from train_like.evaluation.cases import Case
from train_like.evaluation.settings import Setting, members
from train_like.evaluation.texts import TextKey, Texts


@dataclass(frozen=True, eq=False)
class TextMaps:
    """The maps of many texts on one picture, linear in the text.

    Attributes:
        rows: Which map belongs to which text.
        values: Maps in logits per pixel (slopes for a gradient), model-input frame.
        difference: What a complete map of each text sums to [logit]; None for a method without a baseline.
    """

    rows: Mapping[TextKey, int]
    values: Float[Tensor, "n_texts height width"]
    difference: Float[Tensor, " n_texts"] | None = None

    def map_of(self, key: TextKey, against: TextKey | None = None) -> Float[Tensor, "height width"]:
        """Return the map of a text, or of a text rather than another: a linear method's maps subtract."""
        values = self.values[self.rows[key]]
        return values if against is None else values - self.values[self.rows[against]]

    def setting_map(
        self, setting: Setting, label: str, texts: Texts, rather_than: str | None = None
    ) -> Float[Tensor, "height width"]:
        """Return the map of a class label as a setting makes it, or of it rather than another, model-input frame."""
        key = TextKey(setting.text, label)
        against = texts.contrast(key) if setting.is_contrast else None
        values = self.map_of(key, TextKey(setting.text, rather_than) if rather_than else against)
        # The stack's absolute values were taken before the projection.
        if setting.sign == "absolute" and setting.route == "conventional":
            values = values.abs()
        return smoothed(values, setting.smoothing_px)


@dataclass(frozen=True, eq=False)
class AggregateMaps:
    """The maps of many texts on one picture by several methods together.

    Attributes:
        members: The maps by each method.
    """

    members: tuple[TextMaps, ...]

    def setting_map(
        self, setting: Setting, label: str, texts: Texts, rather_than: str | None = None
    ) -> Float[Tensor, "height width"]:
        """Return the map of a class label as a setting makes it, model-input frame; shares per pixel."""
        signed = replace(setting, sign="signed", smoothing_px=0.0)
        maps = torch.stack([member.setting_map(signed, label, texts, rather_than) for member in self.members])
        return smoothed(aggregate(maps), setting.smoothing_px)


class MapMaker:
    """Makes the maps of texts by each candidate.

    Args:
        model: Frozen.
        methods: Candidates by name; each linear in what it explains, so that maps of texts add and subtract.
        seed: Of every random draw.

    Raises:
        ConfigError: A candidate is not linear.
    """

    def __init__(self, model: EmbeddingModel, methods: Mapping[str, Method], seed: int) -> None:
        for name, method in methods.items():
            if not method.is_linear:
                raise ConfigError(
                    f"candidate '{name}' is not linear; candidates are signed and linear, and their absolute values "
                    "are scored beside them; name gradient in the place of saliency."
                )
        self.model = model
        self.methods = methods
        self.seed = seed
        self._direction_of = lru_cache(maxsize=4096)(self._embed)

    def inputs(self, case: Case) -> Inputs:
        """Return a picture as a batch of one, on the model's device."""
        return self._explainer(next(iter(self.methods)), normalize=True).cast(collate([case.prepared]))

    def only(self, names: Sequence[str]) -> "MapMaker":
        """Return the maker of some of the candidates."""
        return self._sharing(self.model, {name: self.methods[name] for name in names})

    def explaining(self, model: EmbeddingModel) -> "MapMaker":
        """Return the maker of the same maps of another model, whose text half is this one's."""
        return self._sharing(model, self.methods)

    def _sharing(self, model: EmbeddingModel, methods: Mapping[str, Method]) -> "MapMaker":
        """Keep the texts that were embedded: a hundred of them take longer than a picture."""
        made = MapMaker(model, methods, self.seed)
        made._direction_of = self._direction_of
        return made

    def serves_both(self, method: str) -> bool:
        """Say whether one stack, cheap along the axes, gives the maps of the raw and of the normalised embedding."""
        made = self.methods[method]
        return made.one_stack_serves_both or isinstance(made, Occlusion)

    def directions(self, texts: Mapping[TextKey, tuple[str, ...]]) -> Float[Tensor, "n_texts embed_dim"]:
        """Return `tau * T_p` of each text: the mean over its sentences."""
        return torch.stack(
            [torch.stack([self._direction_of(each) for each in group]).mean(dim=0) for group in texts.values()]
        )

    def direct(
        self,
        method: str,
        case: Case,
        texts: Mapping[TextKey, tuple[str, ...]],
        *,
        normalize: bool = True,
        seed: int | None = None,
    ) -> TextMaps:
        """Attribute the logits themselves: the conventional route; with `normalize=False` the raw dot products.

        For a method that is linear in what it explains this is also the projection of its stack (see `agreement`).
        """
        readout = DirectionReadout(self.directions(texts), embed_dim=self.model.embed_dim, normalize=normalize)
        made = self.methods[method]
        found = made.attribute(self.model, self.inputs(case), readout, seed=self.seed if seed is None else seed)
        difference = None
        if found.baseline_readout is not None:
            difference = (readout(found.embedding) - found.baseline_readout)[0].cpu()
        return TextMaps(_rows(texts), (made.density * found.values[0]).cpu(), difference)

    def conventional(
        self, methods: Sequence[str], case: Case, texts: Mapping[TextKey, tuple[str, ...]]
    ) -> dict[str, TextMaps | AggregateMaps]:
        """Attribute the logits by candidates and aggregates of candidates, each candidate once."""
        singles = dict.fromkeys(candidate for method in methods for candidate in members(method))
        made = {candidate: self.direct(candidate, case, texts) for candidate in singles}
        return {
            method: made[method] if method in made else AggregateMaps(tuple(made[each] for each in members(method)))
            for method in methods
        }

    def stack(self, method: str, case: Case, *, normalize: bool = True) -> Stack | OcclusionStack:
        """Return the stack of a picture along the axes."""
        return self._explainer(method, normalize).stack(self.inputs(case))

    def projected(self, stack: Projectable, texts: Mapping[TextKey, tuple[str, ...]]) -> TextMaps:
        """Project a stack on texts."""
        values = stack.density * stack.project(self.directions(texts))[0]
        return TextMaps(_rows(texts), values.cpu())

    def projected_absolute(self, stack: Projectable, texts: Mapping[TextKey, tuple[str, ...]]) -> TextMaps:
        """Project the absolute values of a stack on texts: `sum_i (tau * T_p)_i |F_i|`."""
        rows = stack.axis_maps()[0].abs()
        values = stack.density * torch.einsum("nd,dhw->nhw", self.directions(texts), rows)
        return TextMaps(_rows(texts), values.cpu())

    def _embed(self, text: str) -> Float[Tensor, " embed_dim"]:
        return self.model.text_directions([text])[0]

    def _explainer(self, method: str, normalize: bool) -> Explainer:
        return Explainer(self.model, self.methods[method], normalize=normalize, seed=self.seed)


def agreement(first: TextMaps, second: TextMaps) -> float:
    """Return the largest difference of two sets of maps, relative to the largest value."""
    return float((first.values - second.values).abs().max() / first.values.abs().max())


def smoothed(attribution: Float[Tensor, "height width"], sigma_px: float) -> Float[Tensor, "height width"]:
    """Smooth a map with a Gaussian, reflected at the borders, cut at three standard deviations."""
    if sigma_px == 0:
        return attribution
    side = 2 * math.ceil(3 * sigma_px) + 1
    # Columns, then rows: a kernel of two dimensions would cost a hundred times as much.
    by_column = gaussian_blur(attribution[None], [1, side], [sigma_px, sigma_px])
    return gaussian_blur(by_column, [side, 1], [sigma_px, sigma_px])[0]


def _rows(texts: Mapping[TextKey, tuple[str, ...]]) -> dict[TextKey, int]:
    return {key: row for row, key in enumerate(texts)}
