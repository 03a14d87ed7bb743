"""CheXpert, CheXlocalize, ChestX-ray14, VinDr-CXR and RSNA made small, with their official names and columns.

With `quirks` a tree has what a careless copy has: a row that comes twice, and a row whose file is absent.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mapstack.metrics.chexlocalize import write_masks
from mapstack.metrics.rle import encode_mask
from tests.datasets.trees import dicom_maker, picture, put, table
from tests.train_like.jobs import encode_png

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
ENTRIES = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
# image identifiers of VinDr-CXR, of the training and the test set
VINDR = ("0005e8e3701dfb1dd93d53e2ff537b6e", "002a34c58c5b758217ed1f584ccbcfe9")
RSNA = ("0004cfab-14fd-4e49-80ba-63a80b6bddd6", "00313ee0-9eaa-42f4-b0ab-c148ed3241cd", "00322d4d-1c29-4943")
# identifiers of the rows whose file is absent
ABSENT = {
    "chexpert": "patient00003_study1_view1_frontal",
    "chexlocalize": "patient64742_study1_view1_frontal",
    "nih": "00030805_000",
    "vindr": "ffff82984e44cb5cdda6be70a1bf0eec",
    "rsna": "fffec09e-8a4a-48b1-b33e-ab4890ccd136",
}


def labels(classes: Sequence[str] = CLASSES, **values: object) -> list[object]:
    return [values.get(name.replace(" ", "_"), "") for name in classes]


def chexpert(root: Path, *, quirks: bool = False) -> None:
    """A frontal and a lateral picture of the training set; the folder's name is the release."""
    views = [
        ("train/patient00001/study1/view1_frontal", "Frontal", "AP"),
        ("train/patient00002/study2/view2_lateral", "Lateral", ""),
    ]
    for number, (name, *_) in enumerate(views):
        put(root / f"{name}.jpg", picture(number))
    if quirks:
        views += [views[0], ("train/patient00003/study1/view1_frontal", "Frontal", "PA")]
    rows = [
        (f"{root.name}/{name}.jpg", "Female", 68, side, position, *labels(No_Finding="1.0", Edema="-1.0"))
        for name, side, position in views
    ]
    table(root / "train.csv", CHEXPERT, rows)


def chexlocalize(root: Path, *, quirks: bool = False) -> dict[str, np.ndarray]:
    """Two validation pictures and a test picture; one of the first has an edema and a lung opacity."""
    edema, opacity = np.zeros((2, 60, 50), bool)
    edema[5:20, 10:30] = True
    opacity[40:60, :] = True
    frontal = ["patient64541/study1/view1_frontal", "patient64622/study1/view1_frontal"]
    classes = [name for name in CLASSES if name != "No Finding"]
    for name in frontal:
        put(root / "CheXpert" / "val" / f"{name}.jpg", picture(1, 60, 50))
    put(root / "CheXpert" / "test" / "patient64741/study1/view1_frontal.jpg", picture(2, 60, 50))
    known = labels(classes, Edema="1.0", Lung_Opacity="1.0", Fracture="0.0")
    validation = [
        (f"CheXpert-v1.0/valid/{frontal[0]}.jpg", *known),
        (f"CheXpert-v1.0/valid/{frontal[1]}.jpg", *labels(classes)),
    ]
    test = [("test/patient64741/study1/view1_frontal.jpg", *labels(classes, Pneumonia="1"))]
    if quirks:
        validation.append(validation[0])
        test.append(("test/patient64742/study1/view1_frontal.jpg", *labels(classes)))
    table(root / "CheXpert" / "val_labels.csv", ("Path", *classes), validation)
    table(root / "CheXpert" / "test_labels.csv", ("Path", *classes), test)
    masks = {"Edema": encode_mask(torch.from_numpy(edema)), "Airspace Opacity": encode_mask(torch.from_numpy(opacity))}
    (root / "CheXlocalize").mkdir()
    write_masks(
        root / "CheXlocalize" / "gt_segmentations_val.json", {frontal[0].replace("/", "_"): masks, "patient0": masks}
    )
    return {"Edema": edema, "Lung Opacity": opacity}


def nih(root: Path, *, in_twelve: bool = False, quirks: bool = False) -> None:
    """Three pictures, the last with two boxes: in one folder, or in two of the twelve that the archives unpack to."""
    names = ["00000001_000.png", "00000001_001.png", "00013118_008.png"]
    rows = [
        (names[0], "Cardiomegaly", 0, 1, 58, "M", "PA", 2682, 2749, "0.143", "0.143", ""),
        (names[1], "No Finding", 1, 1, 58, "M", "PA", 2894, 2729, "0.143", "0.143", ""),
        (names[2], "Infiltration|Mass", 8, 13118, 69, "F", "AP", 2500, 2048, "0.168", "0.168", ""),
    ]
    boxes = [
        (names[2], "Infiltrate", 225.084745762712, 547.019216763771, 86.7796610169491, 79.1864406779661, "", "", ""),
        (names[2], "Atelectasis", 10, 10, 5, 5, "", "", ""),
    ]
    if quirks:
        absent = f"{ABSENT['nih']}.png"
        rows += [rows[2], (absent, "No Finding", 0, 30805, 27, "M", "PA", 2048, 2500, "0.171", "0.171", "")]
        boxes.append(boxes[0])
    table(root / "Data_Entry_2017.csv", ENTRIES, rows)
    table(root / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,", boxes)
    put(root / "train_val_list.txt", f"{names[0]}\n{names[1]}\n")
    put(root / "test_list.txt", f"{names[2]}\n")
    for number, name in enumerate(names):
        folder = f"images_{(1, 1, 12)[number]:03d}/images" if in_twelve else "images"
        put(root / folder / name, encode_png(np.full((1024, 1024), 40 * number, np.uint8)))


def vindr(root: Path, *, quirks: bool = False) -> None:
    """A training picture that three radiologists read, one of them alone with a mass, and a test picture."""
    make = dicom_maker()
    image, test_image = VINDR
    film = np.tile(np.arange(50, dtype=np.uint16) * 80, (60, 1))
    for name in (f"train/{image}", f"test/{test_image}"):
        put(root / f"{name}.dicom", make(film, 12, BurnedInAnnotation=None))
    boxes = [
        (image, "R10", "Infiltration", 10.5, 20.25, 30, 40),
        (image, "R8", "Infiltration", 11, 21, 31, 41),
        (image, "R9", "Nodule/Mass", 1, 1, 5, 5),
        (image, "R9", "No finding", "", "", "", ""),
    ]
    votes = [(image, "R10", 1, 0, 1, 0, 0), (image, "R8", 1, 0, 1, 0, 0), (image, "R9", 0, 1, 0, 0, 0)]
    test_votes = [(test_image, "1.0", "1", 0)]
    if quirks:
        boxes.append(boxes[0])
        votes.append(votes[2])
        test_votes.append((ABSENT["vindr"], 0, 0, 1))
    folder = root / "annotations"
    corners = ("x_min", "y_min", "x_max", "y_max")
    classes = ["Infiltration", "Nodule/Mass", "Pneumonia", "Other diseases", "No finding"]
    table(folder / "annotations_train.csv", ("image_id", "rad_id", "class_name", *corners), boxes)
    table(folder / "image_labels_train.csv", ("image_id", "rad_id", *classes), votes)
    test_boxes = [(test_image, "Other lesion", 3, 4, 5, 6)]
    table(folder / "annotations_test.csv", ("image_id", "class_name", *corners), test_boxes)
    test_classes = ["Other lesion", "Other disease", "No finding"]
    table(folder / "image_labels_test.csv", ("image_id", *test_classes), test_votes)


def rsna(root: Path, *, quirks: bool = False) -> None:
    """A patient with two opacities, one without, and one with neither."""
    make = dicom_maker()
    film = make(np.zeros((1024, 1024), np.uint8), BurnedInAnnotation=None)
    for patient in RSNA:
        put(root / "stage_2_train_images" / f"{patient}.dcm", film)
    rows: list[tuple[object, ...]] = [
        (RSNA[0], 264.0, 152.0, 213.0, 379.0, 1),
        (RSNA[0], 562.0, 152.0, 256.0, 453.0, 1),
        (RSNA[1], "", "", "", "", 0),
        (RSNA[2], "", "", "", "", 0),
    ]
    classes = ["Lung Opacity", "Lung Opacity", "No Lung Opacity / Not Normal", "Normal"]
    if quirks:
        rows += [rows[1], rows[3], (ABSENT["rsna"], "", "", "", "", 0)]
        classes += [classes[1], classes[3], "Normal"]
    table(root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), rows)
    told = [(row[0], name) for row, name in zip(rows, classes, strict=True)]
    table(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), told)
