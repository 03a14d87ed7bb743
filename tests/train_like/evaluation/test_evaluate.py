"""`evaluate` as a command, on a model that has learned nothing."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from mapstack.config import DataConfig, load_config
from mapstack.explainer import Explainer
from mapstack.images import MEDCLIP
from mapstack.job_configs import EvaluateConfig
from mapstack.methods import make_method
from mapstack.metrics.chexlocalize import MIMIC_LABELS, hit, read_masks, true_positive_iou
from mapstack.metrics.rle import decode_mask
from mapstack.metrics.sanity import stage_names
from mapstack.models import EmbeddingModel, load_model, medclip
from mapstack.phantom import phantom
from mapstack.prompts import TextGroup
from mapstack.store.lines import decode_line
from tests.train_like.conftest import save_checkpoint
from tests.train_like.evaluation.evaluated import (
    OCCLUSION,
    SENTENCES,
    SHAP,
    TEST,
    TOGETHER,
    evaluate,
    narrow_models,
    prepared,
    refuse_constant,
    scored,
    write_healthy,
)
from train_like import evaluate as command
from train_like.evaluation.cases import Cases
from train_like.evaluation.scorer import Scorer, Workers
from train_like.evaluation.settings import Setting


@dataclass(frozen=True)
class Run:
    """A configuration, and what a run of it left."""

    config: Path
    folder: Path
    code: int
    line: dict[str, Any]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def metrics(self) -> dict[str, Any]:
        text = (self.output / "metrics.json").read_text(encoding="utf-8")
        return json.loads(text, parse_constant=refuse_constant)

    def best(self) -> dict[str, Any]:
        localisation = self.metrics()["localisation"]
        return next(each for each in localisation["settings"] if each["setting"] == localisation["best"])

    def in_full(self) -> set[str]:
        return {each["setting"] for each in self.metrics()["localisation"]["settings"]}


def refuse_to_score(*_: object) -> NoReturn:
    raise AssertionError("something is scored")


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with narrow_models():
        yield


@pytest.fixture(scope="module")
def narrow_model(first: "Run") -> EmbeddingModel:
    return load_model("medclip-vit", first.folder / "checkpoint")


@pytest.fixture(scope="module")
def first(narrow: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluate")
    config = prepared(folder)
    return Run(config, folder, *evaluate(config))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: drawing takes longer than scoring."""
    monkeypatch.setattr(command, "draw_charts", lambda *_: [])
    monkeypatch.setattr(command, "draw_gallery", lambda *_: [])
    monkeypatch.setattr(command, "draw_paper_figures", lambda *_: [])


@pytest.fixture
def copy(first: Run, tmp_path: Path) -> Path:
    """The scores of the first run, in another output."""
    (tmp_path / "out").mkdir()
    shutil.copy(first.output / "scores.jsonl", tmp_path / "out")
    return tmp_path / "out" / "scores.jsonl"


def test_it_ends_well_and_says_what_is_best(first: Run) -> None:
    assert first.code == 0
    seconds = first.line.pop("seconds")
    best = first.metrics()["localisation"]["best"]
    assert first.line == {
        "command": "evaluate",
        "status": "done",
        "output": str(first.output),
        "pictures": 3,
        "best": best,
    }
    assert seconds == first.metrics()["seconds"] > 0
    assert best in first.in_full()


def test_metrics_are_finite_and_complete(first: Run, narrow_model: EmbeddingModel) -> None:
    metrics = first.metrics()
    counts = {"validation": 3, "validation_with_regions": 3, "test": 3, "test_with_regions": 2, "matrix": 1, "axes": 1}
    assert metrics["about"]["pictures"] == counts
    assert metrics["about"]["zero_shot"]["n"] == 3
    assert list(metrics["about"]["candidates"]) == ["gradient", OCCLUSION, SHAP]
    settings = metrics["localisation"]["settings"]
    references = ["random", "centre prior", "Sobel edges", "mean mask of the label"]
    assert [each["setting"] for each in settings if each["is_reference"]] == references
    chosen = [(each["method"], each["sign"]) for each in settings if not each["is_reference"]]
    each_sign = [(method, sign) for method in ("gradient", OCCLUSION, SHAP) for sign in ("signed", "absolute")]
    assert chosen == [*each_sign, (TOGETHER, "positive")]
    for each in settings:
        assert each["by_finding"].keys() == {"Cardiomegaly", "Pleural Effusion"}
        for metric in ("hit", "pointing", "mass", "rank"):
            assert 0 <= each[metric]["low"] <= each[metric]["mean"] <= each[metric]["high"] <= 1
            assert each[metric]["n"] == 2  # one of the three has no finding
    assert len(metrics["localisation"]["every_setting"]) == (3 * 2 + 1) * 3 * 2
    assert len(metrics["localisation"]["against_references"]) == 7 * 4 * 5
    assert {each["setting"] for each in metrics["between_findings"]} == {
        each["setting"] for each in settings if each["sign"] in ("signed", "positive") and not each["is_reference"]
    }
    for each in settings:
        assert each["thresholds"]
    gradient_and_occlusion = {
        Setting(method, route, sign).key
        for method in ("gradient", OCCLUSION)
        for route in ("conventional", "stack_normalised", "stack_raw")
        for sign in ("signed", "absolute")
    }
    path = {Setting(SHAP, route).key for route in ("conventional", "stack_normalised", "stack_raw")}
    path |= {Setting(SHAP, route, "absolute").key for route in ("conventional", "stack_normalised", "stack_raw")}
    assert metrics["routes"].keys() == metrics["matrices"].keys() == gradient_and_occlusion | path
    assert {method: each["n"] for method, each in metrics["agreement"].items()} == dict.fromkeys(
        ("gradient", OCCLUSION, SHAP), 1
    )
    assert max(each["largest"] for each in metrics["agreement"].values()) < 1e-3
    assert metrics["stability"].keys() == {"gradient", OCCLUSION, SHAP}
    assert metrics["cascade"]["stages"] == ["trained", *stage_names(narrow_model)]
    for way in metrics["cascade"]["ways"].values():
        assert way["pearson"][0]["mean"] == pytest.approx(1)
        assert all(len(points) == len(metrics["cascade"]["stages"]) for points in way.values())
    assert {(each["method"], each["route"], each["sign"]) for each in metrics["claims"]} == {
        (way.method, way.route, way.sign)
        for way in map(Setting.parse, gradient_and_occlusion | path)
        if way.route != "conventional"
    }


def test_a_hit_is_that_of_the_map_that_a_user_would_make(first: Run, narrow_model: EmbeddingModel) -> None:
    groups = [TextGroup(label, tuple(SENTENCES[label])) for label in ("Cardiomegaly", "Pleural Effusion")]
    explainer = Explainer(narrow_model, make_method("gradient"))
    lines = [decode_line(line) for line in (first.output / "scores.jsonl").read_bytes().splitlines(keepends=True)]
    scores = {line["key"]: line["scores"] for line in lines if line is not None and line.get("stage") == "localise"}
    cases = Cases(DataConfig(shards=f"{first.folder}/test-*.tar"), MEDCLIP, None, 3)
    n_compared = 0
    for case in cases:
        (found,) = explainer.explain_conventionally([case.prepared], groups)
        for region in case.regions:
            expected = hit(found.maps[found.names.index(region.label)], region.mask)
            setting = Setting("gradient", "conventional")
            assert scores[case.key]["settings"][setting.key][region.label]["hit"] == expected
            n_compared += 1
    assert n_compared == 3


def test_the_report_names_every_setting_and_its_pictures_are_there(first: Run) -> None:
    report = (first.output / "report.md").read_text(encoding="utf-8")
    for setting in first.in_full():
        assert f"| {setting} |" in report
    for each in first.metrics()["localisation"]["every_setting"]:
        assert f"| {each['setting']} |" in report
    linked = {line.split("](")[1].removesuffix(")") for line in report.splitlines() if line.startswith("![")}
    drawn = {str(path.relative_to(first.output)) for path in first.output.rglob("*.png")}
    figures = ("figure-1", "figure-2", "figure-2-raw-saliency")
    paper = {f"figures/film-{number}.{figure}.png" for number in (0, 2) for figure in figures}  # those with a finding
    assert len(linked - paper) == 8 + 3  # charts, and the findings of three test pictures
    assert drawn == linked >= paper
    for name in drawn:
        with Image.open(first.output / name) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 1  # not blank


def test_the_files_of_chexlocalize_score_what_the_metrics_say(first: Run) -> None:
    truth = read_masks(first.output / "chexlocalize" / "gt_segmentations.json")
    predicted = read_masks(first.output / "chexlocalize" / "pred_segmentations.json")
    assert truth.keys() == predicted.keys() == {"film-0", "film-2"}
    best = first.best()
    means = []
    for label, threshold in best["thresholds"].items():
        assert 0.2 <= threshold <= 0.8
        name = next(name for name, of_mimic in MIMIC_LABELS.items() if of_mimic == label)
        overlaps = [
            true_positive_iou(decode_mask(predicted[key][name]), decode_mask(truth[key][name])) for key in truth
        ]
        means.append(float(torch.tensor(overlaps, dtype=torch.float64).nanmean()))
        assert best["by_finding"][label]["iou"]["mean"] == pytest.approx(means[-1], abs=1e-5)
    assert len(means) == 2
    assert best["iou"]["mean"] == pytest.approx(math.fsum(means) / 2, abs=1e-5)
    for number, labels in ((0, TEST[0]), (2, TEST[2])):
        film = phantom(70 + number, size=224, labels=labels)
        for finding in film.findings:
            assert np.array_equal(decode_mask(truth[f"film-{number}"][finding.label]).numpy(), finding.mask)


@pytest.mark.usefixtures("no_pictures")
def test_a_larger_evaluation_adds_the_new_pictures_only(first: Run, copy: Path) -> None:
    before = copy.read_bytes()
    code, line = evaluate(first.config, f"output={copy.parent}", "n=4")
    assert (code, line["pictures"]) == (0, 4)
    assert copy.read_bytes().startswith(before)
    assert scored(copy)[len(scored(first.output / "scores.jsonl")) :] == [("localise", "film-3")]
    metrics = Run(first.config, copy.parents[1], code, line).metrics()
    assert metrics["localisation"]["settings"][0]["hit"]["n"] == 3
    assert evaluate(first.config, f"output={copy.parent}", "n=4")[0] == 0
    assert len(scored(copy)) == len(scored(first.output / "scores.jsonl")) + 1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("wanted", [("tune", "film-1"), ("localise", "film-2")])
def test_a_stopped_evaluation_does_the_torn_picture_again(first: Run, copy: Path, wanted: tuple[str, str]) -> None:
    head, *lines = copy.read_bytes().splitlines(keepends=True)
    (last,) = (line for line, done in zip(lines, scored(copy), strict=True) if done == wanted)
    whole = head + b"".join(line for line in lines if line != last) + last
    copy.write_bytes(whole[:-20])
    assert wanted not in scored(copy)
    assert evaluate(first.config, f"output={copy.parent}")[0] == 0
    assert copy.read_bytes() == whole
    again = json.loads((copy.parent / "metrics.json").read_text(encoding="utf-8"))
    unlike = {"seconds", "gallery", "charts", "paper"}
    assert {key: each for key, each in again.items() if key not in unlike} == {
        key: each for key, each in first.metrics().items() if key not in unlike
    }


@pytest.mark.usefixtures("no_pictures")
def test_a_smaller_evaluation_tells_of_its_own_pictures_only(first: Run, copy: Path) -> None:
    assert evaluate(first.config, f"output={copy.parent}", "n=1")[0] == 0
    metrics = json.loads((copy.parent / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["about"]["pictures"]["test"] == metrics["about"]["zero_shot"]["n"] == 1
    assert {each["hit"]["n"] for each in metrics["localisation"]["settings"]} == {1}
    assert read_masks(copy.parent / "chexlocalize" / "gt_segmentations.json").keys() == {"film-0"}
    assert scored(copy) == scored(first.output / "scores.jsonl")


def test_worker_processes_score_the_same(first: Run, tmp_path: Path) -> None:
    # A worker imports the code afresh, so that its model has 512 dimensions.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medclip, "_EMBED_DIM", 512)
        patch.setattr(medclip.MedCLIP, "embed_dim", 512)
        overrides = [
            f"model.checkpoint={save_checkpoint(tmp_path, seed=0)}",
            "workers=1",
            "candidates=[{name: gradient}]",
            "aggregates=[]",
        ]
        config = load_config(EvaluateConfig, first.config, overrides)
        scorer = Scorer(config)
        keys = scorer.validation.keys[:2]
        with Workers(config, scorer) as workers:
            found = dict(workers.score("tune", keys, None))
        assert found.keys() == set(keys)
        for key, scores in found.items():
            expected = scorer.score("tune", key, None)
            assert scores.keys() == expected.keys() != set()
            for setting, by_label in expected.items():
                for label, each in by_label.items():
                    assert scores[setting][label].get("hit") == each.get("hit")  # references are not chosen from
                    assert scores[setting][label]["ious"] == pytest.approx(each["ious"], abs=1e-3)


@pytest.mark.parametrize(
    ("override", "name"),
    [("seed=1", "seed"), ("n_validation=2", "n_validation"), ("smoothing_px=[0,2]", "smoothing_px")],
)
def test_scores_of_another_configuration_are_not_continued(first: Run, override: str, name: str) -> None:
    before = {path: path.read_bytes() for path in first.output.rglob("*") if path.is_file()}
    code, line = evaluate(first.config, override)
    assert (code, line["status"]) == (3, "wrong_store")
    assert f"was made with another {name}; " in line["error"]
    assert {path: path.read_bytes() for path in first.output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["prompts.against=null"], "prompts.against is not set; contrasts need the text of a normal picture; set it"),
        (["prompts.file=null"], "prompts.file is not set; the evaluation needs classes and their prompts"),
        (["n_axes=2"], "3 candidates, n_matrix 1 and n_axes 2 make no evaluation; there is at least one candidate"),
        (["smoothing_px=[99]"], "smoothing_px is [99.0]; it lists standard deviations of 0 to 32 px; write [0]."),
        (["data.limit=3"], "data.limit is set; the evaluation embeds each text of a prompt set by itself and counts"),
        (["prompts.classes=[Nosuch]"], "class 'Nosuch' is unknown; choose one of"),
        (["smoothing_px=[]"], "smoothing_px is []; it lists standard deviations of 0 to 32 px; write [0]."),
        (["candidates=[{name: saliency}]"], "candidate 'saliency' is not linear; candidates are signed and linear"),
        (
            ["aggregates=[[gradient]]"],
            "each lists two candidates or more, by their names in the report: gradient, occl",
        ),
        (["aggregates=[[gradient, saliency]]"], "aggregates holds ['gradient', 'saliency']; each lists two"),
        (["candidates=[{name: gradiant}]"], "Did you mean 'gradient'?"),
        (["n_validatoin=1"], "n_validation"),
    ],
)
def test_wrong_use_is_said_in_one_line_before_anything_is_written(
    first: Run, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    code, line = evaluate(first.config, f"output={tmp_path}/new", *overrides)
    assert (code, line["status"]) == (2, "wrong_use")
    assert sentence in line["error"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("key", "split"), [("validation", "validation"), ("data", "test")])
def test_a_split_without_findings_is_refused_before_anything_is_scored(
    first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, split: str
) -> None:
    write_healthy(tmp_path)
    monkeypatch.setattr(Workers, "score", refuse_to_score)
    code, line = evaluate(first.config, f"output={tmp_path}/new", f"{key}.shards={tmp_path}/healthy-*.tar")
    assert code == 2
    assert f"none of 2 {split} pictures has a region of a class of the prompt set" in line["error"]
