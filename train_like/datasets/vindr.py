"""VinDr-CXR 1.0.0: DICOM files with the boxes of three radiologists (training set) or of their consensus (test set).

Layout (`root`):

    train/IMAGE_ID.dicom, test/IMAGE_ID.dicom
    annotations/annotations_train.csv     image_id, rad_id, class_name, x_min, y_min, x_max, y_max
    annotations/annotations_test.csv      the same without rad_id
    annotations/image_labels_train.csv    image_id, rad_id and a column of 0 and 1 for each of the 28 labels
    annotations/image_labels_test.csv     the same without rad_id

Boxes are in the pixels of the DICOM file. Of "No finding" they are empty. A label of the training set counts where
`min_readers` radiologists or more gave it; boxes are kept where their label counts, each with its reader. The test
table's "Other disease" is the training table's "Other diseases". All pictures are postero-anterior. The release says
that text was removed from the pictures; their headers may not, so `accept_burned_in` is set in its configuration.

Source:
    Nguyen et al., VinDr-CXR 1.0.0, PhysioNet 2021 (doi:10.13026/3akn-b287), "Data Description".
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from mapstack.dataset_configs import DatasetConfig
from mapstack.errors import ShardError
from train_like.datasets.rows import Finding, Listing, Row, in_folder, unique
from train_like.datasets.tables import box_between, find_file, number, read_header, read_table

_SPLITS = ("train", "test")
_SYNONYMS = {"Other disease": "Other diseases"}
_NO_FINDING = "No finding"
_NOT_LABELS = ("image_id", "rad_id")


def read(config: DatasetConfig) -> Listing:
    """List the pictures of VinDr-CXR.

    Raises:
        ShardError: A table is missing, damaged, or lacks a column.
    """
    root, images = Path(config.root), Path(config.images or config.root)
    notes: Counter[str] = Counter()
    rows: list[Row] = []
    for split in _SPLITS:
        if config.splits is None or split in config.splits:
            rows += _read_split(root, images, split, config.min_readers if split == "train" else 1, notes)
    return Listing(rows, notes, has_views=False)


def _read_split(root: Path, images: Path, split: str, min_readers: int, notes: Counter[str]) -> Iterator[Row]:
    votes = _read_votes(find_file(root, [f"annotations/image_labels_{split}.csv"]), split, notes)
    boxes = _read_boxes(find_file(root, [f"annotations/annotations_{split}.csv"]), notes)
    for image, readers in votes.items():
        labels = unique(label for label, those in readers.items() if len(those) >= min_readers)
        agreed = [finding for finding in boxes.get(image, ()) if finding.label in labels]
        notes["boxes whose label too few radiologists gave (left out)"] += len(boxes.get(image, ())) - len(agreed)
        try:
            path = in_folder(images, f"{split}/{image}.dicom")
        except ValueError:
            raise ShardError(f"tables of '{root}' name a picture outside its folder; fetch them again.") from None
        yield Row(id=image, path=path, labels=labels, findings=tuple(agreed), split=split)
    for image in boxes.keys() - votes.keys():
        notes["boxes of pictures that the labels' table lacks (left out)"] += len(boxes[image])


def _read_votes(path: Path, split: str, notes: Counter[str]) -> dict[str, dict[str, set[str]]]:
    """Say who gave each label of each picture: a reader whose row comes twice is one reader."""
    labels = [name for name in read_header(path) if name and name not in _NOT_LABELS]
    votes: dict[str, dict[str, set[str]]] = {}
    seen: set[tuple[str, str]] = set()
    for fields in read_table(path, ("image_id", _NO_FINDING, *(["rad_id"] if split == "train" else []))):
        image, reader = fields["image_id"], fields.get("rad_id", "")
        notes["rows that repeat another (joined)"] += (image, reader) in seen
        seen.add((image, reader))
        readers = votes.setdefault(image, defaultdict(set))
        for name in labels:
            if number(fields[name]) == 1:
                readers[_SYNONYMS.get(name, name)].add(reader)
    return votes


def _read_boxes(path: Path, notes: Counter[str]) -> dict[str, list[Finding]]:
    boxes: dict[str, list[Finding]] = defaultdict(list)
    for fields in read_table(path, ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")):
        if fields["class_name"] == _NO_FINDING:
            continue
        label = _SYNONYMS.get(fields["class_name"], fields["class_name"])
        box = box_between(fields, "x_min", "y_min", "x_max", "y_max")
        finding = Finding(label, box, reader=fields.get("rad_id") or None)
        if box is None:
            notes["boxes without numbers (left out)"] += 1
        elif finding in boxes[fields["image_id"]]:
            notes["rows that repeat another (joined)"] += 1
        else:
            boxes[fields["image_id"]].append(finding)
    return boxes
