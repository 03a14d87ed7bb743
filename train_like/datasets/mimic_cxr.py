"""MIMIC-CXR-JPG 2.0.0 and 2.1.0, and MIMIC-CXR's DICOM files, whose tables those of MIMIC-CXR-JPG are.

Layout of MIMIC-CXR-JPG (`root`; the tables as they are, or unpacked):

    files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg
    mimic-cxr-2.0.0-metadata.csv.gz   dicom_id, subject_id, study_id, ViewPosition, ViewCodeSequence_CodeMeaning, ...
    mimic-cxr-2.0.0-split.csv.gz      dicom_id, study_id, subject_id, split (train, validate, test)
    mimic-cxr-2.0.0-chexpert.csv.gz   subject_id, study_id and the 14 classes: 1.0, 0.0, -1.0 or empty
    mimic-cxr-2.0.0-negbio.csv.gz     the same
    mimic-cxr-2.1.0-test-set-labeled.csv   study_id and the 14 classes, as one radiologist read the test set's reports
                                           (from 2.1.0 on; "Airspace Opacity" is the class "Lung Opacity")

Of MIMIC-CXR: the DICOM files, `files/p10/.../DICOM_ID.dcm` (`images`), and the reports of the studies,
`files/p10/p10000032/s50414267.txt`, unpacked or in `mimic-cxr-reports.zip` (`reports`).

Of a picture without ViewPosition the view is read from ViewCodeSequence_CodeMeaning. A study that the labeller's table
does not hold has samples without labels. The tables of release 2.1.0 keep "2.0.0" in their names.

Source:
    Johnson et al., MIMIC-CXR-JPG 2.1.0, PhysioNet 2024 (doi:10.13026/jsn5-t979), "Data Description"; Johnson et al.,
    MIMIC-CXR 2.1.0, PhysioNet 2024.
"""

import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from mapstack.dataset_configs import DatasetConfig
from mapstack.errors import ConfigError, ShardError
from train_like.datasets.rows import Listing, ReportFile, Row
from train_like.datasets.tables import MIMIC_CLASSES, find_file, read_header, read_table, ternary_labels

METADATA = "mimic-cxr-2.0.0-metadata.csv.gz"
SPLIT = "mimic-cxr-2.0.0-split.csv.gz"
LABELS = {
    "chexpert": "mimic-cxr-2.0.0-chexpert.csv.gz",
    "negbio": "mimic-cxr-2.0.0-negbio.csv.gz",
    "radiologist": "mimic-cxr-2.1.0-test-set-labeled.csv",
}

_VIEW_CODES = {
    "antero-posterior": "AP",
    "postero-anterior": "PA",
    "lateral": "LATERAL",
    "left lateral": "LL",
}
_SYNONYM = "Airspace Opacity"  # of "Lung Opacity"
_Labels = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def read(config: DatasetConfig) -> Listing:
    """List the pictures of MIMIC-CXR.

    Raises:
        ConfigError: `reports` is neither the folder nor the zip.
        ShardError: A table is missing, damaged, or lacks a column.
    """
    root, images = Path(config.root), Path(config.images or config.root)
    notes: Counter[str] = Counter()
    splits = read_splits(root)
    labels = _read_labels(find_file(root, [LABELS[config.labeller]]), notes)
    report_of = _report_finder(config.reports)
    rows = []
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for fields in read_table(find_file(root, [METADATA]), columns):
        patient, study = fields["subject_id"], fields["study_id"]
        told = labels.get(study)
        if told is None:
            notes["pictures of studies that the labeller's table lacks (no labels)"] += 1
        positive, uncertain, negative = told or ((), (), ())
        rows.append(
            Row(
                id=fields["dicom_id"],
                path=str(images / picture_name(patient, study, fields["dicom_id"], config.image_suffix)),
                labels=positive,
                uncertain=uncertain,
                negative=negative,
                report=report_of(patient, study),
                split=splits.get(fields["dicom_id"]),
                view=view_of(fields),
                patient=patient,
                study=study,
            )
        )
    return Listing(rows, notes)


def picture_name(patient: str, study: str, dicom_id: str, suffix: str) -> str:
    """Return where a picture lies.

    Example:
        >>> picture_name("10000032", "50414267", "02aa804e", "jpg")
        'files/p10/p10000032/s50414267/02aa804e.jpg'
    """
    return f"files/p{patient[:2]}/p{patient}/s{study}/{dicom_id}.{suffix}"


def view_of(fields: Mapping[str, str]) -> str | None:
    """Read the view of a row of the metadata table; None where it tells none."""
    code = fields.get("ViewCodeSequence_CodeMeaning", "").lower()
    return fields["ViewPosition"].upper() or _VIEW_CODES.get(code)


def read_splits(root: Path) -> dict[str, str]:
    """Read the official split of each picture, by `dicom_id`.

    Raises:
        ShardError: The table is missing, damaged, or lacks a column.
    """
    path = find_file(root, [SPLIT])
    return {fields["dicom_id"]: fields["split"] for fields in read_table(path, ("dicom_id", "split"))}


def _read_labels(path: Path, notes: Counter[str]) -> dict[str, _Labels]:
    labels: dict[str, _Labels] = {}
    header = read_header(path)
    theirs = [_SYNONYM if name == "Lung Opacity" and _SYNONYM in header else name for name in MIMIC_CLASSES]
    for fields in read_table(path, ("study_id", *theirs)):
        fields["Lung Opacity"] = fields.get(_SYNONYM, fields.get("Lung Opacity", ""))
        told = ternary_labels(fields, MIMIC_CLASSES, path)
        if labels.setdefault(fields["study_id"], told) is not told:
            notes["studies that the labeller's table holds again (the first row is taken)"] += 1
    return labels


def _report_finder(reports: str | None) -> Callable[[str, str], ReportFile | None]:
    """Return what tells where the report of a patient's study is."""
    if reports is None:
        return lambda patient, study: None
    path = Path(reports)
    if path.is_dir():
        base = next(base for base in (path / "files", path / "mimic-cxr-reports" / "files", path) if base.is_dir())
        return lambda patient, study: ReportFile(str(base / f"p{patient[:2]}" / f"p{patient}" / f"s{study}.txt"))
    if not path.is_file():
        raise ConfigError(
            f"dataset.reports is '{reports}'; it is mimic-cxr-reports.zip, or the folder of what is in it; correct it."
        )
    members = _members(path)

    def find(patient: str, study: str) -> ReportFile | None:
        name = f"p{patient[:2]}/p{patient}/s{study}.txt"
        return ReportFile(members.get(name, name), str(path))

    return find


def _members(path: Path) -> dict[str, str]:
    """List the reports of the archive by the last three parts of their names, wherever they lie in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"/".join(name.split("/")[-3:]): name for name in archive.namelist() if name.endswith(".txt")}
    except (OSError, zipfile.BadZipFile):
        raise ShardError(
            f"reports '{path}' are no whole zip; the download may have broken off; fetch it again."
        ) from None
