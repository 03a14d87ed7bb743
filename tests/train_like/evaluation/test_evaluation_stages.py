"""The stages on a model whose maps peak at known pixels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mapstack.methods import Gradient, GradientShap, Method, Occlusion
from mapstack.metrics.chexlocalize import segment, threshold_ious
from mapstack.metrics.reference_maps import centre_prior, random_map, sobel_edges
from mapstack.metrics.rle import EncodedMask, decode_mask
from tests.train_like.evaluation.made import AROUND, LABELS, PEAKS, SIDE, TEXTS, PlantedModel, box, case_of, picture_of
from train_like.evaluation.cases import Case
from train_like.evaluation.choice import Choice
from train_like.evaluation.maps import AggregateMaps, MapMaker
from train_like.evaluation.pairs import pair_scores
from train_like.evaluation.randomised import fully_randomised, run_cascade, run_randomised
from train_like.evaluation.references import REFERENCES, frame_references, mean_masks_of, reference_maps
from train_like.evaluation.settings import FORMS, Setting
from train_like.evaluation.stages import Stages
from train_like.evaluation.texts import TextKey

METHODS: dict[str, Method] = {
    "gradient": Gradient(),
    "occlusion": Occlusion(sliding_window_shapes=4, strides=4),
    "gradient_shap": GradientShap(n_samples=2, stdevs=0.2, baselines=("black",)),
}
MODEL = PlantedModel()
MAKER = MapMaker(MODEL, METHODS, seed=0)
SMOOTHINGS_PX = (0.0, 0.5)
STAGES = Stages(MAKER, TEXTS, SMOOTHINGS_PX, seed=0)
SQUARE = (SIDE, SIDE)
ELSEWHERE = box(SQUARE, 12, 0, 16, 4)
BEST = Setting("occlusion + gradient", "conventional", "positive", "label", True, 0.5)
MAPS_OF_A_METHOD = {
    Setting(method, "conventional", sign, form, contrast, smoothing).key
    for method in METHODS
    for sign in ("signed", "absolute")
    for form in FORMS
    for contrast in (False, True)
    for smoothing in SMOOTHINGS_PX
}


class LayeredModel(PlantedModel):
    """Its last weights are a module's, so that they can be randomised."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8, dtype=self.weight.dtype)
        self.freeze()

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        embedded: Tensor = self.layer(super().embed_images(pixel_values))
        return embedded


@pytest.fixture(scope="module")
def both() -> Case:
    return case_of(MODEL, picture_of(), {label: box(SQUARE, *around) for label, around in AROUND.items()})


@pytest.fixture(scope="module")
def matrix(both: Case) -> dict[str, Any]:
    return STAGES.matrix(both, list(METHODS), BEST)


@pytest.fixture(scope="module")
def axes(both: Case) -> dict[str, Any]:
    return STAGES.axes(both, list(METHODS))


def tune(case: Case) -> dict[str, Any]:
    """The scores of candidates on a validation picture; those of reference methods are in another test."""
    scores = STAGES.tune(case, {})
    return {key: each for key, each in scores.items() if Setting.parse(key).method not in REFERENCES}


def hits(scores: dict[str, Any], label: str) -> set[float]:
    return {each[label]["hit"] for each in scores.values()}


def test_every_setting_hits_where_the_model_looks(both: Case) -> None:
    scores = tune(both)
    assert scores.keys() == MAPS_OF_A_METHOD
    assert hits(scores, "Edema") == hits(scores, "Cardiomegaly") == {1.0}


def test_an_aggregate_is_one_more_method_of_one_sign(both: Case) -> None:
    name = "gradient + occlusion"
    stages = Stages(MAKER, TEXTS, SMOOTHINGS_PX, seed=0, aggregates=[name])
    scores = stages.tune(both, {})
    of_aggregate = {key for key in scores if Setting.parse(key).method == name}
    references = {key for key in scores if Setting.parse(key).method in REFERENCES}
    assert scores.keys() == MAPS_OF_A_METHOD | of_aggregate | references
    assert len(of_aggregate) == len(FORMS) * 2 * len(SMOOTHINGS_PX)
    assert {Setting.parse(key).sign for key in of_aggregate} == {"positive"}
    assert hits({key: scores[key] for key in of_aggregate}, "Edema") == {1.0}
    # Chosen alone, it brings its members' maps, which are not scored.
    best = Setting(name, "conventional", "positive", smoothing_px=0.5)
    found = stages.localise(both, Choice({best: {"Edema": 0.5}}, {best: 1.0}, 1), {})
    scored = {Setting.parse(key).method for key in found["settings"]} - set(REFERENCES)
    assert scored == {name}
    assert found["predicted"].keys() == {"Edema", "Cardiomegaly"}


def test_no_setting_hits_where_the_model_does_not_look() -> None:
    swapped = {"Edema": box(SQUARE, *AROUND["Cardiomegaly"]), "Cardiomegaly": ELSEWHERE, "Unknown": ELSEWHERE}
    scores = tune(case_of(MODEL, picture_of(), swapped))
    assert scores.keys() == MAPS_OF_A_METHOD
    assert {label for each in scores.values() for label in each} == {"Edema", "Cardiomegaly"}  # a class has a text
    assert hits(scores, "Edema") == hits(scores, "Cardiomegaly") == {0.0}


def test_hits_are_told_on_the_original_picture() -> None:
    size = (2 * SIDE, 2 * SIDE)
    regions = {label: box(size, *(2 * edge for edge in around)) for label, around in AROUND.items()}
    scores = tune(case_of(MODEL, picture_of(side=2 * SIDE), regions))
    assert hits(scores, "Edema") == hits(scores, "Cardiomegaly") == {1.0}
    # A portrait: 16 of 8 columns, padded by 4 px on each side.
    narrow = (SIDE, 8)
    portrait = case_of(MODEL, picture_of()[:, 4:12], {"Edema": box(narrow, 4, 0, 8, 4)})
    assert portrait.prepared.geometry.box == (0.0, 4.0, 16.0, 12.0)
    assert hits(tune(portrait), "Edema") == {1.0}


def test_overlaps_are_those_of_the_map(both: Case) -> None:
    scores = tune(both)
    setting = Setting("occlusion", "conventional", text="label", is_contrast=True)
    maps = MAKER.direct("occlusion", both, TEXTS.of(both, ["Edema"]))
    expected = threshold_ious(maps.setting_map(setting, "Edema", TEXTS), both.regions[0].mask)
    assert scores[setting.key]["Edema"]["ious"] == pytest.approx(expected)
    assert expected[-1] == 1  # the window


def test_a_picture_without_a_region_of_a_class_has_no_scores() -> None:
    nothing = case_of(MODEL, picture_of([]), {"Unknown": ELSEWHERE}, labels=["No Finding"])
    choice = Choice({Setting("gradient", "conventional"): {}}, {}, 1)
    assert tune(nothing) == {}
    nowhere = {"settings": {}, "predicted": {}, "pairs": {}, "zero_shot": True}
    assert STAGES.localise(nothing, choice, {}) == nowhere


def test_chosen_settings_and_references_are_scored_in_full_and_the_rest_by_peaks(both: Case) -> None:
    best = Setting("occlusion", "conventional", text="label")
    other = Setting("gradient", "conventional", "absolute", smoothing_px=0.5)
    choice = Choice({best: {"Edema": 0.5}, other: {}}, {best: 1.0, other: 0.5}, 1)
    scores = STAGES.localise(both, choice, mean_masks_of([both]))
    peaks = {"hit", "pointing"}
    full = peaks | {"mass", "rank", "ious", "iou_otsu"}
    references = {Setting(name, "reference") for name in REFERENCES}
    in_full = {best.key, other.key, *(each.key for each in references)}
    chosen = {key for key in MAPS_OF_A_METHOD if Setting.parse(key).method in ("occlusion", "gradient")}
    assert scores["settings"].keys() == chosen | in_full
    for key, by_label in scores["settings"].items():
        assert by_label.keys() == {"Edema", "Cardiomegaly"}
        for each in by_label.values():
            assert each.keys() == (full if key in in_full else peaks)
    of_mask = scores["settings"][Setting("mean mask of the label", "reference").key]["Edema"]
    assert {key: of_mask[key] for key in ("hit", "mass", "rank", "iou_otsu")} == pytest.approx(
        {"hit": 1.0, "mass": 1.0, "rank": 1.0, "iou_otsu": 1.0}
    )
    # The region that the best setting predicts: at the label's threshold, or by Otsu's rule where it has none.
    maps = MAKER.direct("occlusion", both, TEXTS.of(both, ["Edema", "Cardiomegaly"]))
    for label, threshold in (("Edema", 0.5), ("Cardiomegaly", None)):
        region = segment(maps.setting_map(best, label, TEXTS), SQUARE, threshold)
        assert torch.equal(decode_mask(EncodedMask(SQUARE, scores["predicted"][label])), region)


@pytest.mark.parametrize(
    ("bright", "labels", "is_right"),
    [
        (["Edema"], ["Edema"], True),
        (["Edema"], ["Cardiomegaly"], False),
        (["Cardiomegaly"], ["Edema", "Cardiomegaly"], True),
        ([], ["No Finding"], True),
        ([], [], True),
        (["Edema"], [], False),
    ],
)
def test_zero_shot_asks_whether_the_class_of_highest_logit_is_there(
    bright: list[str], labels: list[str], is_right: bool
) -> None:
    case = case_of(MODEL, picture_of(bright), {}, labels=labels)
    assert STAGES.localise(case, Choice({}, {}, 0), {})["zero_shot"] is is_right


def test_the_stack_of_a_linear_method_gives_the_conventional_map(matrix: Any, axes: Any) -> None:
    assert matrix["agreement"].keys() == {"gradient", "occlusion"}
    assert axes["agreement"].keys() == {"gradient_shap"}
    for value in (matrix["agreement"] | axes["agreement"]).values():
        assert value < 1e-10
    for method in METHODS:
        stack, conventional = (Setting(method, route).key for route in ("stack_normalised", "conventional"))
        same, wanted = matrix["texts"][stack], matrix["texts"][conventional]
        for form in FORMS:
            assert np.array(same["correlation"][form]) == pytest.approx(np.array(wanted["correlation"][form]), abs=1e-4)
        assert same["ssim"] == pytest.approx(wanted["ssim"])
        assert same["outside_body"] == pytest.approx(wanted["outside_body"])
        assert np.array(same["controls"]["gibberish"]) == pytest.approx(np.array(wanted["controls"]["gibberish"]))
        for label in PEAKS:
            wanted = matrix["settings"][conventional][label]
            assert {name: matrix["settings"][stack][label][name] for name in ("hit", "pointing", "mass", "rank")} == (
                pytest.approx({name: wanted[name] for name in ("hit", "pointing", "mass", "rank")}, abs=1e-6)
            )


def test_the_matrix_holds_every_way_that_costs_no_axes_of_a_path_method(matrix: Any, axes: Any) -> None:
    of_stack = {"gradient", "occlusion"}
    routes = ("conventional", "stack_normalised", "stack_raw")
    ways = {
        Setting(method, route, sign).key
        for method in METHODS
        for route in routes
        for sign in ("signed", "absolute")
        if sign == "signed" or route == "conventional" or method in of_stack
    }
    assert matrix["texts"].keys() == ways
    # With these every method has every route and sign.
    assert axes["texts"].keys() == {Setting("gradient_shap", route, "absolute").key for route in routes[1:]}
    assert len(matrix["settings"]) == len(ways) * len(FORMS) * 2 * len(SMOOTHINGS_PX)
    for scores in (*matrix["texts"].values(), *axes["texts"].values()):
        assert [len(scores["controls"][kind]) for kind in ("gibberish", "irrelevant")] == [6, 6]  # 2 regions, 3 texts
        assert len(scores["outside_body"]) == 2
        for form in FORMS:
            assert np.diag(scores["correlation"][form]).tolist() == [1.0] * len(LABELS)
    signed = matrix["texts"][Setting("gradient", "conventional").key]["correlation"]["label"]
    assert abs(signed[1][2]) < 0.3  # two findings, two pixels
    assert hits({key: each for key, each in matrix["settings"].items() if "|signed|" in key}, "Edema") == {1.0}


def test_faithfulness_scores_equal_maps_once_and_asks_completeness_where_it_is_claimed(matrix: Any) -> None:
    scores = matrix["faithfulness"]
    repeated = {Setting(method, "stack_normalised").key for method in METHODS}
    references = {Setting(name, "reference").key for name in ("random", "centre prior", "Sobel edges")}
    assert scores.keys() == (matrix["texts"].keys() - repeated) | references | {BEST.key}
    with_residual = {key for key, each in scores.items() if "completeness" in each}
    assert with_residual == {Setting(method, "conventional").key for method in ("occlusion", "gradient_shap")}
    signed, random = (scores[Setting(*way).key] for way in (("gradient", "conventional"), ("random", "reference")))
    assert signed["insertion"] > random["insertion"]
    assert scores[BEST.key]["insertion"] > random["insertion"]
    for each in scores.values():
        assert len(each["deletion_curve"]) == len(each["insertion_curve"]) == 15
        assert each["deletion_curve"][0] == each["insertion_curve"][-1]
        assert each["deletion_curve"][-1] == each["insertion_curve"][0]


def test_the_raw_stack_of_a_path_method_is_one_more(both: Case, axes: Any) -> None:
    texts = TEXTS.of(both, TEXTS.labels)
    raw = MAKER.projected_absolute(MAKER.stack("gradient_shap", both, normalize=False), texts)
    setting = Setting("gradient_shap", "stack_raw", "absolute")
    maps = torch.stack([raw.setting_map(setting, label, TEXTS) for label in LABELS])
    correlation = np.array(axes["texts"][setting.key]["correlation"]["ensemble"])
    assert correlation == pytest.approx(np.corrcoef(maps.flatten(1).numpy()), abs=1e-3)


def test_the_plain_ensemble_of_each_way_is_scored_in_full(matrix: Any, axes: Any) -> None:
    for scores in (matrix, axes):
        plain = {Setting.parse(key).key for key in scores["texts"]}
        for key, by_label in scores["settings"].items():
            for each in by_label.values():
                assert ("mass" in each and "iou_otsu" in each) == (key in plain)


def test_references_are_scored_by_overlap_for_a_threshold(both: Case) -> None:
    scores = STAGES.tune(both, mean_masks_of([both]))
    of_mask = scores[Setting("mean mask of the label", "reference").key]
    assert of_mask["Edema"]["ious"] == of_mask["Cardiomegaly"]["ious"] == [1.0] * 7
    assert {Setting.parse(key).method for key in scores.keys() - MAPS_OF_A_METHOD} == set(REFERENCES)
    assert "hit" not in scores[Setting("random", "reference").key]["Edema"]  # it is not chosen from


def test_rather_than_another_finding_takes_that_ones_pixels_away(both: Case) -> None:
    maps = MAKER.direct("gradient", both, TEXTS.of(both, list(PEAKS)))
    # A map of both findings: what is shared outweighs each.
    shared = type(maps)(maps.rows, maps.values + 3 * maps.map_of(key_of("Cardiomegaly")))
    setting = Setting("gradient", "conventional", text="ensemble")
    for made in (shared, AggregateMaps((shared, shared))):
        edema, cardiomegaly = pair_scores(both, both.regions, made, setting, TEXTS)
        assert edema[0] == [0.0, 1.0]
        assert edema[2] == [1.0, 0.0]
        assert cardiomegaly[2] == [1.0, 0.0]


def key_of(label: str) -> TextKey:
    return TextKey("ensemble", label)


def test_what_two_findings_share_counts_for_neither() -> None:
    whole, part = box(SQUARE, *AROUND["Edema"]), box(SQUARE, 4, 4, 6, 6)
    case = case_of(MODEL, picture_of(), {"Edema": whole, "Cardiomegaly": part})
    maps = MAKER.direct("gradient", case, TEXTS.of(case, list(PEAKS)))
    assert pair_scores(case, case.regions, maps, Setting("gradient", "conventional"), TEXTS) == []


def test_pairs_are_scored_where_a_sign_tells_one_from_the_other(both: Case) -> None:
    signed, absolute = (Setting("gradient", "conventional", sign) for sign in ("signed", "absolute"))
    choice = Choice({signed: {}, absolute: {}}, {signed: 1.0, absolute: 0.5}, 1)
    pairs = STAGES.localise(both, choice, {})["pairs"]
    assert pairs.keys() == {signed.key}
    assert [pair[2] for pair in pairs[signed.key]] == [[1.0, 0.0], [1.0, 0.0]]


def test_without_regions_everything_but_places_is_scored() -> None:
    case = case_of(MODEL, picture_of(), {}, labels=["Cardiomegaly"])
    assert TEXTS.explained(case) == ["Cardiomegaly"]
    plain = Setting("gradient", "conventional")
    matrix = STAGES.matrix(case, list(METHODS), plain)
    assert {len(by_label) for by_label in matrix["settings"].values()} == {0}
    for texts in matrix["texts"].values():
        assert [pair[1] for pair in texts["controls"]["gibberish"]] == [None] * 3
        assert all(-1 <= pair[0] <= 1 for pair in texts["controls"]["irrelevant"])
        assert len(texts["outside_body"]) == 1
    assert plain.key in matrix["faithfulness"]
    axes = STAGES.axes(case, list(METHODS))
    assert axes["sensitivity"].keys() == axes["repeat"].keys() == METHODS.keys()
    cascade = run_cascade(MapMaker(LayeredModel(), {"gradient": Gradient()}, seed=0), TEXTS, case)
    assert {scores[plain.key]["hit"] for scores in cascade.values()} == {None}
    assert cascade["trained"][plain.key]["pearson"] == pytest.approx(1)


def test_a_picture_without_a_known_label_stands_for_a_normal_one() -> None:
    for labels in (["No Finding"], [], ["Unknown"]):
        assert TEXTS.explained(case_of(MODEL, picture_of([]), {}, labels=labels)) == ["No Finding"]


def test_likeness_with_random_weights_is_that_of_the_end_of_the_cascade(both: Case) -> None:
    model = LayeredModel()
    maker = MapMaker(model, METHODS, seed=0)
    last = list(run_cascade(maker, TEXTS, both).values())[-1]
    found = run_randomised(maker, fully_randomised(model, maker.seed), TEXTS, both)
    ways = {Setting.parse(key) for key in found}
    assert {way.method for way in ways} == {"gradient", "occlusion"}  # the path method's stack is dear
    assert {(way.route, way.sign) for way in ways} >= {("stack_raw", "absolute"), ("conventional", "absolute")}
    for key, value in found.items():
        assert value == pytest.approx(last[key]["between_texts"], abs=1e-6)


def test_repeats_tell_random_methods_from_the_others(axes: Any) -> None:
    for method in METHODS:
        assert axes["repeat"][method]["same_seed"] == 0
        assert 0 <= axes["sensitivity"][method] < 0.5
    assert axes["repeat"]["gradient"]["other_seed"] == pytest.approx(1)
    assert axes["repeat"]["occlusion"]["other_seed"] == pytest.approx(1)
    assert axes["repeat"]["gradient_shap"]["other_seed"] < 0.9999


def test_reference_maps_look_at_no_model(both: Case) -> None:
    wide = case_of(MODEL, picture_of()[:12], {"Edema": box((12, 16), 0, 0, 1, 1)})
    mean = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    maps = reference_maps(wide, "Edema", {"Edema": mean}, seed=3)
    assert list(maps) == list(REFERENCES)
    assert torch.equal(maps["random"], random_map(12, 16, sha256=wide.prepared.sha256, seed=3))
    assert torch.equal(maps["centre prior"], centre_prior(12, 16))
    assert torch.equal(maps["Sobel edges"], sobel_edges(wide.brightness))
    assert maps["mean mask of the label"].shape == (12, 16)
    assert "mean mask of the label" not in reference_maps(wide, "Cardiomegaly", {"Edema": mean}, seed=3)
    framed = frame_references(wide, seed=3)
    assert {name: each.shape for name, each in framed.items()} == dict.fromkeys(REFERENCES[:3], SQUARE)
    assert torch.equal(framed["random"], random_map(*SQUARE, sha256=wide.prepared.sha256, seed=3))


def test_mean_masks_bring_pictures_of_all_shapes_to_one_square() -> None:
    tall, wide = (448, 224), (112, 224)
    cases = [
        case_of(MODEL, np.zeros(tall, np.uint8), {"Edema": box(tall, 0, 0, 224, 224)}),  # upper half
        case_of(MODEL, np.zeros(wide, np.uint8), {"Edema": box(wide, 0, 0, 112, 112)}),  # left half
        case_of(MODEL, np.zeros(wide, np.uint8), {"Cardiomegaly": box(wide, 111, 223, 112, 224)}),
        case_of(MODEL, np.zeros(wide, np.uint8), {}),
    ]
    masks = mean_masks_of(cases)
    assert list(masks) == ["Edema", "Cardiomegaly"]
    quarters = masks["Edema"].reshape(2, 112, 2, 112)
    for row, column, share in ((0, 0, 1.0), (0, 1, 0.5), (1, 0, 0.5), (1, 1, 0.0)):
        assert (quarters[row, :, column] == share).all()
    assert masks["Cardiomegaly"].nonzero().tolist() == [[222, 223], [223, 223]]
    assert mean_masks_of([]) == {}


def test_the_peaks_are_where_they_were_planted(both: Case) -> None:
    maps = MAKER.direct("gradient", both, TEXTS.of(both, list(PEAKS)))
    for label, peak in PEAKS.items():
        attribution = maps.setting_map(Setting("gradient", "conventional"), label, TEXTS)
        assert divmod(int(attribution.argmax()), SIDE) == peak
        assert not math.isclose(float(attribution.min()), 0)
