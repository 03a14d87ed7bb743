"""What the validation split chooses."""

import math
from typing import Any

import pytest
import torch

from mapstack.errors import InputError
from tests.train_like.evaluation.made import ABSOLUTE, MEAN_MASK, SIGNED
from train_like.evaluation.choice import choose, configured, labels_of, mean_over_findings, metric_table
from train_like.evaluation.settings import Setting

CONTRAST = Setting("gradient", "conventional", is_contrast=True)
BLACK, BLUR = (Setting(f"occlusion ({name})", "conventional") for name in ("black", "blur"))


def row(hit: float, *ious: float | None) -> dict[str, Any]:
    return {"hit": hit, "ious": list(ious or (0.0,) * 7)}


def by_picture(*pictures: dict[Setting, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    return {
        str(number): {setting.key: labels for setting, labels in picture.items()}
        for number, picture in enumerate(pictures)
    }


def test_the_mean_is_over_findings_and_not_over_pictures() -> None:
    # Edema: 3 of 3. Cardiomegaly: 0 of 1. Three of four maps hit, half of the findings.
    often = by_picture(
        {SIGNED: {"Edema": row(1), "Cardiomegaly": row(0)}}, {SIGNED: {"Edema": row(1)}}, {SIGNED: {"Edema": row(1)}}
    )
    assert mean_over_findings(metric_table(often, SIGNED, "hit")) == 0.5
    # Contrast hits fewer pictures but both findings: 1/3 and 1.
    for picture, hit in zip(often.values(), (1, 0, 0), strict=True):
        picture[CONTRAST.key] = {"Edema": row(hit)}
    often["0"][CONTRAST.key]["Cardiomegaly"] = row(1)
    choice = choose(often)
    assert choice.hit_rates == {SIGNED: 0.5, CONTRAST: pytest.approx(2 / 3)}
    assert list(choice.thresholds) == [CONTRAST]
    assert choice.best == CONTRAST


def test_of_equals_the_first_is_chosen_whatever_the_picture() -> None:
    settings = [SIGNED, CONTRAST, ABSOLUTE, BLACK, BLUR]
    choice = choose(by_picture(*({each: {"Edema": row(hit)} for each in settings} for hit in (1, 0))))
    assert list(choice.thresholds) == [SIGNED, ABSOLUTE, BLACK]
    assert choice.best == SIGNED
    assert choice.methods == ["gradient", "occlusion (black)"]
    assert choice.n_pictures == 2


def test_the_best_candidate_is_scored_by_every_route_though_its_signed_maps_lost() -> None:
    blurred = Setting(BLUR.method, "conventional", "absolute")
    hits = {BLACK: (1, 0), BLUR: (0, 0), blurred: (1, 1)}
    choice = choose(by_picture(*({each: {"Edema": row(hit[i])} for each, hit in hits.items()} for i in (0, 1))))
    assert choice.best == blurred
    assert choice.methods == [BLACK.method, BLUR.method]


def test_each_method_and_sign_gets_its_own_candidate_and_setting() -> None:
    absolute = Setting("occlusion (black)", "conventional", "absolute", "label", True, 6.0)
    hits = {SIGNED: 0, ABSOLUTE: 1, BLACK: 0, BLUR: 1, absolute: 1}
    choice = choose(by_picture({each: {"Edema": row(hit)} for each, hit in hits.items()}))
    assert list(choice.thresholds) == [SIGNED, ABSOLUTE, BLUR, absolute]
    assert choice.methods == ["gradient", "occlusion (blur)"]
    assert choice.best == ABSOLUTE


def test_thresholds_are_those_of_the_greatest_mean_overlap_of_each_label() -> None:
    pictures = by_picture(
        {SIGNED: {"Edema": row(1, 0.0, 0.5, 0.0, 0.4, 0.0, 0.0, 0.0), "Cardiomegaly": row(0, *(None,) * 7)}},
        {SIGNED: {"Edema": row(0, 0.0, 0.1, 0.0, 0.4, 0.0, 0.0, None)}},
        {},
        {SIGNED: {"Edema": row(0, *(None,) * 7), "Edema 2": row(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1)}},
    )
    choice = choose(pictures)
    # Means of 0.3 and 0.4; of the constant maps no threshold is known.
    assert choice.thresholds == {SIGNED: {"Edema": 0.5, "Edema 2": 0.8}}
    assert choice.n_pictures == 3


def test_nothing_to_choose_from_is_refused() -> None:
    for pictures in ({}, by_picture({}, {})):
        with pytest.raises(InputError, match=f"none of {len(pictures)} validation pictures has a region of a class"):
            choose(pictures)


def test_a_table_has_nan_where_a_picture_has_not_the_finding() -> None:
    pictures = by_picture({SIGNED: {"Edema": row(1)}}, {}, {SIGNED: {"Cardiomegaly": {"hit": None}, "Edema": row(0)}})
    assert labels_of(pictures, SIGNED) == ["Cardiomegaly", "Edema"]
    table = metric_table(pictures, SIGNED, "hit")
    expected = torch.tensor([[math.nan, 1], [math.nan, math.nan], [math.nan, 0]], dtype=torch.float64)
    assert torch.equal(table.nan_to_num(9), expected.nan_to_num(9))
    assert metric_table(pictures, SIGNED, "mass").isnan().all()
    assert metric_table(pictures, MEAN_MASK, "hit").shape == (3, 0)
    assert mean_over_findings(table) == 0.5  # a finding without a value does not count


def test_references_get_thresholds_and_are_never_chosen() -> None:
    overlaps = {"ious": [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]}
    choice = choose(by_picture({SIGNED: {"Edema": row(0)}, MEAN_MASK: {"Edema": overlaps}}))
    assert (choice.best, list(choice.thresholds), list(choice.hit_rates)) == (SIGNED, [SIGNED], [SIGNED])
    assert choice.thresholds_of(MEAN_MASK) == {"Edema": 0.4}
    assert choice.thresholds_of(ABSOLUTE) == {}


def test_without_a_split_every_candidate_counts_as_it_is_configured() -> None:
    choice = configured(["gradient", "occlusion (black)"])
    assert choice.methods == ["gradient", "occlusion (black)"]
    assert (choice.best, choice.n_pictures) == (Setting("gradient", "conventional"), 0)


def test_an_aggregate_may_be_best_but_has_no_routes() -> None:
    together = Setting(f"{BLUR.method} + gradient", "conventional", "positive")
    hits = {BLACK: (1, 0), SIGNED: (1, 0), together: (1, 1)}
    choice = choose(by_picture(*({each: {"Edema": row(hit[i])} for each, hit in hits.items()} for i in (0, 1))))
    assert choice.best == together
    assert choice.methods == [BLACK.method, SIGNED.method]
