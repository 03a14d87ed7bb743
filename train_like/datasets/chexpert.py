"""CheXpert, and CheXlocalize with its segmentations of CheXpert's validation and test sets.

Layout of CheXpert (`root`, named CheXpert-v1.0 or CheXpert-v1.0-small):

    train.csv, valid.csv    Path, Sex, Age, Frontal/Lateral, AP/PA and the 14 classes: 1.0, 0.0, -1.0 or empty
    train/patient00001/study1/view1_frontal.jpg

Layout of CheXlocalize (`root`):

    CheXpert/val_labels.csv, CheXpert/test_labels.csv    Path and classes
    CheXpert/val/patient64541/study1/view1_frontal.jpg, CheXpert/test/...
    CheXlocalize/gt_segmentations_val.json, CheXlocalize/gt_segmentations_test.json    masks as COCO run lengths

Its first release had the validation set alone, as CheXpert-v1.0/valid.csv, CheXpert-v1.0/valid/... and
gt_segmentations_val.json; it is read as well.

`Path` begins with the folder's name ("CheXpert-v1.0/valid/..."), which is left out; CheXlocalize's val_labels.csv says
"valid" for its folder "val". The identifier of a picture is CheXlocalize's, `patient64541_study1_view1_frontal`. Of its
ten pathologies "Airspace Opacity" is the class "Lung Opacity". Of a mask that is empty nothing is stored.

Source:
    Irvin et al., CheXpert, AAAI 2019; Saporta et al., Nature Machine Intelligence 2022 and the README of
    rajpurkarlab/cheXlocalize.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from mapstack.dataset_configs import DatasetConfig
from mapstack.errors import ShardError, unknown_name
from mapstack.metrics.chexlocalize import MIMIC_LABELS, read_masks
from mapstack.metrics.rle import EncodedMask
from train_like.datasets.rows import Listing, Row, in_folder
from train_like.datasets.tables import MIMIC_CLASSES, find_file, read_header, read_table, ternary_labels

_TABLES = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "CheXpert/val_labels.csv", "CheXpert-v1.0/valid.csv"),
    "test": ("test.csv", "CheXpert/test_labels.csv"),
}
_SEGMENTATIONS = {"valid": "gt_segmentations_val.json", "test": "gt_segmentations_test.json"}
_FOLDERS = ("CheXlocalize", ".")
_PUBLISHED_FOLDER = re.compile(r"CheXpert-v1\.0(-small)?/")
_SYNONYMS = {"Airspace Opacity": "Lung Opacity"}


def read(config: DatasetConfig) -> Listing:
    """List the pictures of CheXpert or CheXlocalize.

    Raises:
        ShardError: A split is unknown, no table is there, or one is damaged, lacks a column, or names a file outside
            the folder.
        InputError: A file of segmentations is damaged.
    """
    root = Path(config.root)
    for split in config.splits or ():
        if split not in _TABLES:
            raise ShardError(f"{unknown_name('split', split, list(_TABLES))} Correct dataset.splits.")
    notes: Counter[str] = Counter()
    rows: list[Row] = []
    for split, names in _TABLES.items():
        path = next((root / name for name in names if (root / name).is_file()), None)
        if path is not None and (config.splits is None or split in config.splits):
            masks = _read_masks(root, split)
            found = list(_read_rows(path, split, masks))
            n_unused = len(masks.keys() - {row.id for row in found})
            if n_unused:
                notes[f"segmentations of pictures that {path.name} lacks"] += n_unused
            rows += found
    if not rows:
        wanted = [name for split, names in _TABLES.items() if split in (config.splits or _TABLES) for name in names]
        find_file(root, wanted)
    return Listing(rows, notes)


def _read_rows(path: Path, split: str, masks: Mapping[str, Mapping[str, EncodedMask]]) -> Iterator[Row]:
    header = read_header(path)
    classes = [name for name in header if _SYNONYMS.get(name, name) in MIMIC_CLASSES]
    if not classes:
        raise ShardError(f"table '{path}' lacks a column: {unknown_name('column', MIMIC_CLASSES[0], header)}")
    for fields in read_table(path, ("Path",)):
        told = [tuple(_SYNONYMS.get(name, name) for name in names) for names in ternary_labels(fields, classes, path)]
        name = _name_on_disk(fields["Path"], path)
        patient, study, view = Path(name).with_suffix("").parts[-3:]
        identifier = f"{patient}_{study}_{view}"
        own = masks.get(identifier, {})
        sizes = {mask.size for mask in own.values()}
        yield Row(
            id=identifier,
            path=in_folder(path.parent, name),
            labels=told[0],
            uncertain=told[1],
            negative=told[2],
            masks={MIMIC_LABELS[label]: mask for label, mask in own.items() if not _is_empty(mask)},
            frame=sizes.pop() if len(sizes) == 1 else None,
            split=split,
            view=_view_of(fields, view),
            patient=patient,
            study=f"{patient}_{study}",
        )


def _name_on_disk(name: str, path: Path) -> str:
    """Turn a `Path` into where the picture lies beside its table."""
    name = _PUBLISHED_FOLDER.sub("", name, count=1)
    if path.name == "val_labels.csv":
        name = re.sub("^valid/", "val/", name)
    try:
        in_folder(path.parent, name)
    except ValueError:
        raise ShardError(f"table '{path}' names a picture outside its folder; fetch the table again.") from None
    if len(Path(name).parts) < 4:
        raise ShardError(
            f"table '{path}' holds a Path that is not SPLIT/PATIENT/STUDY/VIEW.jpg; the dataset is read in the layout "
            "of its publisher; fetch the table again."
        )
    return name


def _view_of(fields: Mapping[str, str], name: str) -> str:
    """Read the view: of the lateral ones and of CheXlocalize's the file's name tells it, view1_frontal."""
    if fields.get("Frontal/Lateral", "").lower() == "lateral" or name.endswith("_lateral"):
        return "LATERAL"
    told = fields.get("AP/PA", "").upper()
    return told if told in ("AP", "PA") else "FRONTAL"


def _read_masks(root: Path, split: str) -> Mapping[str, Mapping[str, EncodedMask]]:
    for folder in _FOLDERS:
        path = root / folder / _SEGMENTATIONS.get(split, "")
        if path.is_file():
            return read_masks(path)
    return {}


def _is_empty(mask: EncodedMask) -> bool:
    """Say whether a mask is one run of False, without decoding it: most are. A run ends in a character below "P"."""
    return sum(character < "P" for character in mask.counts) == 1
