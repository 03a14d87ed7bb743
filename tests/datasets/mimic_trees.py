"""MIMIC-CXR and MS-CXR made small: the official names and columns, with the quirks that the real tables have."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.datasets.trees import dicom_maker, picture, put, table

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
BOXES = ("category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
REPORT = "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n No pneumothorax, \xe4.\n"


def labels(**values: object) -> list[object]:
    return [values.get(name.replace(" ", "_"), "") for name in CLASSES]


def path_of(dicom_id: str, subject: object, study: object, suffix: str = "jpg") -> str:
    return f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom_id}.{suffix}"


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


def write_pictures(root: Path, suffix: str = "jpg", make: Callable[[int, int, int], bytes] = picture) -> None:
    """Put a picture of its own size where each row has it, but for the absent one."""
    for number, (dicom_id, subject, study, *_) in enumerate(PICTURES):
        if dicom_id != ABSENT:
            put(root / path_of(dicom_id, subject, study, suffix), make(number, 60 + number, 50))


def reports_folder(path: Path) -> Path:
    put(path / "files" / "p10" / "p10000032" / "s50414267.txt", REPORT)
    return path


def reports_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("files/p10/p10000032/s50414267.txt", REPORT)
    return path


def ms_cxr(root: Path) -> None:
    """Sentences for two pictures, one of them absent; one row comes twice."""
    rows = [
        (dicom_id, "Edema", "Mild pulmonary edema", path_of(dicom_id, subject, study), 5, 6, 10, 11, 50, 60, "test")
        for dicom_id, subject, study, *_ in (PICTURES[0], PICTURES[5])
    ]
    header = ("dicom_id", *BOXES, "split")
    table(root / "MS_CXR_Local_Alignment_v1.1.0.csv", header, [*rows, rows[0]])


def write_dicom_files(root: Path) -> None:
    """The same pictures as 12-bit DICOM files, whose header says that nothing is burned in."""
    make = dicom_maker()
    write_pictures(root, "dcm", lambda seed, height, width: make(film(seed, height, width), 12))


def film(seed: int, height: int, width: int) -> np.ndarray:
    """Noise of 12 bits."""
    return np.random.default_rng(seed).integers(0, 4096, (height, width), dtype=np.uint16)
