"""MIMIC-CXR-JPG, MIMIC-CXR's reports, and MS-CXR, on trees with the official names, columns and quirks."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from mapstack.errors import ConfigError, ShardError
from tests.datasets.trees import all_bytes, convert, failures, infos, picture, put, samples, summary, table

METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
CLASSES = [
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
]
# dicom_id, subject, study, ViewPosition, ViewCodeSequence_CodeMeaning, split
PICTURES = (
    ("02aa804e-bde0afdd-112c0b34-7bc16630-4e384014", 10000032, 50414267, "PA", "postero-anterior", "train"),
    ("174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962", 10000032, 50414267, "LATERAL", "lateral", "train"),
    ("2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab", 10000032, 53189527, "", "antero-posterior", "train"),
    ("e084de3b-be89b11e-20fe3f9f-9c8d8dfe-4cfd202c", 10000032, 53189527, "", "", "train"),
    ("68b5c4b1-227d0485-9cc38c3f-7b84ab51-4b472714", 11000011, 53911762, "AP", "antero-posterior", "validate"),
    ("fffabebf-74fd3a1f-673b6b41-96ec0ac9-2ab69818", 11000011, 53911762, "AP", "antero-posterior", "validate"),
    ("ea030e7a-2e3b1346-bc518786-7a8fd698-f673b44c", 19000098, 56699142, "LL", "left lateral", "test"),
    ("d0b71acc-b5a62046-bbb5f6b8-7b173b85-65cdf738", 19000098, 57000000, "PA", "postero-anterior", "test"),
)
ABSENT = PICTURES[5][0]
REPORT = "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n No pneumothorax, \xe4.\n"


def labels(**values: object) -> list[object]:
    return [values.get(name.replace(" ", "_"), "") for name in CLASSES]


def write_tables(root: Path, pictures: Sequence[Sequence[object]], suffix: str) -> None:
    rows = [
        (d, s, t, "CHEST (PA AND LAT)", v, 3056, 2544, 21800506, "213014.531", "CHEST (PA AND LAT)", code, "Erect")
        for d, s, t, v, code, _ in pictures
    ]
    table(root / f"mimic-cxr-2.0.0-metadata.csv{suffix}", METADATA, rows)
    split = [(d, t, s, part) for d, s, t, _, _, part in pictures]
    table(root / f"mimic-cxr-2.0.0-split.csv{suffix}", ("dicom_id", "study_id", "subject_id", "split"), split)
    chexpert = [
        (10000032, 50414267, *labels(No_Finding="1.0", Pneumonia="0.0")),
        (10000032, 53189527, *labels(Edema="-1.0", Pleural_Effusion="1.0", Atelectasis="1.0", Pneumothorax="0.0")),
        (11000011, 53911762, *labels(Support_Devices="1.0")),
        (11000011, 53911762, *labels(Support_Devices="1.0")),
        (19000098, 56699142, *labels()),
    ]
    table(root / f"mimic-cxr-2.0.0-chexpert.csv{suffix}", ("subject_id", "study_id", *CLASSES), chexpert)
    negbio = [(10000032, 50414267, *labels(Pneumonia="-1.0"))]
    table(root / f"mimic-cxr-2.0.0-negbio.csv{suffix}", ("subject_id", "study_id", *CLASSES), negbio)


@pytest.fixture(params=[".gz", ""])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The tables twice: as they are fetched, and unpacked."""
    folder = tmp_path / "mimic-cxr-jpg"
    write_tables(folder, [*PICTURES, PICTURES[0]], request.param)
    for number, (dicom_id, subject, study, *_) in enumerate(PICTURES):
        if dicom_id != ABSENT:
            name = f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom_id}.jpg"
            put(folder / name, picture(number, 60 + number, 50))
    return folder


def reports_folder(path: Path) -> Path:
    put(path / "files" / "p10" / "p10000032" / "s50414267.txt", REPORT)
    return path


def reports_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("files/p10/p10000032/s50414267.txt", REPORT)
    return path


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


def test_a_second_run_is_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(tmp_path / name, "mimic_cxr", {"root": str(root)}, n_workers=1 + (name == "b"), n_per_shard=2)
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


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


# --- MS-CXR ---

BOXES = ("category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")


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
