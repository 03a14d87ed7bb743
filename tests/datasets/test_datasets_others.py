"""CheXpert, CheXlocalize, ChestX-ray14, VinDr-CXR and RSNA, on trees with the official names, columns and quirks."""

import io
from pathlib import Path

import numpy as np
import pytest

from mapstack.config import DataConfig
from mapstack.errors import ShardError
from mapstack.images import MEDCLIP
from mapstack.metrics.chexlocalize import PATHOLOGIES
from tests.datasets.other_trees import (
    CHEXPERT,
    RSNA,
    VINDR,
    chexlocalize,
    chexpert,
    labels,
    nih,
    rsna,
    vindr,
)
from tests.datasets.trees import convert, dicom_maker, failures, infos, picture, put, samples, summary, table
from train_like.evaluation.cases import Cases

# --- CheXpert ---


@pytest.mark.parametrize("release", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
def test_chexpert(tmp_path: Path, release: str) -> None:
    root = tmp_path / release
    chexpert(root)
    assert convert(tmp_path / "out", "chexpert", {"root": str(root)}).code == 0
    (key, info), *rest = infos(tmp_path / "out").items()
    assert not rest
    assert key == "patient00001_study1_view1_frontal"
    assert (info["labels"], info["uncertain"]) == (["No Finding"], ["Edema"])
    assert (info["split"], info["view"], info["patient"]) == ("train", "AP", "patient00001")
    assert "negative" not in info
    assert summary(tmp_path / "out")["left_out"] == {"of another view": 1}


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
    root = tmp_path / "in"
    vindr(root)
    image, test_image = VINDR
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
    rsna(tmp_path / "in")
    dataset = {"root": str(tmp_path / "in"), "accept_burned_in": True}
    assert convert(tmp_path / "out", "rsna", dataset).code == 0
    found = infos(tmp_path / "out")
    assert found[RSNA[0]]["findings"] == [
        {"label": "Lung Opacity", "box": [152, 264, 531, 477]},
        {"label": "Lung Opacity", "box": [152, 562, 605, 818]},
    ]
    assert [found[patient]["labels"] for patient in RSNA] == [["Lung Opacity"], [], ["No Finding"]]
    assert found[RSNA[1]]["class"] == "No Lung Opacity / Not Normal"


def test_dicom_files_can_be_kept_as_they_are(tmp_path: Path) -> None:
    data = dicom_maker()(np.zeros((20, 20), np.uint8))
    put(tmp_path / "in" / "1.2.840.dcm", data)
    put(tmp_path / "in" / "a.dicom", data)
    convert(tmp_path / "out", "folder", {"root": str(tmp_path / "in"), "keep_dicom": True})
    found = samples(tmp_path / "out")
    assert [members["dcm"] for members in found.values()] == [data, data]
