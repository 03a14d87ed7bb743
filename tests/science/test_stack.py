"""The stack, its projection, the three routes, and what every answer says of itself."""

import dataclasses

import pytest
import torch
from torch import Tensor

from mapstack.basis import Basis
from mapstack.errors import InputError, SpanError
from mapstack.explainer import Explainer, Explanation
from mapstack.methods import CaptumMethod, Gradient, GradientShap, IntegratedGradients, Method, Occlusion, Saliency
from mapstack.prompts import TextGroup
from mapstack.routes import Route
from mapstack.stack import Stack
from tests.toys import CurvedModel, LinearModel, random_inputs, random_pictures

LINEAR: list[Method] = [
    Gradient(),
    IntegratedGradients(n_steps=3, baseline="white"),
    GradientShap(n_samples=3),
    Occlusion(sliding_window_shapes=4, strides=3),
    CaptumMethod(attribution="captum.attr.InputXGradient", linear=True),
]
TEXTS = ("left effusion", "a nodule", "no nodule", "heart")
GROUPS = (
    TextGroup("effusion", TEXTS[:1]),
    TextGroup("mean of two", TEXTS[1:3], "mean"),
    TextGroup("contrast", TEXTS[:2], "mean", against=TEXTS[2:]),
)
MAXIMUM = (TextGroup("best", TEXTS, "max"),)
linear_methods = pytest.mark.parametrize("method", LINEAR, ids=lambda each: each.name)


def maps_of(answers: list[Explanation]) -> Tensor:
    return torch.stack([answer.maps for answer in answers])


@linear_methods
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_three_routes_agree(method: Method, normalize: bool, dtype: torch.dtype, tolerance: float) -> None:
    model = CurvedModel(embed_dim=12).to(dtype)
    explainer = Explainer(model, method, normalize=normalize)
    routes: list[Route] = ["axes", "prompts", "direct"]
    axes, prompts, direct = (maps_of(explainer.explain(random_pictures(model), GROUPS, route)) for route in routes)
    scale = axes.abs().amax(dim=(-2, -1), keepdim=True)
    assert ((prompts - axes).abs() / scale).max() <= tolerance
    assert ((direct - axes).abs() / scale).max() <= tolerance


def test_the_map_is_the_weighted_sum_of_the_rows() -> None:
    model = LinearModel()
    stack = Explainer(model, Saliency(), normalize=False).stack(random_inputs(2, model))
    assert isinstance(stack, Stack)
    directions = model.text.text_directions(TEXTS[:2]).double()
    by_hand = sum(directions[1, i] * stack.values[0, i] for i in range(model.embed_dim))
    torch.testing.assert_close(stack.project(directions)[0, 1], by_hand)


@linear_methods
def test_prompt_order_and_batch_mates_do_not_matter(method: Method) -> None:
    model = CurvedModel()
    explainer = Explainer(model, method)
    together = maps_of(explainer.explain(random_pictures(model), GROUPS, "axes"))
    backwards = maps_of(explainer.explain(random_pictures(model)[::-1], GROUPS[::-1], "axes"))
    torch.testing.assert_close(backwards.flip(0, 1), together)


@pytest.mark.parametrize("method", [Gradient(), Occlusion(4, 4)], ids=lambda each: each.name)
def test_one_stack_serves_the_raw_and_the_normalised_embedding(method: Method) -> None:
    model = CurvedModel()
    inputs = random_inputs(2, model)
    made_raw = Explainer(model, method, normalize=False).stack(inputs)
    made_normalised = Explainer(model, method, normalize=True).stack(inputs)
    directions = model.text.text_directions(TEXTS).double()
    for normalize in (True, False):
        expected = Explainer(model, method, normalize=normalize).explain(
            random_pictures(model), [TextGroup(text, (text,)) for text in TEXTS], "direct"
        )
        for stack in (made_raw, made_normalised):
            found = stack.explaining(normalize=normalize).project(directions)
            torch.testing.assert_close(found, maps_of(expected), rtol=1e-5, atol=1e-7)


def test_a_path_stack_serves_only_what_it_was_made_for() -> None:
    model = CurvedModel()
    stack = Explainer(model, IntegratedGradients(n_steps=2), normalize=True).stack(random_inputs(1, model))
    assert stack.explaining(normalize=True).normalize
    with pytest.raises(InputError, match=r"stack was made with normalize=True, normalize=False was asked"):
        stack.explaining(normalize=False)


def test_completeness_is_reached_in_the_limit_and_its_residual_told() -> None:
    model = CurvedModel()
    residuals = []
    for n_steps in (1, 30):
        (answer,) = Explainer(model, IntegratedGradients(n_steps=n_steps)).explain(
            random_pictures(model, 1), GROUPS, "axes"
        )
        assert answer.residual is not None
        assert answer.difference is not None
        torch.testing.assert_close(answer.maps.sum(dim=(-2, -1)) - answer.difference, answer.residual)
        residuals.append(float(answer.residual.abs().max()))
    assert residuals[0] > 1e-4
    assert residuals[1] < 1e-9
    assert answer.completeness == "in the limit of n_steps"
    assert answer.n_steps == 30


def test_the_difference_is_of_the_logit_and_the_baseline() -> None:
    model = CurvedModel()
    (answer,) = Explainer(model, IntegratedGradients(n_steps=2)).explain(random_pictures(model, 1), GROUPS, "axes")
    black = torch.full((1, 1, 16, 16), -model.preprocessing.mean[0] / model.preprocessing.std[0], dtype=torch.float64)
    direction = model.text.text_directions([TEXTS[0]])[0].double()

    def logit(pixel_values: Tensor) -> Tensor:
        embedding = model.embed_images(pixel_values)[0]
        return direction @ embedding / embedding.norm()

    picture = random_pictures(model, 1)[0].pixel_values[None].double()
    assert answer.difference is not None
    torch.testing.assert_close(answer.logits[0], logit(picture))
    torch.testing.assert_close(answer.difference[0], logit(picture) - logit(black))


def test_gradients_state_no_residual() -> None:
    model = CurvedModel()
    (answer,) = Explainer(model, Gradient()).explain(random_pictures(model, 1), GROUPS)
    assert answer.residual is None
    assert answer.difference is None
    assert answer.completeness == "no"


def test_maximum_takes_the_winner_on_the_stack_and_the_true_maximum_directly() -> None:
    model = CurvedModel()
    each = [TextGroup(text, (text,)) for text in TEXTS]
    for method in (Gradient(), IntegratedGradients(n_steps=40)):
        explainer = Explainer(model, method)
        singles = explainer.explain(random_pictures(model), each, "axes")
        on_stack = explainer.explain(random_pictures(model), MAXIMUM, "axes")
        direct = explainer.explain(random_pictures(model), MAXIMUM, "direct")
        for single, winner, true in zip(singles, on_stack, direct, strict=True):
            assert winner.logits[0] == single.logits.max()
            torch.testing.assert_close(winner.maps[0], single.maps[single.logits.argmax()])
            assert not winner.is_linear
            assert not true.is_linear
            if isinstance(method, Gradient):
                torch.testing.assert_close(true.maps, winner.maps)
            else:
                assert true.difference is not None
                assert true.residual is not None
                assert true.residual.abs() <= 0.05 * true.difference.abs().clamp(min=0.1)


def test_the_conventional_route_takes_any_method_and_the_final_output() -> None:
    model = CurvedModel()
    groups = (*GROUPS, *MAXIMUM)
    picture = random_pictures(model, 1)
    (answer,) = Explainer(model, Saliency(), normalize=False).explain_conventionally(picture, groups)
    pixel_values = picture[0].pixel_values[None].double().requires_grad_()
    embedding = model.embed_images(pixel_values)[0]
    unit = embedding / embedding.norm()
    t = model.text.text_directions(TEXTS).double()
    outputs = [unit @ t[0], unit @ (t[1] + t[2]) / 2, unit @ ((t[0] + t[1]) / 2 - (t[2] + t[3]) / 2), (t @ unit).max()]
    for row, output in enumerate(outputs):
        (gradient,) = torch.autograd.grad(output, pixel_values, retain_graph=True)
        torch.testing.assert_close(answer.maps[row], gradient.abs()[0, 0])
        torch.testing.assert_close(answer.logits[row], output.detach())
    assert answer.route == "conventional"


def test_a_method_that_is_not_linear_takes_the_axes_only() -> None:
    model = CurvedModel()
    explainer = Explainer(model, Saliency())
    (answer,) = explainer.explain(random_pictures(model, 1), GROUPS)
    assert (answer.route, answer.is_linear) == ("axes", False)
    for route in ("direct", "prompts"):
        with pytest.raises(InputError, match=rf"route '{route}' was asked of method 'saliency', which is not linear"):
            explainer.explain(random_pictures(model, 1), GROUPS, route)  # type: ignore[arg-type]
    basis = Basis.of(model.text.text_directions(TEXTS).double())
    with pytest.raises(InputError, match=r"'saliency' is not linear; only the axes make its stack"):
        explainer.stack(random_inputs(1, model), basis)


def test_auto_takes_the_way_of_fewest_rows() -> None:
    model = CurvedModel(embed_dim=3)
    explainer = Explainer(model, Gradient())
    many = [TextGroup(text, (text,)) for text in TEXTS]
    assert explainer.explain(random_pictures(model, 1), many[:2])[0].route == "direct"
    assert explainer.explain(random_pictures(model, 1), many)[0].route == "prompts"  # rank 3 below 4 texts
    assert Explainer(model, Occlusion(4, 4)).explain(random_pictures(model, 1), many[:1])[0].route == "axes"


def test_a_basis_is_orthonormal_and_knows_its_span() -> None:
    directions = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    doubled = torch.cat([directions, directions[:1] * 3 - directions[1:2]])
    basis = Basis.of(doubled)
    assert len(basis) == 5
    torch.testing.assert_close(basis.rows @ basis.rows.T, torch.eye(5, dtype=torch.float64))
    assert basis.share_outside(doubled).max() < 1e-10
    stranger = torch.randn(1, 20, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    unit = stranger[0] / stranger.norm()
    outside = unit - basis.rows.T @ (basis.rows @ unit)
    torch.testing.assert_close(basis.share_outside(stranger)[0], outside.norm() / (unit - basis.centre).norm())
    with pytest.raises(SpanError, match=r"lies outside the span of this stack's prompts \(share .*, tolerance 0.1\)"):
        basis.require(stranger, 0.1)
    basis.require(doubled, 0.1)
    with pytest.raises(InputError, match="0 directions of non-zero length"):
        Basis.of(torch.zeros(2, 3))


def test_a_tolerance_shortens_the_basis_and_the_error_of_the_maps_is_measured() -> None:
    """Most of what is left out is of one text, whose map tells by how much."""
    model = CurvedModel(embed_dim=12)
    source = torch.Generator().manual_seed(0)
    common = 5 * torch.eye(12, dtype=torch.float64)[0]
    texts = common + torch.randn(8, 12, generator=source, dtype=torch.float64) * 0.7 ** torch.arange(12)
    exact, short = Basis.of(texts), Basis.of(texts, 0.1)
    unit = texts / texts.norm(dim=-1, keepdim=True)
    assert len(short) < len(exact) == 8
    left_out = [Basis(short.rows[:-1], short.centre).residual(unit), short.residual(unit)]
    assert left_out[0].norm(dim=-1).max() > 0.1 >= left_out[1].norm(dim=-1).max()  # of as few rows as suffice
    short.require(texts, 0.0)
    with pytest.raises(SpanError):
        short.require(torch.randn(1, 12, generator=source, dtype=torch.float64), 0.0)

    explainer, inputs = Explainer(model, Gradient()), random_inputs(2, model)
    stack, whole = explainer.stack(inputs, short), explainer.stack(inputs, exact)
    assert isinstance(stack, Stack)
    assert stack.values.shape[1] == len(short)
    assert short.worst is not None
    expected = whole.project(short.worst[None])[:, 0]
    lost = (expected - stack.project(short.worst[None])[:, 0]).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    torch.testing.assert_close(torch.tensor(stack.map_error, dtype=torch.float64), lost)
    assert stack[1:].map_error == stack.map_error[1:]
    assert lost.min() > 0
    assert isinstance(whole, Stack)
    assert whole.map_error == ()


def test_texts_close_to_each_other_are_not_taken_for_covered() -> None:
    source = torch.Generator().manual_seed(0)
    common = torch.zeros(20, dtype=torch.float64)
    common[0] = 30.0
    texts = common + torch.randn(4, 20, generator=source, dtype=torch.float64)
    basis = Basis.of(texts[:3])
    uncentred = basis.residual(texts[3:]).norm() / texts[3].norm()
    assert uncentred < 0.2
    assert basis.share_outside(texts[3:])[0] > 0.6


def test_the_missing_share_is_what_the_residual_shows() -> None:
    model = CurvedModel(embed_dim=12)
    known = model.text.text_directions(TEXTS[:2]).double()
    stranger = model.text.text_directions(["a stranger"]).double()
    stack = Explainer(model, IntegratedGradients(n_steps=60)).stack(random_inputs(1, model), Basis.of(known))
    assert isinstance(stack, Stack)
    residual = stack.residual(stack.project(stranger), stranger)
    difference = stack.difference(stranger)
    assert residual is not None
    assert difference is not None
    torch.testing.assert_close(stack.missing_share(stranger), residual.abs() / difference.abs(), rtol=1e-4, atol=1e-6)
    assert stack.missing_share(known).max() < 1e-6


def test_smaller_maps_are_area_sums() -> None:
    model = CurvedModel()
    method = IntegratedGradients(n_steps=2)
    full = maps_of(Explainer(model, method).explain(random_pictures(model), GROUPS, "axes"))
    for inner in (method, Occlusion(4, 4)):
        full = maps_of(Explainer(model, inner).explain(random_pictures(model), GROUPS, "axes"))
        small = maps_of(Explainer(model, inner, map_size=8).explain(random_pictures(model), GROUPS, "axes"))
        by_hand = full[..., 0::2, 0::2] + full[..., 1::2, 0::2] + full[..., 0::2, 1::2] + full[..., 1::2, 1::2]
        torch.testing.assert_close(small, by_hand)


def test_a_slice_of_a_stack_is_the_stack_of_the_slice() -> None:
    model = CurvedModel()
    directions = model.text.text_directions(TEXTS).double()
    for method in (IntegratedGradients(n_steps=2), Occlusion(4, 4)):
        explainer = Explainer(model, method)
        stack = explainer.stack(random_inputs(3, model))
        torch.testing.assert_close(stack[1:2].project(directions), stack.project(directions)[1:2])


def test_a_constant_picture_at_its_own_baseline_has_an_empty_map() -> None:
    model = CurvedModel()
    inputs = random_inputs(1, model)
    flat = dataclasses.replace(inputs, pixel_values=torch.full_like(inputs.pixel_values, 0.3))
    stack = Explainer(model, IntegratedGradients(n_steps=2, baseline="mean")).stack(flat)
    assert isinstance(stack, Stack)
    assert stack.values.abs().max() < 1e-6
