"""The sentences that the numbers write."""

from pathlib import Path
from typing import Any

import pytest

from tests.train_like.evaluation.made import ABSOLUTE, MEAN_MASK, RANDOM, SIGNED, filled_journal, summary_of
from train_like.evaluation.report import write_report
from train_like.evaluation.tables import cell, table


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    return summary_of(filled_journal(tmp_path / "journal"))


@pytest.fixture
def report(tmp_path: Path) -> Any:
    def write(summary: dict[str, Any]) -> str:
        write_report(summary, tmp_path / "report.md")
        return (tmp_path / "report.md").read_text(encoding="utf-8")

    return write


def rows_of(text: str, heading: str, number: int = 0) -> dict[str, list[str]]:
    """A table under a heading, by the first cell of each row."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0].strip()
    tables = [part for part in section.split("\n\n") if part.startswith("| ")]
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in tables[number].splitlines()]
    assert lines[1] == ["---"] * len(lines[0])
    assert {len(line) for line in lines} == {len(lines[0])}
    return {line[0]: line[1:] for line in [lines[0], *lines[2:]]}


def interval(low: float, high: float, n: int = 20) -> dict[str, float]:
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": n}


def compared(setting: str, metric: str, n: int = 20, **ends: tuple[float, float]) -> list[dict[str, Any]]:
    told = {"setting": setting, "metric": metric}
    return [
        {**told, "reference": name.replace("_", " "), **interval(*each, n), "by_finding": {"Edema": interval(*each, n)}}
        for name, each in ends.items()
    ]


def claim(method: str, between: tuple[float, float], hit: tuple[float, float], **changes: Any) -> dict[str, Any]:
    values = {"between_texts": interval(*between), "hit": interval(*hit), "between_texts_randomised": None}
    values |= dict.fromkeys(("mass", "rank", "iou_otsu"))
    return {"method": method, "route": "stack_raw", "sign": "absolute", **values, **changes}


def test_where_the_best_setting_does_not_beat_which_reference_is_said(summary: dict[str, Any], report: Any) -> None:
    best, clear, unclear = summary["localisation"]["best"], (0.25, 0.75), (-0.25, 0.5)
    summary["localisation"]["against_references"] = [
        *compared(best, "hit", random=clear, mean_mask=clear),
        *compared(best, "mass", random=clear, mean_mask=(-0.5, -0.25)),
        *compared(best, "rank", random=unclear, mean_mask=clear),
        *compared("another", "hit", random=(0.0, 0.5), mean_mask=clear),
    ]
    text = report(summary)
    assert f"excludes zero. `{best}` beats every reference method in hit rate. In relevance mass it does not" in text
    assert "In relevance mass it does not beat mean mask, which is better: -0.38 [-0.50, -0.25]." in text
    assert "In relevance rank it does not beat random, from which it cannot be told: 0.12 [-0.25, 0.50]." in text
    told = "Edema, relevance mass: mean mask (better); Edema, relevance rank: random."
    assert f"Finding by finding it does not beat: {told}" in text
    rows = rows_of(text, "Answers")
    assert rows["setting"] == ["n", "hit rate", "mIoU (tuned)", "mIoU (Otsu)", "relevance mass", "relevance rank"]
    assert rows[best] == ["20", "beats all", "too few pictures", "too few pictures", "mean mask", "random"]
    assert rows["another"][:2] == ["20", "random"]


def test_few_pictures_give_neither_a_verdict_nor_an_interval(summary: dict[str, Any], report: Any) -> None:
    best = summary["localisation"]["best"]
    summary["localisation"]["against_references"] = compared(best, "hit", n=4, random=(0.25, 0.75))
    summary["claims"] = [
        claim("few", (-0.5, -0.25), (0.25, 0.5), between_texts=interval(-0.5, -0.25, 4)),
        claim("many", (-0.5, -0.25), (-0.5, 0.5), between_texts_randomised=interval(-0.5, -0.25, 2)),
    ]
    text = report(summary)
    assert "excludes zero. No verdict below 5 pictures (n = 4).\n" in text
    assert "Finding by finding it does not beat: none. No verdict, on fewer than 5 pictures: Edema.\n" in text
    assert rows_of(text, "Answers")[best][:2] == ["4", "too few pictures"]
    assert "Both at once (a peak inside the finding more often): none. More specific, though not" in text
    assert (
        "better located: many, stack raw, absolute. Neither: none. No verdict, on fewer than 5 pictures: few," in text
    )
    assert "[0.25, 0.75]" not in text
    rows = rows_of(text, "Answers", 2)
    assert rows["few, stack raw, absolute"][:2] == ["4", "-0.38 (n = 4)"]
    assert rows["many, stack raw, absolute"][:3] == ["20", "-0.38 [-0.50, -0.25]", "-0.38 (n = 2)"]


def test_an_effect_that_random_weights_have_too_is_told_from_one_that_was_learned(
    summary: dict[str, Any], report: Any
) -> None:
    there, gone, few = interval(-0.5, -0.25, 10), interval(-0.25, 0.25, 10), interval(-0.5, -0.25, 2)
    summary["claims"] = [
        claim("arithmetic", (-0.75, -0.5), (0.0, 0.0), between_texts_randomised=there),
        claim("learned", (-0.75, -0.5), (0.0, 0.0), between_texts_randomised=gone),
        claim("unknown", (-0.75, -0.5), (0.0, 0.0)),
        claim("few", (-0.75, -0.5), (0.0, 0.0), between_texts_randomised=few),
        claim("without", (-0.75, 0.5), (0.0, 0.0), between_texts_randomised=there),
        claim("worse", (0.5, 0.75), (0.0, 0.0), between_texts_randomised=there),
    ]
    answer = report(summary).split("**Does the effect survive weight randomisation?** ")[1].splitlines()[0]
    yes, no = answer.split("No, with random weights it is gone: ")
    assert yes.startswith("Yes, and that speaks against it: ")
    told = "arithmetic, stack raw, absolute (-0.62 [-0.75, -0.50] trained, -0.38 [-0.50, -0.25] random, n = 10). "
    assert yes.endswith(f"learned: {told}")
    assert no.startswith("learned, stack raw, absolute (-0.62 [-0.75, -0.50] trained, 0.00 [-0.25, 0.25] random, n = ")
    assert "too few pictures): unknown, stack raw, absolute; few, stack raw, absolute; without, stack raw" in no
    assert "worse" not in answer
    assert no.endswith(
        "Rank correlation of maps with the trained model's (n = 1): gradient, conventional, signed 0.50; gradient, "
        "conventional, absolute 0.50."
    )
    summary["claims"] = []
    assert "randomisation?** There is no effect whose survival could be told. Rank" in report(summary)


def test_two_findings_of_one_picture(summary: dict[str, Any], report: Any) -> None:
    rows = rows_of(report(summary), "Answers", 1)
    assert rows["setting"][:4] == ["n", "pairs", "A: peak in A only", "A: peak in B only"]
    assert rows[SIGNED.name][:4] == ["2", "4", "0.50 (n = 2)", "0.50 (n = 2)"]


def test_the_table_of_chexlocalize_is_printed_where_its_masks_are_used(summary: dict[str, Any], report: Any) -> None:
    assert "## CheXlocalize" not in report(summary)
    summary["about"]["ground_truth"] = True
    text = report(summary)
    assert "Means are over 1 findings: Edema (n = 2); the published ones are over nine" in text
    rows = rows_of(text, "CheXlocalize")
    assert rows[""] == ["hit rate, mean over findings", "mIoU, mean over findings", "Edema"]
    assert rows["radiologists (as quoted in arXiv 2509.18015)"] == ["0.801", "", ""]
    ours = rows[f"`checkpoint`, {SIGNED.name}"]
    assert ours == ["0.50 (n = 2)", "0.30 (n = 2)", "0.50 (n = 2); 0.30 (n = 2)"]
    assert rows["mean mask of the label, which looks at no image"][2] == "1.00 (n = 2); "


def test_without_regions_what_needs_none_is_told(summary: dict[str, Any], report: Any) -> None:
    summary |= {"localisation": None, "between_findings": [], "gallery": []}
    without = {"validation": 0, "test_with_regions": 0}
    summary["about"]["pictures"] = summary["about"]["pictures"] | without
    summary["about"]["ground_truth"] = True
    for way in summary["routes"].values():
        way["controls"]["gibberish"]["hit"] = None
    text = report(summary)
    assert "Evaluated without regions: of 3 pictures nothing is located and no setting chosen; methods are as" in text
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    ways = "Methods, routes, signs and text forms"
    assert headings == ["Answers", ways, "Faithfulness", "Stability", "Weight randomisation", "Pictures"]
    assert "Where does the best map point" not in text
    assert "The map of gibberish correlates 0.50 (n = 2) with that of the true text (`gradient, conv" in text
    assert rows_of(text, ways)["way"][1] == "correlation between texts (label)"


def test_the_claim_is_answered_way_by_way(summary: dict[str, Any], report: Any) -> None:
    summary["claims"] = [
        claim("specific", (-0.5, -0.1), (0.0, 0.5)),
        claim("both", (-0.5, -0.1), (0.1, 0.5)),
        claim("unclear", (-0.5, 0.0), (0.1, 0.5)),
        claim("worse", (0.1, 0.5), (-0.5, -0.1)),
        claim("same", (0.0, 0.0), (0.0, 0.0), route="stack_normalised", sign="signed"),
    ]
    text = report(summary)
    assert "more often): both, stack raw, absolute. More specific, though not better located: specific, stack" in text
    assert "Neither: unclear, stack raw, absolute; worse, stack raw, absolute. The same map as the conv" in text
    assert "since the method is linear: same, stack normalised, signed." in text
    rows = rows_of(text, "Answers", 2)
    assert list(rows) == ["way", *(f"{name}, stack raw, absolute" for name in ("specific", "both", "unclear", "worse"))]
    assert rows["way"][:4] == [
        "n",
        "correlation between texts",
        "correlation between texts, all weights random",
        "findings hit",
    ]
    told = ["20", "-0.30 [-0.50, -0.10]", "", "0.30 [0.10, 0.50]", "", "", ""]
    assert rows["both, stack raw, absolute"] == told


def test_where_no_way_does_it_says_none(summary: dict[str, Any], report: Any) -> None:
    summary["claims"] = []
    text = report(summary)
    assert "more often): none. More specific, though not better located: none. Neither: none.\n" in text
    assert "since the method is linear" not in text


def test_the_best_setting_and_its_weakest_finding(summary: dict[str, Any], report: Any) -> None:
    best = summary["localisation"]["settings"][0]
    best["by_finding"]["Nodule"] = {"hit": interval(0.0, 0.25), "iou": None}
    best["by_finding"]["Unseen"] = {"hit": None, "iou": None}
    text = report(summary)
    assert f"`{SIGNED.name}`, chosen on the validation split, hits 0.50 (n = 2) of the findings (n = 2); its" in text
    assert "its weakest is Nodule with 0.12 [0.00, 0.25] (n = 20)." in text


def test_controls_of_the_best_setting(summary: dict[str, Any], report: Any) -> None:
    text = report(summary)
    told = "(`gradient, conventional, signed`, n = 2)."
    gibberish = "The map of gibberish correlates 0.50 (n = 2) with that of the true text, and its peak lies in the "
    assert f"{gibberish}finding in 0.50 (n = 2) {told}" in text
    assert "The map of an irrelevant sentence correlates -0.50 (n = 2) with" in text
    for way in summary["routes"].values():
        way["controls"]["gibberish"]["correlation"] = None
    assert "The map of gibberish" not in report(summary)
    summary["localisation"]["best"] = ABSOLUTE.name
    assert "(`gradient, conventional, absolute`, n = 2)." in report(summary)


def test_of_an_aggregate_the_first_method_stands_for_the_controls(summary: dict[str, Any], report: Any) -> None:
    of_member = report(summary).split("Would a text without meaning")[1].splitlines()[0]
    best = summary["localisation"]["settings"][0]
    best |= {"setting": "gradient + occlusion, conventional, positive", "method": "gradient + occlusion"}
    best["sign"] = "positive"
    summary["localisation"]["best"] = best["setting"]
    assert of_member in report(summary)


def test_every_number_says_what_it_rests_on(summary: dict[str, Any], report: Any) -> None:
    text = report(summary)
    assert "Model `checkpoint`: phantoms only. Weights 0123456789ab, mapstack 1.0, seed 7, 3 s." in text
    assert "chosen on 5 validation pictures (2 with a finding). Localisation rests on the 2 of 3 test pictures" in text
    assert "that have a finding; routes and faithfulness rest on 2, what costs most on 1." in text
    assert "n is how many pictures count; below 5 there is no interval and no verdict." in text
    assert "highest logit is one that the picture has): 0.50 (n = 2), n = 2." in text
    assert "Hit rate, mean over findings (n = 2): what text form" in text
    assert "Hit rate. n = 1." in text
    assert "gradient 1.0e-06 (n = 2); gradient_shap 1.0e-05 (n = 1)." in text


def test_tables_have_a_cell_for_everything_and_leave_empty_what_was_not_measured(
    summary: dict[str, Any], report: Any
) -> None:
    text = report(summary)
    rows = rows_of(text, "Localisation")
    assert list(rows) == ["setting", *(each["setting"] for each in summary["localisation"]["settings"])]
    assert rows[SIGNED.name][:4] == ["2", "0.50 (n = 2)", "1.00 (n = 2)", "0.30 (n = 2)"]
    assert rows[RANDOM.name][3:5] == ["", "0.12 (n = 2)"]
    assert rows["Sobel edges"] == ["0", *[""] * 6]
    by_finding = rows_of(text, "Localisation", 1)
    assert by_finding["setting"] == ["Edema (n = 2)"]
    assert by_finding[MEAN_MASK.name] == ["1.00 (n = 2)"]
    # A reference without a threshold is left out.
    assert list(rows_of(text, "Localisation", 2)) == ["setting", SIGNED.name, ABSOLUTE.name]

    routes = rows_of(text, "Methods, routes, signs and text forms")
    assert routes["gradient_shap, stack normalised, absolute"][0] == "1"
    overlaps = ["0.50 (n = 2)", "0.25 (n = 2)", "0.12 (n = 2)"]
    assert routes["gradient, stack raw, absolute"] == ["2", *[""] * 4, "1.00 (n = 2)", "", *overlaps]
    faithful = rows_of(text, "Faithfulness")
    assert faithful == {
        "map": [
            "n",
            "deletion AUC (lower)",
            "insertion AUC (higher)",
            "infidelity (lower)",
            "completeness residual (lower)",
        ],
        SIGNED.name: ["2", "2.00 (n = 2)", "2.00 (n = 2)", "0.50 (n = 2)", ""],
    }
    assert rows_of(text, "Stability")["gradient"] == ["1", "0.50 (n = 1)", "0.0e+00", "1.00 (n = 1)"]
    cascade = rows_of(text, "Weight randomisation")
    assert cascade["map"] == ["trained", "projection_head"]
    assert cascade[SIGNED.name] == ["1.00 (n = 1)", "0.50 (n = 1)"]


def test_every_setting_is_ranked(summary: dict[str, Any], report: Any) -> None:
    every = [{"setting": name, **interval(low, 1.0)} for name, low in (("low", 0.0), ("high", 0.5), ("middle", 0.25))]
    summary["localisation"]["every_setting"] = [{"setting": "not measured"}, *every]
    rows = rows_of(report(summary), "Every setting of the chosen candidates")
    assert list(rows) == ["setting", "high", "middle", "low"]


def test_pictures_are_linked(summary: dict[str, Any], report: Any) -> None:
    text = report(summary)
    for name in ("hit-rate", "cascade-signed", "best/edema-1", "a.figure-1"):
        assert f"![{name}](figures/{name}.png)" in text


def test_cells_and_tables() -> None:
    assert cell(None) == ""
    assert cell({"mean": -0.005, "low": -1, "high": 2.345, "n": 5}) == "-0.01 [-1.00, 2.35]"
    assert table(["a", "b"], [["1", cell(None)]]) == "| a | b |\n| --- | --- |\n| 1 |  |"
