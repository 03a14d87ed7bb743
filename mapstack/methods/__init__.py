"""The attribution methods by name. A new one is a file beside this and a line in the table."""

from mapstack.errors import ConfigError, unknown_name
from mapstack.methods.base import Attribution, Completeness, Method
from mapstack.methods.captum import CaptumMethod
from mapstack.methods.gradient import Gradient, Saliency
from mapstack.methods.occlusion import Occlusion, Sweep, Windows
from mapstack.methods.path import GradientShap, IntegratedGradients

__all__ = [
    "METHODS",
    "Attribution",
    "CaptumMethod",
    "Completeness",
    "Gradient",
    "GradientShap",
    "IntegratedGradients",
    "Method",
    "Occlusion",
    "Saliency",
    "Sweep",
    "Windows",
    "make_method",
]

METHODS: dict[str, type[Method]] = {
    each.name: each for each in (Gradient, Saliency, Occlusion, IntegratedGradients, GradientShap, CaptumMethod)
}


def make_method(name: str, **parameters: object) -> Method:
    """Make a method from its name and its own parameters.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in METHODS:
        raise ConfigError(unknown_name("method", name, tuple(METHODS)))
    return METHODS[name](**parameters)
