"""Which method a request gets: one that the server configured, with few parameters of its own, at a bounded cost."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from mapstack.baselines import BASELINES
from mapstack.endpoint.refusals import Refusal, unknown_choice
from mapstack.endpoint.settings import EndpointConfig
from mapstack.methods import CaptumMethod, GradientShap, IntegratedGradients, Method, Occlusion

_MAX_POINTS = 1000


def _is_number(least: int, most: int, kind: type = int) -> Callable[[object], bool]:
    def fits(value: object) -> bool:
        is_kind = isinstance(value, int | float) if kind is float else isinstance(value, int)
        return is_kind and not isinstance(value, bool) and least <= cast(float, value) <= most

    return fits


def _is_steps(value: object) -> bool:
    return value == "auto" or _is_number(1, _MAX_POINTS)(value)


def _is_baseline(value: object) -> bool:
    return isinstance(value, str) and value in BASELINES


_WHOLE, _SIDE = f"a whole number from 1 to {_MAX_POINTS}", "a whole number of pixels from 1 to 1024"
_BASELINE = f"one of {', '.join(BASELINES)}"
# What a request may set, and nothing else: other parameters name files and classes, or cut the work into passes.
_ALLOWED: dict[type[Method], dict[str, tuple[Callable[[object], bool], str]]] = {
    IntegratedGradients: {
        "n_steps": (_is_steps, _WHOLE + ", or auto"),
        "baseline": (_is_baseline, _BASELINE),
    },
    GradientShap: {
        "n_samples": (_is_number(1, _MAX_POINTS), _WHOLE),
        "stdevs": (_is_number(0, 10, float), "a number from 0 to 10"),
    },
    Occlusion: {
        "sliding_window_shapes": (_is_number(1, 1024), _SIDE),
        "strides": (_is_number(1, 1024), _SIDE),
        "baseline": (_is_baseline, _BASELINE),
    },
}


def choose_method(block: object, config: EndpointConfig) -> tuple[str, Method]:
    """Return the method that a request names, with the parameters that it may set.

    Args:
        block: A name, or an object with `name` and parameters.
        config: Says which methods there are.

    Returns:
        Its name on this server, and the method.

    Raises:
        Refusal: The name or a parameter is unknown or wrong.
    """
    if isinstance(block, Mapping):
        name, parameters = block.get("name"), {key: value for key, value in block.items() if key != "name"}
    else:
        name, parameters = block, {}
    if not isinstance(name, str) or name not in config.methods:
        raise Refusal("unknown_method", unknown_choice("method", name, list(config.methods)), field="method")
    method: Method = config.methods[name]
    allowed = _ALLOWED.get(type(method), {})
    for key, value in parameters.items():
        if key not in allowed:
            known = ", ".join(allowed) or "none"
            raise Refusal(
                "unknown_field",
                f"a parameter ({len(key)} characters) of method '{name}' is unknown; a request may set: {known}; "
                "leave it out.",
                field="method",
            )
        fits, rule = allowed[key]
        if not fits(value):
            raise Refusal(
                "bad_value",
                f"parameter '{key}' of method '{name}' is wrong ({type(value).__name__}); it is {rule}; correct it.",
                field="method",
            )
    return name, cast(Method, dataclasses.replace(cast(Any, method), **parameters)) if parameters else method


def require_affordable(method: Method, n_rows: int, *, image_size: int, max_passes: int) -> None:
    """Refuse what would keep the server busy for too long.

    Args:
        method: What is run.
        n_rows: Along how many directions.
        image_size: Side of the model-input frame [px].
        max_passes: The limit.

    Raises:
        Refusal: It takes more passes.
    """
    if isinstance(method, Occlusion):
        n_passes = len(method.windows(image_size))
        way_out = "use a larger stride"
    else:
        n_passes = n_rows * _n_points(method)
        way_out = "use fewer n_steps or n_samples, or route=direct or route=prompts"
    if n_passes > max_passes:
        raise Refusal(
            "too_costly",
            f"this takes {n_passes} gradients or runs of the model; a request may cost {max_passes}; {way_out}.",
            field="method",
        )


def _n_points(method: Method) -> int:
    if isinstance(method, IntegratedGradients):
        return method.n_steps if isinstance(method.n_steps, int) else method.max_steps
    if isinstance(method, CaptumMethod):
        return method.n_points
    return method.n_samples if isinstance(method, GradientShap) else 1
