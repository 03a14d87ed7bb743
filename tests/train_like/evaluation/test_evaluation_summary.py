"""From scores by hand to means with intervals: closed forms."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mapstack.metrics.bootstrap import bootstrap
from tests.train_like.evaluation.made import (
    ABOUT,
    ABSOLUTE,
    CHOICE,
    MEAN_MASK,
    PATH,
    PATH_STACK,
    RANDOM,
    SIGNED,
    STACK,
    add,
    alike,
    filled_journal,
    located,
    stability,
    step_scores,
    summarised,
    summary_of,
    texts_of,
    way_scores,
)
from train_like.evaluation.answers import is_same
from train_like.evaluation.choice import Choice, configured
from train_like.evaluation.journal import Journal
from train_like.evaluation.settings import FORMS, Setting

NAN = float("nan")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, {}, overwrite=False)


def localise(journal: Journal, *pictures: dict[Setting, dict[str, Any]], is_right: bool = True) -> None:
    for number, settings in enumerate(pictures):
        by_key = {setting.key: labels for setting, labels in settings.items()}
        scores = {"settings": by_key, "predicted": {}, "pairs": {}, "zero_shot": is_right}
        add(journal, "localise", str(number), scores)


def interval(*rows: Any) -> dict[str, float]:
    """What a summary says of a table, n counted by hand of rows that are not all NaN."""
    table = torch.tensor(rows, dtype=torch.float64)
    found = bootstrap(table)
    n = sum(bool((~row.isnan()).any()) for row in table)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": n}


def same(value: float, n: int) -> dict[str, float]:
    """An interval without width."""
    return pytest.approx({"mean": value, "low": value, "high": value, "n": n})


def entry(summary: dict[str, Any], setting: Setting) -> dict[str, Any]:
    (found,) = (each for each in summary["localisation"]["settings"] if each["setting"] == setting.name)
    return found


def test_hits_are_averaged_over_findings_and_intervals_over_pictures(journal: Journal) -> None:
    hits = [(1.0, 0.0), (0.0, NAN), (1.0, NAN), (NAN, NAN), (NAN, 1.0)]
    pictures = [
        {SIGNED: {label: located(hit) for label, hit in zip(("A", "B"), row, strict=True) if hit == hit}}
        for row in hits
    ]
    localise(journal, *pictures[:3], {}, pictures[4])
    choice = Choice({SIGNED: {}}, {SIGNED: 0.25}, 1)
    found = entry(summarised(journal, choice), SIGNED)
    assert found["hit"] == interval(*hits)
    assert found["hit"]["mean"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["hit"]["n"] == 4
    assert found["by_finding"]["A"]["hit"] == interval(*([row[0]] for row in hits))
    assert found["by_finding"]["B"]["hit"] == interval(*([row[1]] for row in hits))
    assert found["by_finding"]["B"]["hit"]["n"] == 2
    assert found["mass"] == same(0.5, 4)
    assert found["rank"] == same(0.25, 4)
    assert found["iou_otsu"] == same(0.125, 4)
    assert found["validation_hit_rate"] == 0.25
    assert (found["method"], found["sign"], found["is_reference"]) == ("gradient", "signed", False)


def test_overlap_is_told_at_the_threshold_of_each_label(journal: Journal) -> None:
    first, second = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0.0, 0.9, 0.8, None, 0.0, 0.0, None]
    localise(
        journal,
        {SIGNED: {"A": located(1, first), "B": located(1, first), "C": located(1, first)}},
        {SIGNED: {"A": located(1, second), "B": located(1, second)}},
    )
    choice = Choice({SIGNED: {"A": 0.3, "B": 0.5}}, {SIGNED: 1.0}, 1)
    found = entry(summarised(journal, choice), SIGNED)
    assert found["thresholds"] == {"A": 0.3, "B": 0.5}
    assert found["by_finding"]["A"]["iou"] == interval([0.2], [0.9])
    assert found["by_finding"]["B"]["iou"] == interval([0.4], [NAN])  # an empty prediction is left out
    assert found["by_finding"]["C"]["iou"] is None  # a label that the validation split did not hold
    assert found["iou"] == interval([0.2, 0.4, NAN], [0.9, NAN, NAN])
    assert found["iou"]["mean"] == pytest.approx((0.55 + 0.4) / 2)


def test_references_without_a_threshold_and_every_setting_are_told(journal: Journal) -> None:
    peak = {"hit": 1.0, "pointing": 1.0}
    contrast = Setting("gradient", "conventional", is_contrast=True)
    localise(journal, {SIGNED: {"A": located(0)}, contrast: {"A": peak}, RANDOM: {"A": located(0)}})
    summary = summarised(journal, Choice({SIGNED: {"A": 0.2}}, {SIGNED: 1.0}, 1))
    reference = entry(summary, RANDOM)
    assert reference["is_reference"]
    assert (reference["iou"], reference["validation_hit_rate"], reference["thresholds"]) == (None, None, {})
    assert reference["iou_otsu"] == same(0.125, 1)
    assert entry(summary, MEAN_MASK)["hit"] is None
    every = {each["setting"]: each["mean"] for each in summary["localisation"]["every_setting"]}
    assert every == {SIGNED.name: 0.0, contrast.name: 1.0}
    assert summary["localisation"]["best"] == SIGNED.name


def test_references_are_compared_on_the_findings_that_both_have(journal: Journal) -> None:
    # The mean mask knows A only; on A the setting hits 1, 0 and the mean mask 0, 0; on B the setting always misses.
    localise(
        journal,
        {
            SIGNED: {"A": located(1), "B": located(0)},
            RANDOM: {"A": located(1), "B": located(1)},
            MEAN_MASK: {"A": located(0)},
        },
        {SIGNED: {"A": located(0)}, RANDOM: {"A": located(0)}, MEAN_MASK: {"A": located(0)}},
        {SIGNED: {"B": located(0)}, RANDOM: {"B": located(1)}},
    )
    summary = summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1))
    compared = compared_of(summary, "hit")
    assert compared.keys() == {"random", "mean mask of the label"}
    told = {"setting": SIGNED.name, "metric": "hit"}
    by_finding = {"A": interval([1.0], [0.0], [NAN])}
    of_mask = told | interval([1.0], [0.0], [NAN]) | {"by_finding": by_finding}
    assert compared["mean mask of the label"] == of_mask
    by_finding = {"A": interval([0.0], [0.0], [NAN]), "B": interval([-1.0], [NAN], [-1.0])}
    of_random = told | interval([0.0, -1.0], [0.0, NAN], [NAN, -1.0]) | {"by_finding": by_finding}
    assert compared["random"] == of_random
    assert compared["random"]["mean"] == -0.5


def compared_of(summary: dict[str, Any], metric: str) -> dict[str, dict[str, Any]]:
    """The comparisons in a metric, by reference."""
    every = summary["localisation"]["against_references"]
    return {each["reference"]: without(each, "reference") for each in every if each["metric"] == metric}


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def test_a_setting_that_hits_more_may_lose_in_every_other_metric(journal: Journal) -> None:
    ours, theirs = [0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0], [0.0, 0.75, 0.5, 0.0, 0.0, 0.0, 0.0]
    better = {"mass": 0.875, "rank": 0.5, "iou_otsu": 0.5}
    localise(
        journal,
        *({SIGNED: {"A": located(1, ours)}, MEAN_MASK: {"A": located(0, theirs) | better}} for _ in range(3)),
    )
    choice = Choice({SIGNED: {"A": 0.4}}, {SIGNED: 1.0}, 1, {MEAN_MASK: {"A": 0.3}})
    summary = summarised(journal, choice)
    found = {
        metric: compared_of(summary, metric)["mean mask of the label"]
        for metric in ("hit", "iou", "iou_otsu", "mass", "rank")
    }
    means = {metric: each["mean"] for metric, each in found.items()}
    assert means == {"hit": 1.0, "iou": -0.5, "iou_otsu": -0.375, "mass": -0.375, "rank": -0.25}
    assert entry(summary, MEAN_MASK)["iou"] == same(0.75, 3)  # at its own threshold


def test_pairs_of_findings_are_averaged_over_pictures(tmp_path: Path) -> None:
    journal = filled_journal(tmp_path)
    (found,) = summary_of(journal)["between_findings"]
    assert (found["setting"], found["n"], found["n_pairs"]) == (SIGNED.name, 2, 4)
    kinds = found["kinds"]
    assert kinds["A"] == {"in_a": same(0.5, 2), "in_b": same(0.5, 2)}
    assert kinds["A rather than a normal picture"] == {"in_a": same(1.0, 2), "in_b": same(0.0, 2)}
    assert kinds["A rather than B"]["in_a"] == interval([1.0], [0.5])  # "b" misses one of its two


def test_without_a_region_nothing_is_located_and_the_rest_is_told(journal: Journal) -> None:
    localise(journal, {}, {})
    scores = way_scores({SIGNED: (0.25, 1.0), STACK: (0.5, 1.0), ABSOLUTE: (0.0, 1.0)})
    for texts in scores["texts"].values():
        texts["controls"] = {"gibberish": [[0.5, None]]}
    scores["settings"] = {key: {} for key in scores["settings"]}
    add(journal, "matrix", "0", scores)
    steps = step_scores({SIGNED: 1.0})
    steps[SIGNED.key]["hit"] = None
    add(journal, "cascade", "0", {"trained": steps})
    summary = summarised(journal, configured(["gradient"]))
    assert summary["localisation"] is None
    assert summary["between_findings"] == []
    way = summary["routes"][SIGNED.key]
    assert way["between_texts"]["ensemble"] == same(0.25, 1)
    assert way["controls"]["gibberish"] == {"correlation": same(0.5, 1), "hit": None}
    assert way["hit"]["ensemble"] is None
    assert summary["cascade"]["ways"][SIGNED.name]["hit"] == [None]
    (claim,) = summary["claims"]
    assert (claim["between_texts"], claim["hit"]) == (same(0.5, 1), None)


def test_only_the_pictures_that_were_asked_for_count_and_in_their_order(journal: Journal) -> None:
    localise(journal, *({SIGNED: {"A": located(hit)}} for hit in (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)))
    for key, correlation in (("0", 0.25), ("3", 0.75), ("1", 0.5)):
        add(journal, "matrix", key, way_scores({SIGNED: (correlation, 1.0)}))
    choice = Choice({SIGNED: {}}, {SIGNED: 1.0}, 1)
    hits = {
        order: entry(summarised(journal, choice, localise=list(order), matrix=["1", "0"]), SIGNED)["hit"]
        for order in ("301245", "124530")
    }
    assert hits["301245"] == interval([1.0], [1.0], [0.0], [0.0], [0.0], [0.0])
    assert hits["124530"] == interval([0.0], [0.0], [0.0], [0.0], [1.0], [1.0])
    summary = summarised(journal, choice, localise=["0"], matrix=["1", "0"])
    assert summary["about"]["zero_shot"]["n"] == 1
    assert summary["routes"][SIGNED.key]["between_texts"]["ensemble"] == interval([0.5], [0.25])


def test_zero_shot_accuracy_is_over_all_pictures(journal: Journal) -> None:
    localise(journal, {SIGNED: {"A": located(1)}}, {})
    add(journal, "localise", "x", {"settings": {}, "predicted": {}, "pairs": {}, "zero_shot": False})
    about = summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1))["about"]
    assert about["zero_shot"] == interval([1.0], [1.0], [0.0])
    assert about["seed"] == ABOUT["seed"]


def test_what_each_way_says_of_its_texts(tmp_path: Path) -> None:
    summary = summary_of(filled_journal(tmp_path))
    way = summary["routes"][SIGNED.key]
    assert (way["method"], way["route"], way["sign"], way["n"]) == ("gradient", "conventional", "signed", 2)
    assert way["between_texts"] == dict(zip(FORMS, (same(1.0, 2), same(0.75, 2), same(0.5, 2)), strict=True))
    assert way["ssim"] == same(0.5, 2)
    assert way["outside_body"] == same(0.25, 2)
    assert way["controls"]["gibberish"] == {"correlation": same(0.5, 2), "hit": same(0.5, 2)}
    assert way["controls"]["irrelevant"] == {"correlation": same(-0.5, 2), "hit": same(0.0, 2)}
    assert way["hit"].keys() == {f"{form}{contrast}" for form in FORMS for contrast in ("", ", contrast")}
    assert way["hit"]["ensemble"] == interval([1.0], [0.0])
    assert way["hit"]["ensemble, contrast"] is None
    assert way["overlap"] == {"mass": same(0.5, 2), "rank": same(0.25, 2), "iou_otsu": same(0.125, 2)}
    assert summary["routes"][PATH_STACK.key]["n"] == 1
    assert summary["matrices"][SIGNED.key] == alike(0.5)


def test_hits_of_a_way_are_shares_of_the_pictures_findings(journal: Journal) -> None:
    localise(journal, {SIGNED: {"A": located(1)}})
    for key, hits in (("0", {"A": 1.0, "B": 0.0, "C": 0.0}), ("1", {"A": 1.0})):
        settings = {SIGNED.key: {label: {"hit": hit} for label, hit in hits.items()}}
        add(journal, "matrix", key, way_scores({SIGNED: (0.0, 0.0)}) | {"settings": settings})
    summary = summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1))
    assert summary["routes"][SIGNED.key]["hit"]["ensemble"] == interval([1 / 3], [1.0])


def test_a_mean_matrix_is_over_pictures(journal: Journal) -> None:
    localise(journal, {SIGNED: {"A": located(1)}})
    for key, correlation in (("0", 0.25), ("1", -0.75)):
        add(journal, "matrix", key, way_scores({SIGNED: (correlation, 1.0)}))
    summary = summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1))
    assert summary["matrices"] == {SIGNED.key: alike(-0.25)}
    assert summary["routes"][SIGNED.key]["between_texts"]["ensemble"] == interval([0.25], [-0.75])


def test_agreement_is_the_worst_of_all_pictures(journal: Journal) -> None:
    localise(journal, {SIGNED: {"A": located(1)}})
    for stage, key, found in (("matrix", "0", {"gradient": 1e-7}), ("matrix", "1", {"gradient": 3e-7})):
        add(journal, stage, key, way_scores({SIGNED: (0.0, 1.0)}) | {"agreement": found})
    axes = way_scores({PATH_STACK: (0.0, 1.0)}) | stability(0.0, 0.0, 1.0)
    add(journal, "axes", "0", axes | {"agreement": {"gradient_shap": 2e-6}})
    summary = summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1))
    assert summary["agreement"] == {"gradient": {"largest": 3e-7, "n": 2}, "gradient_shap": {"largest": 2e-6, "n": 1}}


def test_faithfulness_is_told_point_by_point_and_where_it_was_asked(tmp_path: Path) -> None:
    journal = filled_journal(tmp_path)
    with_residual = {
        "deletion": 4.0,
        "insertion": 0.0,
        "infidelity": 0.5,
        "completeness": 0.125,
        "deletion_curve": [1.0, 1.0],
        "insertion_curve": [2.0, 4.0],
    }
    more = way_scores({SIGNED: (0.0, 1.0)}) | {"faithfulness": {SIGNED.key: with_residual, RANDOM.key: with_residual}}
    add(journal, "matrix", "c", more)
    found = summary_of(journal)["faithfulness"]
    assert found.keys() == {SIGNED.name, "random"}
    signed = found[SIGNED.name]
    assert signed["deletion"] == interval([2.0], [2.0], [4.0])
    assert signed["infidelity"] == same(0.5, 3)
    assert signed["completeness"] == same(0.125, 1)
    assert signed["deletion_curve"] == [interval([3.0], [3.0], [1.0]), same(1.0, 3)]
    assert signed["insertion_curve"][1] == interval([3.0], [3.0], [4.0])
    assert found["random"]["deletion"] == same(4.0, 1)


def test_stability(journal: Journal) -> None:
    localise(journal, {SIGNED: {"A": located(1)}})
    for key, values in (("0", (0.5, 0.0, 1.0)), ("1", (0.25, 1e-7, 0.5))):
        add(journal, "axes", key, way_scores({PATH_STACK: (0.0, 1.0)}) | stability(*values))
    found = summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1))["stability"]
    assert found == {
        "gradient": {
            "max_sensitivity": interval([0.5], [0.25]),
            "same_seed": 1e-7,
            "other_seed": interval([1.0], [0.5]),
        }
    }


def test_the_cascade_keeps_its_order(journal: Journal) -> None:
    localise(journal, {SIGNED: {"A": located(1)}})
    for number, values in enumerate(((1.0, 0.5, 0.0), (1.0, 0.25, 0.25))):
        steps = zip(("trained", "z", "a"), values, strict=True)
        add(journal, "cascade", str(number), {step: step_scores({SIGNED: value}) for step, value in steps})
    found = summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1))["cascade"]
    assert found["stages"] == ["trained", "z", "a"]
    assert list(found["ways"]) == [SIGNED.name]
    expected = [same(1.0, 2), interval([0.5], [0.25]), interval([0.0], [0.25])]
    assert found["ways"][SIGNED.name] == dict.fromkeys(
        ("pearson", "spearman", "ssim", "between_texts", "hit"), expected
    )


def test_nothing_measured_is_an_empty_summary(journal: Journal) -> None:
    localise(journal, {SIGNED: {"A": located(1)}})
    summary = summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1))
    assert summary["cascade"] == {"stages": [], "ways": {}}
    empty = {key: summary[key] for key in ("routes", "agreement", "faithfulness", "matrices", "stability")}
    assert empty == dict.fromkeys(empty, {})
    assert summary["claims"] == []


def claims_of(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{each['method']}|{each['route']}|{each['sign']}": each for each in summary["claims"]}


def test_claims_compare_the_stack_with_the_conventional_map_of_the_same_pictures(tmp_path: Path) -> None:
    journal = filled_journal(tmp_path)
    claims = claims_of(summary_of(journal))
    # For the signed stack there is no entry, nor for the conventional maps themselves.
    assert claims.keys() == {"gradient|stack_raw|absolute", "gradient_shap|stack_normalised|absolute"}
    gradient = claims["gradient|stack_raw|absolute"]
    assert gradient["between_texts"] == same(0.25 - 0.5, 2)
    assert gradient["hit"] == same(1.0, 2)
    assert gradient["between_texts_randomised"] == interval([0.75 - 0.125], [0.5 - 0.125])
    assert (gradient["mass"], gradient["rank"], gradient["iou_otsu"]) == (same(0.0, 2),) * 3
    # Its stack was made on the first picture only, where the conventional map hits, too.
    shap = claims["gradient_shap|stack_normalised|absolute"]
    assert shap["between_texts"] == same(-0.25, 1)
    assert shap["hit"] == same(0.0, 1)
    assert shap["between_texts_randomised"] is None


def test_a_claim_of_equal_maps_is_the_same(journal: Journal) -> None:
    localise(journal, {SIGNED: {"A": located(1)}})
    stack, raw = (Setting("gradient_shap", route) for route in ("stack_normalised", "stack_raw"))
    for key, correlation in (("0", 0.25), ("1", -0.75)):
        ways = {PATH: (correlation, 1.0), stack: (correlation + 1e-5, 1.0), raw: (correlation, float(key))}
        add(journal, "matrix", key, way_scores(ways))
    claims = claims_of(summarised(journal, Choice({SIGNED: {}}, {SIGNED: 1.0}, 1)))
    assert is_same(claims["gradient_shap|stack_normalised|signed"])
    assert not is_same(claims["gradient_shap|stack_raw|signed"])
    assert claims["gradient_shap|stack_raw|signed"]["hit"] == interval([-1.0], [0.0])


@pytest.mark.parametrize("key", ["between_texts", "hit"])
@pytest.mark.parametrize("end", ["low", "high"])
def test_one_end_off_zero_is_not_the_same(key: str, end: str) -> None:
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    assert is_same({"between_texts": zero, "hit": zero, "between_texts_randomised": None})
    for value in (-0.5, 0.5):
        assert not is_same({"between_texts": zero, "hit": zero} | {key: zero | {end: value}})


def test_texts_by_hand_are_what_stages_write() -> None:
    assert texts_of(0.0)["correlation"].keys() == set(FORMS)
    assert CHOICE.best == SIGNED
