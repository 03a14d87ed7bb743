"""The maps that are scored, against the one door that both jobs use, and against closed forms."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from mapstack.aggregation import aggregate
from mapstack.errors import ConfigError
from mapstack.explainer import Explainer
from mapstack.methods import Gradient, GradientShap, IntegratedGradients, Method, Occlusion, Saliency
from mapstack.prompts import TextGroup
from tests.toys import CurvedModel
from tests.train_like.evaluation.made import LABELS, PROMPTS, TEXTS, case_of, picture_of
from train_like.evaluation.cases import Case
from train_like.evaluation.maps import MapMaker, TextMaps, agreement, smoothed
from train_like.evaluation.settings import FORMS, Setting
from train_like.evaluation.texts import CONTROLS, TextKey

METHODS: dict[str, Method] = {
    "gradient": Gradient(),
    "occlusion": Occlusion(sliding_window_shapes=4, strides=3),
    "integrated_gradients": IntegratedGradients(n_steps=3, baseline="white"),
    "gradient_shap": GradientShap(n_samples=3),
}
MODEL = CurvedModel(embed_dim=12)
PATCHED = {"Edema": "Edema of both lungs."}


@pytest.fixture(scope="module")
def maker() -> MapMaker:
    return MapMaker(MODEL, METHODS, seed=5)


@pytest.fixture(scope="module")
def case() -> Case:
    pixels = picture_of()[:, 3:]  # padded, so that the padding matters
    return case_of(MODEL, pixels, {"Edema": torch.ones(pixels.shape, dtype=torch.bool)}, sentences=PATCHED)


@pytest.fixture(scope="module")
def texts(case: Case) -> dict[TextKey, tuple[str, ...]]:
    return TEXTS.of(case, LABELS) | CONTROLS


def scale(values: Tensor) -> float:
    return float(values.abs().max())


@pytest.mark.parametrize("method", METHODS)
def test_direct_maps_are_the_conventional_ones_of_labels_ensembles_and_contrasts(
    method: str, maker: MapMaker, case: Case, texts: dict[TextKey, tuple[str, ...]]
) -> None:
    sentences = {entry.label: entry.prompts for entry in PROMPTS.classes}
    said = {"label": ("Edema",), "prompt": ("Edema of both lungs.",), "ensemble": sentences["Edema"]}
    normal = {"label": ("No Finding",), "prompt": sentences["No Finding"], "ensemble": sentences["No Finding"]}
    groups = [TextGroup(form, said[form]) for form in FORMS]
    groups += [TextGroup(f"{form}, contrast", said[form], against=normal[form]) for form in FORMS]
    explainer = Explainer(MODEL, METHODS[method], seed=5)
    (expected,) = explainer.explain_conventionally([case.prepared], groups)

    maps = maker.direct(method, case, texts)
    assert list(maps.rows) == list(texts)
    for row, group in enumerate(groups):
        form, _, contrast = group.name.partition(", ")
        setting = Setting(method, "conventional", text=form, is_contrast=bool(contrast))
        found = maps.setting_map(setting, "Edema", TEXTS)
        wanted = expected.density * expected.maps[row]
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12 * scale(wanted))
    if expected.difference is None:
        assert maps.difference is None
    else:
        rows = [maps.rows[TextKey(form, "Edema")] for form in FORMS]
        assert torch.allclose(maps.difference[rows], expected.difference[:3])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_projected_stack_is_the_direct_map(
    method: str, normalize: bool, maker: MapMaker, case: Case, texts: dict[TextKey, tuple[str, ...]]
) -> None:
    direct = maker.direct(method, case, texts, normalize=normalize)
    stack = maker.stack(method, case, normalize=normalize)
    assert agreement(direct, maker.projected(stack, texts)) < 1e-10
    if method in ("gradient", "occlusion"):  # one stack serves both
        other = stack.explaining(normalize=not normalize)
        assert agreement(direct, maker.projected(other, texts)) > 0.1
        assert (
            agreement(maker.direct(method, case, texts, normalize=not normalize), maker.projected(other, texts)) < 1e-5
        )


@pytest.mark.parametrize("normalize", [True, False])
def test_the_absolute_gradient_stack_is_that_of_saliency(
    normalize: bool, maker: MapMaker, case: Case, texts: dict[TextKey, tuple[str, ...]]
) -> None:
    saliency = Explainer(MODEL, Saliency(), normalize=normalize).stack(maker.inputs(case))
    expected = saliency.project(maker.directions(texts))[0]
    found = maker.projected_absolute(maker.stack("gradient", case).explaining(normalize=normalize), texts)
    assert torch.allclose(found.values, expected, rtol=0, atol=1e-10 * scale(expected))
    assert found.values.min() < 0  # the absolute value stands inside the sum
    assert not torch.allclose(found.values.abs(), maker.direct("gradient", case, texts).values.abs(), rtol=0.1)


@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
def test_the_absolute_stack_is_the_sum_over_axes(
    method: str, maker: MapMaker, case: Case, texts: dict[TextKey, tuple[str, ...]]
) -> None:
    directions = maker.directions(texts)
    axes = [TextMaps({}, maker.stack(method, case).project(axis[None])[0]) for axis in torch.eye(12).double()]
    rows = METHODS[method].density * torch.cat([each.values for each in axes]).abs()
    expected = sum(directions[:, i, None, None] * rows[i] for i in range(12))
    found = maker.projected_absolute(maker.stack(method, case), texts)
    assert torch.allclose(found.values, expected, rtol=0, atol=1e-12)


def test_seed_of_the_maker_and_of_the_call(maker: MapMaker, case: Case, texts: dict[TextKey, tuple[str, ...]]) -> None:
    of_maker = maker.direct("gradient_shap", case, texts)
    assert agreement(of_maker, maker.direct("gradient_shap", case, texts, seed=5)) == 0
    assert agreement(of_maker, maker.direct("gradient_shap", case, texts, seed=6)) > 0.01


def test_each_text_is_embedded_once(case: Case, texts: dict[TextKey, tuple[str, ...]]) -> None:
    model = CurvedModel(embed_dim=12)
    seen: list[str] = []
    real = model.text._embed_padded
    model.text._embed_padded = lambda texts: seen.extend(texts) or real(texts)  # type: ignore[method-assign,func-returns-value]
    maker = MapMaker(model, METHODS, seed=0)
    for _ in range(2):
        directions = maker.directions(texts)
    assert sorted(seen) == sorted({text for group in texts.values() for text in group})
    unit = model.text.embed_texts(texts[TextKey("ensemble", "Edema")])
    row = list(texts).index(TextKey("ensemble", "Edema"))
    assert torch.allclose(directions[row], 10 * unit.double().mean(dim=0))  # the mean of unit vectors, times tau


def test_a_candidate_that_is_not_linear_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"candidate 'second' is not linear; .*; name gradient in the place of saliency\."
    ):
        MapMaker(MODEL, {"first": Gradient(), "second": Saliency()}, seed=0)


def test_agreement_is_relative_to_the_largest_value() -> None:
    first = TextMaps({}, torch.tensor([[[0.0, -4.0]], [[1.0, 0.0]]]))
    second = TextMaps({}, torch.tensor([[[0.0, -4.0]], [[0.0, 0.5]]]))
    assert agreement(first, second) == 0.25
    assert agreement(first, first) == 0


@pytest.mark.parametrize("sigma_px", [0.5, 1.0, 2.5])
def test_a_smoothed_point_is_the_product_of_two_gaussians(sigma_px: float) -> None:
    point = torch.zeros(31, 33, dtype=torch.float64)
    point[14, 17] = 2.0
    reach = math.ceil(3 * sigma_px)
    weights = [math.exp(-0.5 * (offset / sigma_px) ** 2) for offset in range(-reach, reach + 1)]
    weights = [weight / sum(weights) for weight in weights]
    expected = torch.zeros_like(point)
    for i, by_row in enumerate(weights):
        for j, by_column in enumerate(weights):
            expected[14 + i - reach, 17 + j - reach] = 2 * by_row * by_column
    assert torch.allclose(smoothed(point, sigma_px), expected, atol=1e-6)


def test_smoothing_keeps_the_total_of_what_lies_inside_and_every_constant() -> None:
    inner = torch.zeros(40, 40)
    inner[12:28, 12:28] = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    assert smoothed(inner, 3.0).sum() == pytest.approx(float(inner.sum()), abs=1e-4)
    assert torch.allclose(smoothed(torch.full((20, 20), -3.0), 4.0), torch.full((20, 20), -3.0))
    assert smoothed(inner, 0) is inner


def test_signs_of_a_settings_map() -> None:
    rows = {TextKey(form, label): i for i, (form, label) in enumerate(product(FORMS, LABELS[:2]))}
    values = torch.arange(6.0)[:, None, None] * torch.tensor([[1.0, -1.0]])  # row i is [i, -i]
    maps = TextMaps(rows, values)

    def made(route: str, sign: str, text: str, is_contrast: bool = False) -> list[float]:
        return maps.setting_map(Setting("gradient", route, sign, text, is_contrast), "Edema", TEXTS)[0].tolist()

    assert made("conventional", "signed", "label") == [1, -1]
    assert made("conventional", "absolute", "prompt") == [3, 3]
    assert made("stack_raw", "absolute", "ensemble") == [5, -5]  # absolute before the projection
    # Contrasts: label against label, a sentence and an ensemble against the ensemble; the sign goes last.
    assert made("conventional", "signed", "label", is_contrast=True) == [1, -1]
    assert made("conventional", "signed", "prompt", is_contrast=True) == [-1, 1]
    assert made("conventional", "absolute", "prompt", is_contrast=True) == [1, 1]
    assert made("stack_normalised", "absolute", "prompt", is_contrast=True) == [-1, 1]
    assert made("conventional", "signed", "ensemble", is_contrast=True) == [1, -1]


def test_absolute_values_are_taken_before_smoothing() -> None:
    dipole = torch.zeros(1, 15, 15)
    dipole[0, 7, 7], dipole[0, 7, 8] = 1, -1
    maps = TextMaps({TextKey("ensemble", "Edema"): 0}, dipole)
    setting = Setting("gradient", "conventional", "absolute", smoothing_px=1.0)
    assert maps.setting_map(setting, "Edema", TEXTS).sum() == pytest.approx(2, abs=1e-5)


def test_an_aggregate_is_made_of_the_signed_maps_of_a_setting_and_smoothed_at_last(maker: MapMaker, case: Case) -> None:
    texts = {TextKey("label", label): (label,) for label in LABELS}
    first, second = list(maker.methods)[:2]
    name = f"{second} + {first}"
    made = maker.conventional([first, name], case, texts)
    assert list(made) == [first, name]
    setting = Setting(name, "conventional", "positive", "label", is_contrast=True, smoothing_px=1.0)
    singles = [
        maker.direct(each, case, texts).setting_map(replace(setting, sign="signed", smoothing_px=0.0), "Edema", TEXTS)
        for each in (second, first)
    ]
    expected = smoothed(aggregate(torch.stack(singles)), 1.0)
    torch.testing.assert_close(made[name].setting_map(setting, "Edema", TEXTS), expected)
    assert (expected != 0).any()
