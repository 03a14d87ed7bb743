"""Which way the maps of known texts are made, and what the other ways would have cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mapstack.basis import Basis
from mapstack.errors import InputError
from mapstack.methods import Method, Occlusion
from mapstack.readouts import TextReadout

Route = Literal["auto", "direct", "prompts", "axes"]


@dataclass(frozen=True)
class Plan:
    """A choice of route.

    Attributes:
        route: "direct", "prompts" or "axes".
        costs: Of each route that is open to the method: rows that are attributed for a picture, hence vector-Jacobian
            products at each point of a path. Occlusion's rows come from one sweep, whatever their number: 0.
    """

    route: Literal["direct", "prompts", "axes"]
    costs: Mapping[str, int]


def plan_route(method: Method, readout: TextReadout, embed_dim: int, route: Route) -> Plan:
    """Choose how to make the maps of texts that are known, or check the choice that was made.

    A method that is not linear takes the axes, and so does occlusion, whose one sweep answers every text; of the
    others "auto" takes the way of fewest rows, and the first of `direct`, `prompts`, `axes` where they are equal.

    Args:
        method: What is run.
        readout: The texts.
        embed_dim: Rows of the stack along the axes.
        route: "auto", or what was asked for.

    Raises:
        InputError: Another route than the axes was asked of a method that is not linear.
    """
    if not method.is_linear:
        if route in ("direct", "prompts"):
            raise InputError(
                f"route '{route}' was asked of method '{method.name}', which is not linear; such a method takes the "
                "axes only; use route=axes or route=auto."
            )
        return Plan("axes", {"axes": embed_dim})
    if isinstance(method, Occlusion):
        is_direct = route == "direct"
        return Plan("direct" if is_direct else "axes", {"direct": 0, "axes": 0})
    costs = {"direct": readout.n_rows, "prompts": len(Basis.of(readout.span)), "axes": embed_dim}
    if route != "auto":
        return Plan(route, costs)
    routes: tuple[Literal["direct", "prompts", "axes"], ...] = ("direct", "prompts", "axes")
    return Plan(min(routes, key=lambda way: costs[way]), costs)
