"""The ways to make a map: method, route, sign, text form, contrast and smoothing."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import product
from typing import Literal, cast

from mapstack.methods import Method

Route = Literal["conventional", "stack_normalised", "stack_raw"]
Sign = Literal["signed", "absolute", "positive"]
Form = Literal["label", "prompt", "ensemble"]

FORMS: tuple[Form, ...] = ("label", "prompt", "ensemble")

REFERENCE = "reference"
"""The route of maps that look at no model."""

_JOIN = " + "


@dataclass(frozen=True)
class Setting:
    """One way to make a map for a finding.

    Attributes:
        method: Name of the candidate (see `method_names`), of an aggregate of some, or of a reference method.
        route: "conventional" is the final output; the others are the paper's stack of the normalised or raw embedding.
        sign: "absolute" takes |attribution| of what the route attributes: of the final output, or of each dimension
            of the embedding before the projection. "positive" is what an aggregate keeps.
        text: The class label, one sentence, or the mean over the sentences of the class.
        is_contrast: Whether the text of a normal picture is subtracted.
        smoothing_px: Standard deviation of the Gaussian that the map is smoothed by [px of the model-input frame].
    """

    method: str
    route: str
    sign: str = "signed"
    text: str = "ensemble"
    is_contrast: bool = False
    smoothing_px: float = 0.0

    @property
    def name(self) -> str:
        """What a table shows.

        Example:
            >>> Setting("occlusion", "conventional", text="label", is_contrast=True).name
            'occlusion, conventional, signed, label, contrast'
        """
        if self.route == REFERENCE:
            return self.method
        parts = [self.method, self.route.replace("_", " "), self.sign, self.text]
        parts += ["contrast"] * self.is_contrast
        parts += [f"smoothed {self.smoothing_px:g} px"] * (self.smoothing_px > 0)
        return ", ".join(parts)

    @property
    def key(self) -> str:
        """What a journal writes; `parse` reads it back."""
        return "|".join(str(part) for part in astuple(self))

    @classmethod
    def parse(cls, key: str) -> "Setting":
        """Read a key.

        Example:
            >>> setting = Setting("occlusion", "stack_raw", "absolute", "label", True, 6.0)
            >>> Setting.parse(setting.key) == setting
            True
        """
        method, route, sign, text, is_contrast, smoothing_px = key.split("|")
        return cls(method, route, sign, text, is_contrast == "True", float(smoothing_px))


def settings_of(method: str, route: Route, sign: Sign, smoothings_px: Sequence[float]) -> list[Setting]:
    """Return every text form, plain and in contrast, at every smoothing."""
    return [
        Setting(method, route, sign, text, is_contrast, float(smoothing_px))
        for text, is_contrast, smoothing_px in product(FORMS, (False, True), smoothings_px)
    ]


def method_names(methods: Sequence[Method]) -> dict[str, Method]:
    """Name candidates by their method and by the parameters in which those of one method differ.

    Example:
        >>> from mapstack.methods import make_method
        >>> candidates = [make_method("gradient"), make_method("occlusion", baseline="black")]
        >>> list(method_names([*candidates, make_method("occlusion", baseline="blur")]))
        ['gradient', 'occlusion (black)', 'occlusion (blur)']
    """
    named: dict[str, Method] = {}
    for method in methods:
        siblings = [other for other in methods if other.name == method.name]
        differing = [
            each.name
            for each in fields(cast("type", type(method)))
            if len({str(getattr(other, each.name)) for other in siblings}) > 1
        ]
        values = ", ".join(str(getattr(method, name)) for name in differing)
        named[f"{method.name} ({values})" if values else method.name] = method
    return named


def aggregate_name(candidates: Sequence[str]) -> str:
    """Return the name of the aggregate of some candidates."""
    return _JOIN.join(candidates)


def members(method: str) -> tuple[str, ...]:
    """Return the candidates whose maps a map is made of.

    Example:
        >>> members("occlusion + gradient"), members("gradient")
        (('occlusion', 'gradient'), ('gradient',))
    """
    return tuple(method.split(_JOIN))


def family(method: str) -> str:
    """Return the method's name without its parameters.

    Example:
        >>> family("occlusion (black)")
        'occlusion'
    """
    return method.partition(" (")[0]
