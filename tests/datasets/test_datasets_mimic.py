"""MIMIC-CXR-JPG, MIMIC-CXR's reports, and MS-CXR, on trees with the official names, columns and quirks."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapstack.errors import ConfigError, ShardError
from tests.datasets.mimic_trees import (
    ABSENT,
    BOXES,
    CLASSES,
    PICTURES,
    REPORT,
    film,
    labels,
    ms_cxr,
    path_of,
    reports_folder,
    reports_zip,
    write_dicom_files,
    write_pictures,
    write_tables,
)
from tests.datasets.trees import convert, dicom_maker, failures, infos, picture, put, samples, summary, table


@pytest.fixture(params=[".gz", ""])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The tables twice: as they are fetched, and unpacked."""
    folder = tmp_path / "mimic-cxr-jpg"
    write_tables(folder, [*PICTURES, PICTURES[0]], request.param)
    write_pictures(folder)
    return folder


def test_frontal_pictures_with_their_labels(root: Path, tmp_path: Path) -> None:
    result = convert(tmp_path / "out", "mimic_cxr", {"root": str(root)})
    told = infos(tmp_path / "out")
    wanted = [PICTURES[number] for number in (0, 2, 4, 7)]
    assert list(told) == [dicom_id for dicom_id, *_ in wanted]
    assert (result.code, result.summary["failed"]) == (1, 1)
    assert failures(tmp_path / "out").keys() == {ABSENT}
    first = told[PICTURES[0][0]]
    assert first["labels"] == ["No Finding"]
    assert first["negative"] == ["Pneumonia"]
    assert (first["split"], first["view"], first["patient"], first["study"]) == ("train", "PA", "10000032", "50414267")
    third = told[PICTURES[2][0]]
    assert third["labels"] == ["Atelectasis", "Pleural Effusion"]
    assert (third["uncertain"], third["negative"], third["view"]) == (["Edema"], ["Pneumothorax"], "AP")
    assert told[PICTURES[7][0]]["labels"] == []
    for number, (dicom_id, *_) in enumerate(PICTURES):
        if dicom_id in told:
            assert samples(tmp_path / "out")[dicom_id]["jpg"] == picture(number, 60 + number, 50)


def test_the_summary_says_what_was_left_out(root: Path, tmp_path: Path) -> None:
    convert(tmp_path / "out", "mimic_cxr", {"root": str(root)})
    told = summary(tmp_path / "out")
    assert told["listed"] == 8
    assert told["left_out"] == {"of another view": 2, "without a view": 1}
    assert told["notes"] == {
        "pictures of studies that the labeller's table lacks (no labels)": 1,
        "rows that repeat an identifier (the first is taken)": 1,
        "studies that the labeller's table holds again (the first row is taken)": 1,
    }
    assert told["splits"] == {"test": 1, "train": 2, "validate": 1}
    assert (told["patients"], told["studies"]) == (3, 4)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"splits": ["test"]}, [7]),
        ({"splits": ["train", "validate"], "absent": "leave_out"}, [0, 2, 4]),
        ({"views": "lateral"}, [1, 6]),
        ({"views": "all", "absent": "leave_out"}, [0, 1, 2, 3, 4, 6, 7]),
    ],
)
def test_splits_and_views_are_chosen(
    root: Path, tmp_path: Path, changes: dict[str, object], keys: Sequence[int]
) -> None:
    assert convert(tmp_path / "out", "mimic_cxr", {"root": str(root), **changes}).code == 0
    assert list(samples(tmp_path / "out")) == [PICTURES[number][0] for number in keys]


@pytest.mark.parametrize(
    ("uncertain", "positive", "apart", "negative"),
    [
        ("apart", ["Atelectasis", "Pleural Effusion"], ["Edema"], ["Pneumothorax"]),
        ("positive", ["Atelectasis", "Pleural Effusion", "Edema"], None, ["Pneumothorax"]),
        ("negative", ["Atelectasis", "Pleural Effusion"], None, ["Pneumothorax", "Edema"]),
    ],
)
def test_uncertain_labels_are_decided(
    root: Path, tmp_path: Path, uncertain: str, positive: list[str], apart: list[str] | None, negative: list[str]
) -> None:
    convert(tmp_path / "out", "mimic_cxr", {"root": str(root), "uncertain": uncertain, "absent": "leave_out"})
    info = infos(tmp_path / "out")[PICTURES[2][0]]
    assert (info["labels"], info.get("uncertain"), info["negative"]) == (positive, apart, negative)


def test_the_other_labeller_is_another_table(root: Path, tmp_path: Path) -> None:
    convert(tmp_path / "out", "mimic_cxr", {"root": str(root), "labeller": "negbio", "absent": "leave_out"})
    info = infos(tmp_path / "out")[PICTURES[0][0]]
    assert (info["labels"], info["uncertain"]) == ([], ["Pneumonia"])


def test_a_radiologist_read_the_reports_of_the_test_split(root: Path, tmp_path: Path) -> None:
    theirs = ["Airspace Opacity" if name == "Lung Opacity" else name for name in CLASSES]
    study = PICTURES[7][2]
    path = root / "mimic-cxr-2.1.0-test-set-labeled.csv"
    table(path, ("study_id", *theirs), [(study, *labels(Lung_Opacity="1.0", Edema="-1.0", Fracture="0.0"))])
    dataset = {"root": str(root), "labeller": "radiologist", "splits": ["test"]}
    convert(tmp_path / "out", "mimic_cxr", dataset)
    info = infos(tmp_path / "out")[PICTURES[7][0]]
    assert (info["labels"], info["uncertain"], info["negative"]) == (["Lung Opacity"], ["Edema"], ["Fracture"])


def test_reports_are_read_from_the_folder_and_from_the_zip(root: Path, tmp_path: Path) -> None:
    places = [
        reports_folder(tmp_path / "reports"),
        reports_folder(tmp_path / "whole" / "mimic-cxr-reports").parent,
        reports_zip(tmp_path / "mimic-cxr-reports.zip"),
    ]
    written = []
    for number, place in enumerate(places):
        dataset = {"root": str(root), "reports": str(place), "absent": "leave_out"}
        convert(tmp_path / f"out{number}", "mimic_cxr", dataset)
        told = infos(tmp_path / f"out{number}")
        assert told[PICTURES[0][0]]["report"] == REPORT.strip()
        assert "report" not in told[PICTURES[4][0]]
        assert summary(tmp_path / f"out{number}")["reports"] == 1
        assert summary(tmp_path / f"out{number}")["notes"]["samples whose report is absent (they have none)"] == 3
        written.append([path.read_bytes() for path in sorted((tmp_path / f"out{number}").glob("*.tar"))])
    assert written[0] == written[1] == written[2]


def test_2000_at_random_are_drawn_by_picture_and_seed(root: Path, tmp_path: Path) -> None:
    drawn = set()
    for seed in range(6):
        convert(tmp_path / str(seed), "mimic_cxr", {"root": str(root), "absent": "leave_out"}, n_samples=2, seed=seed)
        keys = tuple(samples(tmp_path / str(seed)))
        assert len(keys) == 2
        drawn.add(keys)
    assert len(drawn) > 1


def test_the_files_of_a_choice_can_be_listed_before_they_are_fetched(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", PICTURES, ".gz")
    result = convert(
        tmp_path / "out", "mimic_cxr", {"root": str(tmp_path / "tables"), "splits": ["test"]}, list_files=True
    )
    assert Path(result.summary["files"]).read_text() == (
        "files/p19/p19000098/s57000000/d0b71acc-b5a62046-bbb5f6b8-7b173b85-65cdf738.jpg\n"
    )


def test_what_is_not_laid_out_officially_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dataset.reports is 'nowhere.zip'; it is mimic-cxr-reports.zip"):
        convert(tmp_path / "out", "mimic_cxr", {"root": str(root), "reports": "nowhere.zip"})
    put(tmp_path / "cut.zip", b"PK\3\4")
    with pytest.raises(ShardError, match="are no whole zip; the download may have broken off"):
        convert(tmp_path / "out", "mimic_cxr", {"root": str(root), "reports": str(tmp_path / "cut.zip")})
    with pytest.raises(
        ShardError, match=r"dataset\.root to the folder that holds it, .* Folder '.*/mimic-cxr-jpg' holds"
    ):
        convert(tmp_path / "out", "mimic_cxr", {"root": str(tmp_path)})
    for path in root.glob("mimic-cxr-2.0.0-split*"):
        path.unlink()
    with pytest.raises(ShardError, match=r"holds no mimic-cxr-2\.0\.0-split\.csv\.gz; "):
        convert(tmp_path / "out", "mimic_cxr", {"root": str(root)})


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path, PICTURES, ".gz")
    path = tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ShardError, match=r"chexpert\.csv\.gz' cannot be read \(EOFError\)"):
        convert(tmp_path / "out", "mimic_cxr", {"root": str(tmp_path)})
    table(path, ("subject_id", "study_id", *CLASSES), [(1, 2, *labels(Edema="maybe"))])
    with pytest.raises(ShardError, match="holds 'maybe' in column 'Edema'; a label is 1, 0, -1 or empty"):
        convert(tmp_path / "out", "mimic_cxr", {"root": str(tmp_path)})
    table(path, ("subject_id", "study_id", *CLASSES[1:]), [])
    with pytest.raises(ShardError, match="lacks a column: column 'Atelectasis' is unknown"):
        convert(tmp_path / "out", "mimic_cxr", {"root": str(tmp_path)})


# --- MIMIC-CXR's DICOM files, whose tables are those of MIMIC-CXR-JPG ---


@pytest.fixture
def dicom(root: Path, tmp_path: Path) -> dict[str, object]:
    write_dicom_files(tmp_path / "dicom")
    return {"root": str(root), "images": str(tmp_path / "dicom"), "image_suffix": "dcm", "views": "all"}


def test_dicom_files_say_what_the_jpegs_say(root: Path, tmp_path: Path, dicom: dict[str, object]) -> None:
    assert convert(tmp_path / "out", "mimic_cxr", dicom).code == 1
    convert(tmp_path / "jpg", "mimic_cxr", {"root": str(root), "views": "all"})
    assert failures(tmp_path / "out") == failures(tmp_path / "jpg")
    told, theirs = infos(tmp_path / "out"), infos(tmp_path / "jpg")
    assert told.keys() == theirs.keys()
    for key, info in told.items():
        assert {**info, "sha256": ""} == {**theirs[key], "sha256": ""}
    for number, (dicom_id, *_) in enumerate(PICTURES):
        if dicom_id != ABSENT:
            (content,) = (data for suffix, data in samples(tmp_path / "out")[dicom_id].items() if suffix == "png")
            assert b"anary" not in content
            shown = np.asarray(Image.open(io.BytesIO(content))).astype(float)
            assert np.abs(shown - film(number, 60 + number, 50) * (255 / 4095)).max() <= 0.5 + 1e-6


def test_dicom_files_are_listed_kept_and_refused_as_asked(root: Path, tmp_path: Path, dicom: dict[str, object]) -> None:
    path = path_of(*PICTURES[7][:3], suffix="dcm")
    result = convert(tmp_path / "list", "mimic_cxr", {**dicom, "splits": ["test"], "views": "frontal"}, list_files=True)
    assert Path(result.summary["files"]).read_text() == f"{path}\n"
    convert(tmp_path / "kept", "mimic_cxr", {**dicom, "keep_dicom": True})
    assert samples(tmp_path / "kept")[PICTURES[7][0]]["dcm"] == (tmp_path / "dicom" / path).read_bytes()
    put(tmp_path / "dicom" / path, dicom_maker()(film(7, 67, 50), 12, BurnedInAnnotation=None))
    convert(tmp_path / "out", "mimic_cxr", dicom)
    assert "Burned In Annotation absent" in failures(tmp_path / "out")[PICTURES[7][0]]
    convert(tmp_path / "accepted", "mimic_cxr", {**dicom, "accept_burned_in": True})
    assert failures(tmp_path / "accepted").keys() == {ABSENT}


def test_boxes_of_sentences_lie_on_the_dicom_files_as_well(tmp_path: Path, dicom: dict[str, object]) -> None:
    ms_cxr(tmp_path / "ms-cxr")
    dataset = {**dicom, "root": str(tmp_path / "ms-cxr")}
    assert convert(tmp_path / "out", "ms_cxr", dataset).code == 1
    assert failures(tmp_path / "out").keys() == {ABSENT}
    (info,) = infos(tmp_path / "out").values()
    assert info["findings"] == [{"label": "Edema", "prompt": "Mild pulmonary edema", "box": [6, 5, 17, 15]}]


# --- MS-CXR ---


@pytest.mark.parametrize("release", ["1.0.0", "1.1.0"])
def test_sentences_with_boxes(root: Path, tmp_path: Path, release: str) -> None:
    dicom_id, subject, study, *_ = PICTURES[0]
    path = f"files/p10/p{subject}/s{study}/{dicom_id}.jpg"
    edema, effusion = "Mild pulmonary edema", "small, left effusion"
    rows: list[tuple[object, ...]] = [
        ("Edema", edema, path, 5, 6, 10, 11, 50, 60),
        ("Edema", edema, path, 30, 6, 10, 11, 50, 60),
        ("Pleural Effusion", effusion, path, 20.5, 40, 40, 40, 50, 60),
        ("Edema", edema, path, 5, 6, 10, 11, 50, 60),
    ]
    header = BOXES
    if release == "1.1.0":
        header, rows = ("dicom_id", *BOXES, "split"), [(dicom_id, *row, "test") for row in rows]
    table(tmp_path / "ms-cxr" / f"MS_CXR_Local_Alignment_v{release}.csv", header, rows)
    dataset = {"root": str(tmp_path / "ms-cxr"), "images": str(root)}
    assert convert(tmp_path / "out", "ms_cxr", dataset).code == 0
    (info,) = infos(tmp_path / "out").values()
    assert info["findings"] == [
        {"label": "Edema", "prompt": edema, "box": [6, 5, 17, 15]},
        {"label": "Edema", "prompt": edema, "box": [6, 30, 17, 40]},
        {"label": "Pleural Effusion", "prompt": effusion, "box": [40, 20, 60, 50]},
    ]
    assert info["labels"] == ["Edema", "Pleural Effusion"]
    assert (info["patient"], info["study"]) == (str(subject), str(study))
    assert info.get("split") == ("test" if release == "1.1.0" else None)
    assert info["mimic_split"] == "train"
    assert summary(tmp_path / "out")["notes"] == {
        "pictures of MIMIC-CXR's training split (MedCLIP has seen them)": 1,
        "rows that repeat another (joined)": 1,
    }
    for path in root.glob("*-split*"):
        path.unlink()
    convert(tmp_path / "alone", "ms_cxr", dataset)
    assert "mimic_split" not in infos(tmp_path / "alone").popitem()[1]


def test_boxes_of_another_frame_are_not_drawn(root: Path, tmp_path: Path) -> None:
    dicom_id, subject, study, *_ = PICTURES[0]
    row = ("Edema", "edema", f"files/p10/p{subject}/s{study}/{dicom_id}.jpg", 5, 6, 10, 11, 2544, 3056)
    table(tmp_path / "MS_CXR_Local_Alignment_v1.0.0.csv", BOXES, [row])
    assert convert(tmp_path / "out", "ms_cxr", {"root": str(tmp_path), "images": str(root)}).code == 1
    (reason,) = failures(tmp_path / "out").values()
    assert "annotations were drawn on 3056 x 2544 px, the file has 60 x 50" in reason
