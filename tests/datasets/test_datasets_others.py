"""CheXpert, CheXlocalize, ChestX-ray14, VinDr-CXR and RSNA, on trees with the official names, columns and quirks."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mapstack.config import DataConfig
from mapstack.errors import ShardError
from mapstack.images import MEDCLIP
from mapstack.metrics.chexlocalize import PATHOLOGIES, write_masks
from mapstack.metrics.rle import encode_mask
from tests.datasets.trees import convert, failures, infos, picture, put, samples, summary, table
from tests.train_like.jobs import encode_png
from train_like.evaluation.cases import Cases

CLASSES = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
CHEXPERT = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CLASSES)


def labels(classes: Sequence[str] = CLASSES, **values: object) -> list[object]:
    return [values.get(name.replace(" ", "_"), "") for name in classes]


# --- CheXpert ---


@pytest.mark.parametrize("release", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
def test_chexpert(tmp_path: Path, release: str) -> None:
    root = tmp_path / release
    views = [("train/patient00001/study1/view1_frontal", "Frontal", "AP"), ("train/patient00002/study2", "", "")]
    views[1] = ("train/patient00002/study2/view2_lateral", "Lateral", "")
    rows = [
        (f"{release}/{name}.jpg", "Female", 68, side, position, *labels(No_Finding="1.0", Edema="-1.0"))
        for name, side, position in views
    ]
    table(root / "train.csv", CHEXPERT, rows)
    for number, (name, *_) in enumerate(views):
        put(root / f"{name}.jpg", picture(number))
    assert convert(tmp_path / "out", "chexpert", {"root": str(root)}).code == 0
    (key, info), *rest = infos(tmp_path / "out").items()
    assert not rest
    assert key == "patient00001_study1_view1_frontal"
    assert (info["labels"], info["uncertain"]) == (["No Finding"], ["Edema"])
    assert (info["split"], info["view"], info["patient"]) == ("train", "AP", "patient00001")
    assert "negative" not in info
    assert summary(tmp_path / "out")["left_out"] == {"of another view": 1}


def chexlocalize(root: Path) -> dict[str, np.ndarray]:
    """Two validation pictures and a test picture; one of the first has an edema and a lung opacity."""
    edema, opacity = np.zeros((2, 60, 50), bool)
    edema[5:20, 10:30] = True
    opacity[40:60, :] = True
    frontal = ["patient64541/study1/view1_frontal", "patient64622/study1/view1_frontal"]
    classes = [name for name in CLASSES if name != "No Finding"]
    for name in frontal:
        put(root / "CheXpert" / "val" / f"{name}.jpg", picture(1, 60, 50))
    put(root / "CheXpert" / "test" / "patient64741/study1/view1_frontal.jpg", picture(2, 60, 50))
    table(
        root / "CheXpert" / "val_labels.csv",
        ("Path", *classes),
        [
            (
                f"CheXpert-v1.0/valid/{frontal[0]}.jpg",
                *labels(classes, Edema="1.0", Lung_Opacity="1.0", Fracture="0.0"),
            ),
            (f"CheXpert-v1.0/valid/{frontal[1]}.jpg", *labels(classes)),
        ],
    )
    table(
        root / "CheXpert" / "test_labels.csv",
        ("Path", *classes),
        [("test/patient64741/study1/view1_frontal.jpg", *labels(classes, Pneumonia="1"))],
    )
    masks = {"Edema": encode_mask(torch.from_numpy(edema)), "Airspace Opacity": encode_mask(torch.from_numpy(opacity))}
    (root / "CheXlocalize").mkdir()
    write_masks(
        root / "CheXlocalize" / "gt_segmentations_val.json", {frontal[0].replace("/", "_"): masks, "patient0": masks}
    )
    return {"Edema": edema, "Lung Opacity": opacity}


def test_chexlocalize_segmentations_become_masks(tmp_path: Path) -> None:
    masks = chexlocalize(tmp_path / "in")
    assert convert(tmp_path / "out", "chexpert", {"root": str(tmp_path / "in")}).code == 0
    found = samples(tmp_path / "out")
    assert list(found) == [f"patient{number}_study1_view1_frontal" for number in (64541, 64622, 64741)]
    with np.load(io.BytesIO(found["patient64541_study1_view1_frontal"]["masks.npz"])) as stored:
        assert set(stored.files) == masks.keys()
        for label, mask in masks.items():
            np.testing.assert_array_equal(stored[label], mask)
    assert "masks.npz" not in found["patient64622_study1_view1_frontal"]
    told = summary(tmp_path / "out")
    assert told["splits"] == {"test": 1, "valid": 2}
    assert told["labels"]["Lung Opacity"]["masks"] == 1
    assert told["notes"] == {"segmentations of pictures that val_labels.csv lacks": 1}


def test_the_first_release_of_chexlocalize_had_another_layout(tmp_path: Path) -> None:
    chexlocalize(tmp_path / "in")
    root = tmp_path / "first"
    name = "patient64541/study1/view1_frontal.jpg"
    put(root / "CheXpert-v1.0" / "valid" / name, picture(1, 60, 50))
    row = (f"CheXpert-v1.0/valid/{name}", "Male", 73, "Frontal", "AP", *labels(Edema="1.0"))
    table(root / "CheXpert-v1.0" / "valid.csv", CHEXPERT, [row])
    masks = "gt_segmentations_val.json"
    put(root / masks, (tmp_path / "in" / "CheXlocalize" / masks).read_bytes())
    assert convert(tmp_path / "out", "chexpert", {"root": str(root)}).code == 0
    (members,) = samples(tmp_path / "out").values()
    assert "masks.npz" in members


def test_the_evaluation_reads_the_masks_of_chexlocalize(tmp_path: Path) -> None:
    masks = chexlocalize(tmp_path / "in")
    result = convert(tmp_path / "out", "chexpert", {"root": str(tmp_path / "in"), "splits": ["valid"]})
    cases = Cases(DataConfig(shards=result.summary["shards"]), MEDCLIP, None, None)
    first, second = cases
    assert {region.label: int(region.mask.sum()) for region in first.regions} == {
        label: int(mask.sum()) for label, mask in masks.items()
    }
    assert first.labels == ("Lung Opacity", "Edema")
    assert second.regions == ()


def test_masks_of_another_frame_are_not_stored(tmp_path: Path) -> None:
    chexlocalize(tmp_path / "in")
    put(tmp_path / "in/CheXpert/val/patient64541/study1/view1_frontal.jpg", picture(1, 30, 25))
    assert convert(tmp_path / "out", "chexpert", {"root": str(tmp_path / "in"), "splits": ["valid"]}).code == 1
    assert (
        "drawn on 60 x 50 px, the file has 30 x 25" in failures(tmp_path / "out")["patient64541_study1_view1_frontal"]
    )


def test_chexpert_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"holds no train\.csv and no valid\.csv and no CheXpert/val_labels\.csv"):
        convert(tmp_path / "out", "chexpert", {"root": str(tmp_path)})
    with pytest.raises(
        ShardError, match=r"split 'val' is unknown; choose one of train, valid, test\. Did you mean 'valid'"
    ):
        convert(tmp_path / "out", "chexpert", {"root": str(tmp_path), "splits": ["val"]})
    assert len(PATHOLOGIES) == 10


# --- ChestX-ray14 ---

ENTRIES = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def nih(root: Path, *, in_twelve: bool) -> None:
    names = ["00000001_000.png", "00000001_001.png", "00013118_008.png"]
    rows = [
        (names[0], "Cardiomegaly", 0, 1, 58, "M", "PA", 2682, 2749, "0.143", "0.143", ""),
        (names[1], "No Finding", 1, 1, 58, "M", "PA", 2894, 2729, "0.143", "0.143", ""),
        (names[2], "Infiltration|Mass", 8, 13118, 69, "F", "AP", 2500, 2048, "0.168", "0.168", ""),
    ]
    table(root / "Data_Entry_2017.csv", ENTRIES, rows)
    boxes = [
        (names[2], "Infiltrate", 225.084745762712, 547.019216763771, 86.7796610169491, 79.1864406779661, "", "", ""),
        (names[2], "Atelectasis", 10, 10, 5, 5, "", "", ""),
    ]
    table(root / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,", boxes)
    put(root / "train_val_list.txt", f"{names[0]}\n{names[1]}\n")
    put(root / "test_list.txt", f"{names[2]}\n")
    for number, name in enumerate(names):
        folder = f"images_{(1, 1, 12)[number]:03d}/images" if in_twelve else "images"
        put(root / folder / name, encode_png(np.full((1024, 1024), 40 * number, np.uint8)))


@pytest.mark.parametrize("in_twelve", [False, True])
def test_chestxray14(tmp_path: Path, in_twelve: bool) -> None:
    nih(tmp_path / "in", in_twelve=in_twelve)
    assert convert(tmp_path / "out", "nih", {"root": str(tmp_path / "in")}).code == 0
    told = infos(tmp_path / "out")
    assert list(told) == ["00000001_000", "00000001_001", "00013118_008"]
    info = told["00013118_008"]
    assert info["labels"] == ["Infiltration", "Mass"]
    assert info["findings"][0] == {"label": "Infiltration", "box": [547, 225, 627, 312]}
    assert (info["split"], info["view"], info["patient"]) == ("test", "AP", "13118")
    assert told["00000001_001"]["labels"] == ["No Finding"]
    assert summary(tmp_path / "out")["notes"] == {"boxes whose label the picture's labels lack": 1}


def test_labels_of_one_dataset_take_the_names_of_another(tmp_path: Path) -> None:
    nih(tmp_path / "in", in_twelve=False)
    rename = {"Infiltration": "Lung Opacity", "Mass": "Lung Lesion"}
    dataset = {"root": str(tmp_path / "in"), "rename": rename, "splits": ["test"]}
    convert(tmp_path / "out", "nih", dataset)
    (info,) = infos(tmp_path / "out").values()
    assert info["labels"] == ["Lung Opacity", "Lung Lesion"]
    assert [finding["label"] for finding in info["findings"]] == ["Lung Opacity", "Atelectasis"]


# --- VinDr-CXR and RSNA: DICOM ---


def test_vindr(tmp_path: Path) -> None:
    dicom_files = dicom_maker()
    root = tmp_path / "in"
    film = np.tile(np.arange(50, dtype=np.uint16) * 80, (60, 1))
    for name in ("train/0005e8e3701dfb1dd93d53e2ff537b6e", "test/002a34c58c5b758217ed1f584ccbcfe9"):
        put(root / f"{name}.dicom", dicom_files(film, 12, BurnedInAnnotation=None))
    image, test_image = "0005e8e3701dfb1dd93d53e2ff537b6e", "002a34c58c5b758217ed1f584ccbcfe9"
    header = ("image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max")
    boxes = [
        (image, "R10", "Infiltration", 10.5, 20.25, 30, 40),
        (image, "R8", "Infiltration", 11, 21, 31, 41),
        (image, "R9", "Nodule/Mass", 1, 1, 5, 5),
        (image, "R9", "No finding", "", "", "", ""),
    ]
    table(root / "annotations" / "annotations_train.csv", header, boxes)
    classes = ["Infiltration", "Nodule/Mass", "Pneumonia", "Other diseases", "No finding"]
    votes = [(image, "R10", 1, 0, 1, 0, 0), (image, "R8", 1, 0, 1, 0, 0), (image, "R9", 0, 1, 0, 0, 0)]
    table(root / "annotations" / "image_labels_train.csv", ("image_id", "rad_id", *classes), votes)
    table(
        root / "annotations" / "annotations_test.csv",
        ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max"),
        [(test_image, "Other lesion", 3, 4, 5, 6)],
    )
    test_classes = ["Other lesion", "Other disease", "No finding"]
    labels_row = [(test_image, "1.0", "1", 0)]
    table(root / "annotations" / "image_labels_test.csv", ("image_id", *test_classes), labels_row)
    assert convert(tmp_path / "refused", "vindr", {"root": str(root)}).code == 1
    assert all("Burned In Annotation absent" in reason for reason in failures(tmp_path / "refused").values())
    assert convert(tmp_path / "out", "vindr", {"root": str(root), "accept_burned_in": True}).code == 0
    told = infos(tmp_path / "out")
    assert told[image]["labels"] == ["Infiltration", "Pneumonia"]
    assert told[image]["findings"] == [
        {"label": "Infiltration", "reader": "R10", "box": [20, 10, 40, 30]},
        {"label": "Infiltration", "reader": "R8", "box": [21, 11, 41, 31]},
    ]
    assert told[test_image]["labels"] == ["Other lesion", "Other diseases"]
    assert told[test_image]["findings"] == [{"label": "Other lesion", "box": [4, 3, 6, 5]}]
    notes = {"boxes whose label too few radiologists gave (left out)": 1}
    assert summary(tmp_path / "out")["notes"] == notes
    one = {"root": str(root), "accept_burned_in": True, "min_readers": 1, "splits": ["train"]}
    convert(tmp_path / "one", "vindr", one)
    assert len(infos(tmp_path / "one")[image]["findings"]) == 3
    members = samples(tmp_path / "out")[image]
    assert members["png"].startswith(b"\x89PNG")
    assert b"anary" not in members["png"]


def test_rsna(tmp_path: Path) -> None:
    dicom_files = dicom_maker()
    root = tmp_path / "in"
    patients = ["0004cfab-14fd-4e49-80ba-63a80b6bddd6", "00313ee0-9eaa-42f4-b0ab-c148ed3241cd", "00322d4d-1c29-4943"]
    for patient in patients:
        film = np.zeros((1024, 1024), np.uint8)
        put(root / "stage_2_train_images" / f"{patient}.dcm", dicom_files(film, BurnedInAnnotation=None))
    rows = [
        (patients[0], 264.0, 152.0, 213.0, 379.0, 1),
        (patients[0], 562.0, 152.0, 256.0, 453.0, 1),
        (patients[1], "", "", "", "", 0),
        (patients[2], "", "", "", "", 0),
    ]
    table(root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), rows)
    classes = ["Lung Opacity", "Lung Opacity", "No Lung Opacity / Not Normal", "Normal"]
    told = [(row[0], name) for row, name in zip(rows, classes, strict=True)]
    table(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), told)
    assert convert(tmp_path / "out", "rsna", {"root": str(root), "accept_burned_in": True}).code == 0
    found = infos(tmp_path / "out")
    assert found[patients[0]]["findings"] == [
        {"label": "Lung Opacity", "box": [152, 264, 531, 477]},
        {"label": "Lung Opacity", "box": [152, 562, 605, 818]},
    ]
    assert [found[patient]["labels"] for patient in patients] == [["Lung Opacity"], [], ["No Finding"]]
    assert found[patients[1]]["class"] == "No Lung Opacity / Not Normal"


def test_dicom_files_can_be_kept_as_they_are(tmp_path: Path) -> None:
    data = dicom_maker()(np.zeros((20, 20), np.uint8))
    put(tmp_path / "in" / "1.2.840.dcm", data)
    put(tmp_path / "in" / "a.dicom", data)
    convert(tmp_path / "out", "folder", {"root": str(tmp_path / "in"), "keep_dicom": True})
    found = samples(tmp_path / "out")
    assert [members["dcm"] for members in found.values()] == [data, data]


def dicom_maker():
    pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
    from tests.dicom_files import dicom

    return dicom
