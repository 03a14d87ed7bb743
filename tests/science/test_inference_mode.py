"""A caller in inference mode, such as a server, gets the maps of one that is not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mapstack
from mapstack.explainer import Explainer, Explanation
from mapstack.images import collate
from mapstack.methods import Gradient, IntegratedGradients, Method
from mapstack.models import load_model
from mapstack.prompts import TextGroup
from mapstack.readouts import DirectionReadout
from mapstack.routes import Route
from tests.toys import CurvedModel, random_pictures

GROUPS = [TextGroup("mean", ("a", "b"), against=("c",)), TextGroup("max", ("a", "d"), "max"), TextGroup("e", ("e",))]
MODEL = CurvedModel()
METHODS = (Gradient(), IntegratedGradients(n_steps="auto", max_steps=16))


def differing(explain: Callable[[], list[Explanation]]) -> float:
    outside = explain()
    with torch.inference_mode():
        inside = explain()
    pairs = zip(outside, inside, strict=True)
    assert all(expected.maps.abs().max() > 0 for expected in outside)
    return max(float((found.maps - expected.maps).abs().max()) for expected, found in pairs)


@pytest.mark.parametrize("route", ["direct", "prompts", "axes"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_route_answers_in_inference_mode(method: Method, route: Route) -> None:
    def explain() -> list[Explanation]:
        return Explainer(MODEL, method).explain(random_pictures(MODEL), GROUPS, route)

    assert differing(explain) == 0


def test_the_final_output_is_explained_in_inference_mode() -> None:
    def explain() -> list[Explanation]:
        return Explainer(MODEL, Gradient()).explain_conventionally(random_pictures(MODEL), GROUPS)

    assert differing(explain) == 0


@pytest.mark.parametrize("route", ["direct", "prompts", "axes"])
def test_the_python_door_opens_in_inference_mode(small_checkpoint: Path, route: Route) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)

    def explain() -> list[Explanation]:
        given = {"checkpoint": small_checkpoint, "route": route, "method": Gradient(rows_per_pass=512)}
        return [mapstack.explain(picture, ["left lung", "no nodule"], **given)]

    assert differing(explain) == 0


def test_directions_that_were_made_in_inference_mode_are_attributed() -> None:
    explainer = Explainer(MODEL, Gradient())
    with torch.inference_mode():
        directions = torch.eye(6, dtype=torch.float64)[:2] + 0
        readout = DirectionReadout(directions, embed_dim=6)
    found = Gradient().attribute(MODEL, explainer.cast(collate(random_pictures(MODEL))), readout)
    assert found.values.abs().max() > 0


def test_a_model_that_was_loaded_in_inference_mode_has_gradients(small_checkpoint: Path) -> None:
    with torch.inference_mode():
        model = load_model("medclip-vit", small_checkpoint)
    picture = np.full((40, 40), 90, dtype=np.uint8)
    assert mapstack.explain(picture, ["heart"], model=model, method="gradient").maps.abs().max() > 0
