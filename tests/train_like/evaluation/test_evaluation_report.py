"""The sentences that the numbers write."""

from pathlib import Path
from typing import Any

import pytest

from tests.train_like.evaluation.made import ABSOLUTE, MEAN_MASK, RANDOM, SIGNED, filled_journal, summary_of
from train_like.evaluation.report import cell, table, write_report


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


def interval(low: float, high: float, n: int = 2) -> dict[str, float]:
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": n}


def compared(setting: str, **low_of: float) -> list[dict[str, Any]]:
    return [
        {"setting": setting, "reference": name.replace("_", " "), **interval(low, 1.0)} for name, low in low_of.items()
    ]


def claim(method: str, between: tuple[float, float], hit: tuple[float, float], **changes: Any) -> dict[str, Any]:
    values = {"between_texts": interval(*between), "hit": interval(*hit), "between_texts_randomised": None}
    return {"method": method, "route": "stack_raw", "sign": "absolute", **values, **changes}


def test_a_method_beats_what_it_differs_from_for_certain(summary: dict[str, Any], report: Any) -> None:
    summary["localisation"]["against_references"] = [
        *compared("first", random=0.01, centre_prior=0.5),
        *compared("second", random=-0.1, centre_prior=0.2, Sobel_edges=0.0),
    ]
    text = report(summary)
    assert "`first` beats every reference method. `second` does not beat random, Sobel edges." in text
    assert text.count("does not beat") == 1


def test_the_claim_is_answered_way_by_way(summary: dict[str, Any], report: Any) -> None:
    summary["claims"] = [
        claim("specific", (-0.5, -0.1), (0.0, 0.5)),
        claim("both", (-0.5, -0.1), (0.1, 0.5)),
        claim("unclear", (-0.5, 0.0), (0.1, 0.5)),
        claim("worse", (0.1, 0.5), (-0.5, -0.1)),
        claim("same", (0.0, 0.0), (0.0, 0.0), route="stack_normalised", sign="signed"),
    ]
    text = report(summary)
    assert "Both at once: both, stack raw, absolute. More specific, though not better located: specific, stack" in text
    assert "Neither: unclear, stack raw, absolute; worse, stack raw, absolute. The same map as the conv" in text
    assert "since the method is linear: same, stack normalised, signed." in text
    rows = rows_of(text, "Answers")
    assert list(rows) == ["way", *(f"{name}, stack raw, absolute" for name in ("specific", "both", "unclear", "worse"))]
    assert rows["both, stack raw, absolute"] == ["2", "-0.30 [-0.50, -0.10]", "0.30 [0.10, 0.50]", ""]


def test_where_no_way_does_it_says_none(summary: dict[str, Any], report: Any) -> None:
    summary["claims"] = []
    text = report(summary)
    assert "Both at once: none. More specific, though not better located: none. Neither: none.\n" in text
    assert "since the method is linear" not in text


def test_the_best_setting_and_its_weakest_finding(summary: dict[str, Any], report: Any) -> None:
    best = summary["localisation"]["settings"][0]
    best["by_finding"]["Nodule"] = {"hit": interval(0.0, 0.25), "iou": None}
    best["by_finding"]["Unseen"] = {"hit": None, "iou": None}
    text = report(summary)
    assert f"`{SIGNED.name}`, chosen on the validation split, hits 0.50 [0.00, 1.00] of the findings" in text
    assert "its weakest is Nodule with 0.12 [0.00, 0.25]." in text


def test_controls_of_the_best_setting(summary: dict[str, Any], report: Any) -> None:
    text = report(summary)
    told = "(`gradient, conventional, signed`, n = 2)."
    gibberish = (
        "The map of gibberish correlates 0.50 [0.50, 0.50] with that of the true text, and its peak lies in the "
    )
    assert f"{gibberish}finding in 0.50 [0.50, 0.50] {told}" in text
    assert "The map of an irrelevant sentence correlates -0.50 [-0.50, -0.50] with" in text
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
    assert (
        "chosen on 5 validation pictures (2 with a region). Localisation rests on 2 test pictures, routes and" in text
    )
    assert "faithfulness on 2, what costs most on 1." in text
    assert "highest logit is one that the picture has): 0.50 [0.00, 1.00], n = 2." in text
    assert "gradient 1.0e-06 (n = 2); gradient_shap 1.0e-05 (n = 1)." in text


def test_tables_have_a_cell_for_everything_and_leave_empty_what_was_not_measured(
    summary: dict[str, Any], report: Any
) -> None:
    text = report(summary)
    rows = rows_of(text, "Localisation")
    assert list(rows) == ["setting", *(each["setting"] for each in summary["localisation"]["settings"])]
    assert rows[SIGNED.name][:3] == ["0.50 [0.00, 1.00]", "1.00 [1.00, 1.00]", "0.30 [0.30, 0.30]"]
    assert rows[RANDOM.name][2:4] == ["", "0.12 [0.12, 0.12]"]
    assert rows["Sobel edges"] == [""] * 6
    by_finding = rows_of(text, "Localisation", 1)
    assert by_finding["setting"] == ["Edema"]
    assert by_finding[MEAN_MASK.name] == ["1.00 [1.00, 1.00]"]
    assert by_finding["centre prior"] == [""]
    assert list(rows_of(text, "Localisation", 2)) == ["setting", SIGNED.name, ABSOLUTE.name]  # no reference

    routes = rows_of(text, "Methods, routes, signs and text forms")
    assert routes["gradient_shap, stack normalised, absolute"][0] == "1"
    assert routes["gradient, stack raw, absolute"] == ["2", *[""] * 4, "1.00 [1.00, 1.00]", ""]
    faithful = rows_of(text, "Faithfulness")
    assert faithful == {
        "map": [
            "deletion AUC (lower)",
            "insertion AUC (higher)",
            "infidelity (lower)",
            "completeness residual (lower)",
        ],
        SIGNED.name: ["2.00 [2.00, 2.00]", "2.00 [2.00, 2.00]", "0.50 [0.50, 0.50]", ""],
    }
    assert rows_of(text, "Stability")["gradient"] == ["0.50 [0.50, 0.50]", "0.0e+00", "1.00 [1.00, 1.00]"]
    cascade = rows_of(text, "Weight randomisation")
    assert cascade["map"] == ["trained", "projection_head"]
    assert cascade[SIGNED.name] == ["1.00 [1.00, 1.00]", "0.50 [0.50, 0.50]"]


def test_every_setting_is_ranked(summary: dict[str, Any], report: Any) -> None:
    every = [{"setting": name, **interval(low, 1.0)} for name, low in (("low", 0.0), ("high", 0.5), ("middle", 0.25))]
    summary["localisation"]["every_setting"] = [{"setting": "not measured"}, *every]
    rows = rows_of(report(summary), "Every setting of the chosen candidates")
    assert list(rows) == ["setting", "high", "middle", "low"]


def test_pictures_are_linked(summary: dict[str, Any], report: Any) -> None:
    text = report(summary)
    for name in ("hit-rate", "cascade", "best/edema-1"):
        assert f"![{name}](figures/{name}.png)" in text


def test_cells_and_tables() -> None:
    assert cell(None) == ""
    assert cell({"mean": -0.005, "low": -1, "high": 2.345, "n": 1}) == "-0.01 [-1.00, 2.35]"
    assert table(["a", "b"], [["1", cell(None)]]) == "| a | b |\n| --- | --- |\n| 1 |  |"
