"""Two segmented classes that become one keep both masks."""

import numpy as np
import pytest
import torch

from mapstack.errors import ShardError
from mapstack.metrics.rle import EncodedMask, decode_mask, encode_mask
from train_like.datasets.rows import Row
from train_like.datasets.selection import _relabelled


def mask(height: int, *rows: int) -> EncodedMask:
    drawn = torch.zeros(height, 4, dtype=torch.bool)
    drawn[list(rows)] = True
    return encode_mask(drawn)


def test_the_masks_of_classes_that_become_one_are_joined() -> None:
    masks = {"Mass": mask(6, 0, 1), "Edema": mask(6, 5), "Nodule": mask(6, 1, 2), "Scar": mask(6, 3), "Pin": mask(6, 4)}
    row = Row("1", "1.png", labels=tuple(masks), masks=masks)
    rename = {"Mass": "Lung Lesion", "Nodule": "Lung Lesion", "Scar": "", "Pin": "Edema"}
    found = _relabelled(row, "apart", rename)
    assert found.labels == ("Lung Lesion", "Edema")
    rows = {label: np.flatnonzero(decode_mask(each)[:, 0]).tolist() for label, each in found.masks.items()}
    assert rows == {"Lung Lesion": [0, 1, 2], "Edema": [4, 5]}


def test_masks_of_two_sizes_are_not_joined() -> None:
    row = Row("patient 1", "1.png", masks={"Mass": mask(6, 0), "Nodule": mask(7, 0)})
    with pytest.raises(ShardError, match=r"'patient 1' has masks of \(6, 4\) and \(7, 4\) px"):
        _relabelled(row, "apart", {"Mass": "Lesion", "Nodule": "Lesion"})
