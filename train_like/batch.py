"""One batch of the job: prepared pictures, and the samples that could not be prepared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mapstack.dicom import DicomRule
from mapstack.errors import ImageError
from mapstack.images import Inputs, Prepared, Preprocessing, collate, decode, prepare
from mapstack.store import Failure
from train_like.index import IMAGE_SUFFIXES
from train_like.source import Sample


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared sample."""

    key: str
    shard: str
    prepared: Prepared


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of the loop works on.

    Attributes:
        items: The samples whose pictures could be prepared.
        failures: The others.
        inputs: The pictures, padded to the full batch size with copies of the last; None where there is none. Full
            batches make the bits of a map independent of how many samples were left for the last batch.
    """

    items: tuple[Item, ...]
    failures: tuple[Failure, ...]
    inputs: Inputs | None

    def to(self, device: torch.device) -> "Batch":
        """Move the pictures to a device."""
        return self if self.inputs is None else replace(self, inputs=self.inputs.to(device))


def prepare_item(sample: Sample, preprocessing: Preprocessing, *, accept_burned_in: bool = False) -> Item:
    """Decode and preprocess one sample.

    Args:
        sample: As `train_like.source` yields it.
        preprocessing: The model's.
        accept_burned_in: See `mapstack.config.DataConfig`.

    Raises:
        ImageError: The picture is refused, or of a kind that is not read.
    """
    image = next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if image is None:
        raise ImageError("sample has no .png, .jpg, .jpeg or .dcm; other pictures are not read; convert it.")
    picture = decode(image, dicom=DicomRule(accept_burned_in))
    return Item(sample["__key__"], sample["__url__"], prepare(picture, preprocessing))


def collate_items(items: Sequence[Item | Failure], batch_size: int) -> Batch:
    """Make a batch of items and failures."""
    good = tuple(item for item in items if isinstance(item, Item))
    failures = tuple(item for item in items if isinstance(item, Failure))
    inputs = collate([item.prepared for item in good]).padded(batch_size) if good else None
    return Batch(good, failures, inputs)
