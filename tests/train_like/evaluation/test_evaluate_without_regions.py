"""`evaluate` on pictures of which no mask and no box is known."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train_like.evaluation.evaluated import (
    evaluate,
    narrow_models,
    prepared,
    refuse_constant,
    scored,
    write_healthy,
)
from train_like import evaluate as command


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with narrow_models():
        yield


@pytest.fixture(scope="module")
def config(narrow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("without-regions"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: drawing takes longer than scoring."""
    monkeypatch.setattr(command, "draw_charts", lambda *_: [])
    monkeypatch.setattr(command, "draw_paper_figures", lambda *_: [])


@pytest.mark.usefixtures("no_pictures")
def test_without_regions_the_rest_is_evaluated(config: Path, tmp_path: Path) -> None:
    code, line = evaluate(
        config,
        f"output={tmp_path}/new",
        "regions=none",
        "validation.shards=nowhere-*.tar",
        "candidates=[{name: gradient}]",
        "aggregates=[]",
        "n_matrix=2",
    )
    assert (code, line["pictures"], line["best"]) == (0, 3, None)
    assert {stage for stage, _ in scored(tmp_path / "new" / "scores.jsonl")} == {
        "localise",
        "matrix",
        "axes",
        "cascade",
        "randomised",
    }
    metrics = json.loads(
        (tmp_path / "new" / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse_constant
    )
    assert metrics["localisation"] is None
    assert metrics["about"]["pictures"]["matrix"] == 2
    assert metrics["faithfulness"]["gradient, conventional, signed, ensemble"]["deletion"]["n"] == 2
    assert not (tmp_path / "new" / "chexlocalize").exists()
    assert "Evaluated without regions" in (tmp_path / "new" / "report.md").read_text(encoding="utf-8")


def test_a_split_without_boxes_is_evaluated_without_regions_and_drawn(config: Path, tmp_path: Path) -> None:
    write_healthy(tmp_path)
    code, line = evaluate(
        config,
        f"output={tmp_path}/new",
        f"data.shards={tmp_path}/healthy-*.tar",
        "regions=none",
        "candidates=[{name: gradient}]",
        "aggregates=[]",
    )
    assert (code, line["pictures"]) == (0, 2)
    report = (tmp_path / "new" / "report.md").read_text(encoding="utf-8")
    linked = {name.split(")")[0] for name in report.split("](")[1:]}
    assert linked == {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.png")} != set()
