"""mapstack shows which pixels of a chest X-ray made MedCLIP's score for a text.

The names below load on first use, so that `import mapstack.store` costs no import of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mapstack._version import __version__

if TYPE_CHECKING:
    from mapstack.explainer import Explainer, Explanation, explain
    from mapstack.models import load_model

__all__ = ["Explainer", "Explanation", "__version__", "explain", "load_model"]

_HOMES = {
    "Explainer": "mapstack.explainer",
    "Explanation": "mapstack.explainer",
    "explain": "mapstack.explainer",
    "load_model": "mapstack.models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mapstack' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
