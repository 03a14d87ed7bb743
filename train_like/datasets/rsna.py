"""RSNA Pneumonia Detection Challenge 2018, stage 2: 26,684 DICOM files of 1024 x 1024 px with boxes of lung opacity.

Layout (`root`):

    stage_2_train_labels.csv           patientId, x, y, width, height, Target: a row a box; Target 0 has none
    stage_2_detailed_class_info.csv    patientId, class: "Lung Opacity", "No Lung Opacity / Not Normal" or "Normal",
                                       with a row for each row of the other table
    stage_2_train_images/PATIENT_ID.dcm

"Lung Opacity" here is one that the radiologists took for pneumonia. "Normal" becomes the label "No Finding"; the third
class has no label, and its name stands in the sample's json as `class`. The test pictures have no public labels and are
not read. The files are pictures of ChestX-ray14; `accept_burned_in` is set in the configuration, since they say nothing
of burned-in text.

Source:
    Shih et al., Radiology: Artificial Intelligence 2019 (doi:10.1148/ryai.2019180041), and the challenge's data page.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from mapstack.dataset_configs import DatasetConfig
from mapstack.errors import ShardError
from train_like.datasets.rows import Finding, Listing, Row, in_folder
from train_like.datasets.tables import box_of, find_file, number, read_table

LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
FOLDER = "stage_2_train_images"

_OPACITY = "Lung Opacity"
_LABELS = {_OPACITY: (_OPACITY,), "Normal": ("No Finding",), "No Lung Opacity / Not Normal": ()}
_FRAME = (1024, 1024)


def read(config: DatasetConfig) -> Listing:
    """List the pictures of the challenge's training set.

    Raises:
        ShardError: A table is missing, damaged, lacks a column, or holds an unknown class.
    """
    root, images = Path(config.root), Path(config.images or config.root)
    notes: Counter[str] = Counter()
    classes = _read_classes(find_file(root, [CLASSES]))
    path = find_file(root, [LABELS])
    rows: dict[str, Row] = {}
    for fields in read_table(path, ("patientId", "x", "y", "width", "height", "Target")):
        patient, is_known = fields["patientId"], fields["patientId"] in rows
        if not is_known:
            rows[patient] = _row(patient, images, classes, path, notes)
        if number(fields["Target"]) != 1:
            notes["rows that repeat another (joined)"] += is_known
            continue
        box = box_of(fields, "x", "y", "width", "height")
        finding = Finding(_OPACITY, box)
        if box is None:
            notes["boxes without numbers (left out)"] += 1
        elif finding in rows[patient].findings:
            notes["rows that repeat another (joined)"] += 1
        else:
            rows[patient] = replace(rows[patient], findings=(*rows[patient].findings, finding), frame=_FRAME)
    return Listing(list(rows.values()), notes, has_views=False)


def _read_classes(path: Path) -> dict[str, str]:
    classes: dict[str, str] = {}
    for fields in read_table(path, ("patientId", "class")):
        if fields["class"] not in _LABELS:
            raise ShardError(
                f"table '{path}' holds a class that is none of {', '.join(_LABELS)}; fetch the table again."
            )
        classes[fields["patientId"]] = fields["class"]
    return classes


def _row(patient: str, images: Path, classes: dict[str, str], table: Path, notes: Counter[str]) -> Row:
    if patient not in classes:
        notes[f"pictures that {CLASSES} lacks (no labels)"] += 1
    told = classes.get(patient)
    try:
        path = in_folder(images, f"{FOLDER}/{patient}.dcm")
    except ValueError:
        raise ShardError(f"table '{table}' names a picture outside its folder; fetch the table again.") from None
    extra = {} if told is None else {"class": told}
    return Row(id=patient, path=path, labels=_LABELS.get(told or "", ()), patient=patient, extra=extra)
