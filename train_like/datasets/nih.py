"""NIH ChestX-ray14 (112,120 frontal pictures of 1024 x 1024 px), with the boxes of 880 of them.

Layout (`root`):

    Data_Entry_2017_v2020.csv or Data_Entry_2017.csv    Image Index, Finding Labels ("Effusion|Mass" or "No Finding"),
                                                        Follow-up #, Patient ID, Patient Age, ..., View Position, ...
    BBox_List_2017.csv                                  Image Index, Finding Label, Bbox [x, y, w, h]: the commas within
                                                        the brackets divide columns, and three empty ones follow
    train_val_list.txt, test_list.txt                   file names, one a line
    images/00000001_000.png, or images_001/images/... to images_012/images/... as the archives unpack

"Infiltrate" of the boxes is "Infiltration" of the labels. A box says nothing that the labels do not: a picture whose
labels lack the box's is listed in the notes.

Source:
    Wang et al., ChestX-ray8, CVPR 2017; README_ChestXray.pdf and FAQ of the release of the NIH Clinical Center.
"""

from collections import Counter, defaultdict
from pathlib import Path

from mapstack.dataset_configs import DatasetConfig
from mapstack.errors import ShardError
from train_like.datasets.rows import Finding, Listing, Row, in_folder, unique
from train_like.datasets.tables import box_of, find_file, read_table

ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
SPLITS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}

_BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")
_SYNONYMS = {"Infiltrate": "Infiltration"}
_FRAME = (1024, 1024)


def read(config: DatasetConfig) -> Listing:
    """List the pictures of ChestX-ray14.

    Raises:
        ShardError: A table is missing, damaged, or lacks a column.
    """
    root = Path(config.root)
    notes: Counter[str] = Counter()
    boxes = _read_boxes(root, notes)
    splits = _read_splits(root)
    places = _places(Path(config.images or config.root))
    path = find_file(root, ENTRIES)
    rows = []
    for fields in read_table(path, ("Image Index", "Finding Labels", "Patient ID", "View Position")):
        name = fields["Image Index"]
        labels = unique(label for label in fields["Finding Labels"].split("|") if label)
        findings = tuple(boxes.get(name, ()))
        notes["boxes whose label the picture's labels lack"] += sum(each.label not in labels for each in findings)
        rows.append(
            Row(
                id=name.removesuffix(".png"),
                path=_path_of(name, places, path),
                labels=labels,
                findings=findings,
                frame=_FRAME if findings else None,
                split=splits.get(name),
                view=fields["View Position"].upper() or None,
                patient=fields["Patient ID"],
            )
        )
    return Listing(rows, notes)


def _read_boxes(root: Path, notes: Counter[str]) -> dict[str, list[Finding]]:
    boxes: dict[str, list[Finding]] = defaultdict(list)
    if not (root / BOXES).is_file():
        notes[f"{BOXES} is absent (no boxes)"] = 1
        return boxes
    for fields in read_table(root / BOXES, ("Image Index", "Finding Label", *_BOX_COLUMNS)):
        label = _SYNONYMS.get(fields["Finding Label"], fields["Finding Label"])
        box = box_of(fields, *_BOX_COLUMNS)
        finding = Finding(label, box)
        if box is None:
            notes["boxes without numbers (left out)"] += 1
        elif finding in boxes[fields["Image Index"]]:
            notes["rows that repeat another (joined)"] += 1
        else:
            boxes[fields["Image Index"]].append(finding)
    return boxes


def _read_splits(root: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split, name in SPLITS.items():
        path = root / name
        if path.is_file():
            splits |= {line.strip(): split for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    return splits


def _places(root: Path) -> dict[str, str]:
    """Say in which folder each picture lies: of one folder nothing, of the twelve that the archives unpack to all."""
    folders = [root / "images", *sorted(root.glob("images_0[01][0-9]/images"))]
    folders = [folder for folder in folders if folder.is_dir()] or [root]
    if len(folders) == 1:
        return {"": str(folders[0])}
    return {"": str(folders[0])} | {path.name: str(folder) for folder in folders for path in folder.iterdir()}


def _path_of(name: str, places: dict[str, str], table: Path) -> str:
    try:
        return in_folder(Path(places.get(name, places[""])), name)
    except ValueError:
        raise ShardError(f"table '{table}' names a picture outside its folder; fetch the table again.") from None
