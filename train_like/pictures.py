"""The original pictures of samples, read from their shards by key."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapstack.config import DataConfig
from mapstack.dicom import DicomRule
from mapstack.errors import ShardError
from mapstack.images import Picture, decode
from train_like.index import IMAGE_SUFFIXES, Entry, expand_shards, index_shards
from train_like.source import check_sample, read_entry


class ShardPictures:
    """Random access to the pictures of shards; the index is built once.

    Args:
        config: Which shards.

    Attributes:
        problems: The samples that cannot be read.
    """

    def __init__(self, config: DataConfig) -> None:
        index = index_shards(
            expand_shards(config.shards, config.allowed_schemes), duplicates="first", timeout_s=config.timeout_s
        )
        self._entries = {entry.key: entry for entry in index.entries}
        self.problems = index.problems
        self._dicom = DicomRule(config.accept_burned_in)

    def entries(self) -> list[Entry]:
        """Return the samples in the order of the shards."""
        return list(self._entries.values())

    def read_sample(self, key: str) -> dict[str, Any]:
        """Read a sample as the loop would.

        Raises:
            ShardError: No shard holds the key, or the sample is damaged.
        """
        if key not in self._entries:
            raise ShardError(f"key {ascii(key)} is in none of the shards; pictures are read from data.shards; add its.")
        sample = check_sample(read_entry(self._entries[key]))
        if "__error__" in sample:
            raise ShardError(str(sample["__error__"]))
        return sample

    def read_picture(self, key: str) -> Picture:
        """Read the picture of a sample."""
        sample = self.read_sample(key)
        data = next(sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample)
        return decode(data, dicom=self._dicom)

    def read_boxes(self, key: str) -> list[tuple[int, int, int, int]]:
        """Read the boxes of a sample's findings: (row0, column0, row1, column1), half-open, original-image frame."""
        findings = self.read_sample(key).get("json", {}).get("findings", [])
        return [tuple(finding["box"]) for finding in findings if finding.get("box")]

    def read(self, key: str) -> NDArray[np.uint8]:
        """Read the pixels of a picture, original-image frame."""
        return np.asarray(self.read_picture(key).image)
