"""MS-CXR 0.1 and 1.1.0: sentences of MIMIC-CXR's reports with boxes, the natural test of a map for a prompt.

Layout: `root` holds MS_CXR_Local_Alignment_v1.0.0.csv (release 0.1) or MS_CXR_Local_Alignment_v1.1.0.csv, whose rows
are boxes: dicom_id, category_name, label_text, path, x, y, w, h [px of the original picture], image_width,
image_height, and from 1.1.0 on split. `images` is the folder of MIMIC-CXR-JPG, in which `path` begins with `files/`.

A row is a box; a sentence may have several. A sample is a picture with all its sentences. `split` (train, val, test) is
MS-CXR's own: where `images` holds MIMIC-CXR-JPG's table of splits, a sample's json has that one as `mimic_split`, for
a model that was trained on MIMIC-CXR has seen its pictures of "train".

Source:
    Boecking et al., MS-CXR: Making the Most of Text Semantics to Improve Biomedical Vision-Language Processing,
    PhysioNet (release 0.1: doi:10.13026/b90j-vb87; 1.1.0, 2024).
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from mapstack.dataset_configs import DatasetConfig
from mapstack.errors import ShardError
from train_like.datasets.mimic_cxr import SPLIT, read_splits
from train_like.datasets.rows import Finding, Listing, Row, in_folder, unique
from train_like.datasets.tables import box_of, find_file, number, read_table

TABLES = ("MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.0.0.csv")
_COLUMNS = ("category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")


def read(config: DatasetConfig) -> Listing:
    """List the pictures of MS-CXR.

    Raises:
        ShardError: The table is missing, damaged, lacks a column, or names a file outside the folder.
    """
    path = find_file(Path(config.root), TABLES)
    images = Path(config.images or config.root)
    notes: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    splits = (
        read_splits(images) if any((images / name).is_file() for name in (SPLIT, SPLIT.removesuffix(".gz"))) else {}
    )
    for fields in read_table(path, _COLUMNS):
        name = Path(fields["path"]).with_suffix(f".{config.image_suffix}")
        try:
            picture = in_folder(images, str(name))
        except ValueError:
            raise ShardError(f"table '{path}' names a picture outside its folder; fetch the table again.") from None
        box = box_of(fields, "x", "y", "w", "h")
        if box is None:
            notes["boxes without numbers (the sentence stays)"] += 1
        finding = Finding(fields["category_name"], box, fields["label_text"])
        if name.stem not in rows:
            rows[name.stem] = _row(fields, name, picture, splits.get(name.stem))
            notes["pictures of MIMIC-CXR's training split (MedCLIP has seen them)"] += splits.get(name.stem) == "train"
        row = rows[name.stem]
        if finding in row.findings:
            notes["rows that repeat another (joined)"] += 1
            continue
        rows[name.stem] = replace(
            row, findings=(*row.findings, finding), labels=unique([*row.labels, fields["category_name"]])
        )
    return Listing(list(rows.values()), notes, has_views=False)


def _row(fields: dict[str, str], name: Path, picture: str, mimic_split: str | None) -> Row:
    height, width = (number(fields[side]) for side in ("image_height", "image_width"))
    has_frame = height > 0 and width > 0
    folders = name.parts
    return Row(
        id=name.stem,
        path=picture,
        frame=(int(height), int(width)) if has_frame else None,
        split=fields.get("split") or None,
        # files/p10/p10000032/s50414267/DICOM_ID.jpg
        patient=folders[-3][1:] if len(folders) > 3 else None,
        study=folders[-2][1:] if len(folders) > 2 else None,
        extra={} if mimic_split is None else {"mimic_split": mimic_split},
    )
