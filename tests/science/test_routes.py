"""Which way maps are made, and what the others would have cost."""

import pytest
import torch

from mapstack.errors import InputError
from mapstack.explainer import Explainer
from mapstack.methods import Gradient, IntegratedGradients, Occlusion, Saliency
from mapstack.prompts import TextGroup
from tests.toys import CurvedModel, random_pictures

MODEL = CurvedModel(embed_dim=12)


def groups(n: int) -> list[TextGroup]:
    return [TextGroup(f"text {number}", (f"text {number}",)) for number in range(n)]


@pytest.mark.parametrize(
    ("n_texts", "route", "costs"),
    [
        (1, "direct", {"direct": 1, "prompts": 1, "axes": 12}),
        (5, "direct", {"direct": 5, "prompts": 5, "axes": 12}),
        (20, "prompts", {"direct": 20, "prompts": 12, "axes": 12}),
    ],
)
def test_the_fewest_rows_are_taken_and_the_others_named(n_texts: int, route: str, costs: dict[str, int]) -> None:
    for method in (Gradient(), IntegratedGradients(n_steps=3)):
        explainer = Explainer(MODEL, method)
        plan = explainer.plan(explainer.readout(groups(n_texts)))
        assert (plan.route, plan.costs) == (route, costs)


def test_texts_that_say_the_same_share_their_rows() -> None:
    explainer = Explainer(MODEL, Gradient())
    same = [TextGroup(str(number), ("text 0", "text 1")) for number in range(6)]
    assert explainer.plan(explainer.readout(same)).costs["prompts"] <= 2
    assert explainer.plan(explainer.readout(same)).route == "prompts"


def test_what_is_asked_for_is_done_where_it_can_be() -> None:
    linear, absolute, sweep = (Explainer(MODEL, method) for method in (Gradient(), Saliency(), Occlusion(4, 4)))
    readout = linear.readout(groups(2))
    assert [linear.plan(readout, route).route for route in ("direct", "prompts", "axes")] == [
        "direct",
        "prompts",
        "axes",
    ]
    assert absolute.plan(readout).costs == {"axes": 12}
    assert [sweep.plan(readout, route).route for route in ("auto", "direct", "prompts")] == ["axes", "direct", "axes"]
    assert sweep.plan(readout).costs == {"direct": 0, "axes": 0}
    with pytest.raises(InputError, match="route 'direct' was asked of method 'saliency', which is not linear"):
        absolute.plan(readout, "direct")


@pytest.mark.parametrize("n_texts", [2, 20])
def test_the_planned_rows_are_those_that_are_made(n_texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = Explainer(MODEL, Gradient())
    readout = explainer.readout(groups(n_texts))
    made: list[int] = []
    attribute = Gradient.attribute

    def note(self: Gradient, model: object, inputs: object, readout: torch.nn.Module, **rest: object) -> object:
        made.append(readout.n_rows)
        return attribute(self, model, inputs, readout, **rest)

    monkeypatch.setattr(Gradient, "attribute", note)
    explainer.explain(random_pictures(MODEL, 1), groups(n_texts))
    plan = explainer.plan(readout)
    assert made == [plan.costs[plan.route]]
