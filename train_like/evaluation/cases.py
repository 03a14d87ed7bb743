"""The pictures that are scored: what they show and where, original-image frame."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mapstack.config import DataConfig
from mapstack.dicom import DicomRule
from mapstack.errors import InputError, ShardError
from mapstack.images import Picture, Prepared, Preprocessing, decode, prepare
from mapstack.metrics.chexlocalize import MIMIC_LABELS, GroundTruth, enlarge, read_masks
from mapstack.metrics.rle import decode_mask
from train_like.index import IMAGE_SUFFIXES
from train_like.pictures import ShardPictures

_MAX_MASK_BYTES = 8 * 50_000_000 + 1024  # the largest picture that is read, in 64 bits a pixel, and a header


@dataclass(frozen=True, eq=False)
class Region:
    """A finding and where it is.

    Attributes:
        label: Its class label.
        sentence: A sentence that is true of it; None where none is known.
        mask: True inside, original-image frame.
    """

    label: str
    sentence: str | None
    mask: Bool[Tensor, "height width"]


@dataclass(frozen=True, eq=False)
class Case:
    """A picture and its findings.

    Attributes:
        key: Of the sample.
        picture: As decoded.
        prepared: As the model sees it.
        labels: The class labels of the sample, with or without a region.
        regions: Findings whose place is known and not empty, one a label.
    """

    key: str
    picture: Picture
    prepared: Prepared
    labels: tuple[str, ...]
    regions: tuple[Region, ...]

    @property
    def brightness(self) -> Float[Tensor, "height width"]:
        """Grey values [0, 1], original-image frame."""
        return torch.from_numpy(np.array(self.picture.image.convert("L"))) / 255

    def on_picture(self, attribution: Float[Tensor, "height width"]) -> Float[Tensor, "original_height original_width"]:
        """Bring a map from the model-input frame onto the picture.

        Where the picture fills the frame this is CheXlocalize's own bilinear enlargement; a padded or cropped one goes
        by its exact geometry.
        """
        geometry = self.prepared.geometry
        if geometry.box == (0, 0, geometry.image_size, geometry.image_size):
            return enlarge(attribution, geometry.original)
        return geometry.to_original(attribution)


class Cases:
    """The pictures of one split, read from their shards when they are asked for.

    Args:
        data: Its shards.
        preprocessing: The model's.
        ground_truth: Masks by key and pathology, as CheXlocalize has them; None takes the masks of the shards, or
            their boxes.
        n: At most so many pictures, in the order of the shards.
        has_regions: Whether masks and boxes are read; without, no picture has a region.

    Raises:
        ShardError: A sample cannot be read: numbers never rest on fewer pictures than they seem to.
    """

    def __init__(
        self,
        data: DataConfig,
        preprocessing: Preprocessing,
        ground_truth: GroundTruth | None,
        n: int | None,
        *,
        has_regions: bool = True,
    ) -> None:
        self._pictures = ShardPictures(data)
        for problem in self._pictures.problems:
            raise ShardError(
                f"{len(self._pictures.problems)} samples of shards {data.shards} cannot be read, the first in "
                f"'{problem.shard}' ({problem.reason.rstrip('.')}); an evaluation leaves none out; repack the shards."
            )
        self._preprocessing = preprocessing
        self._dicom = DicomRule(data.accept_burned_in)
        self._truth = ground_truth
        self._has_regions = has_regions
        known = (entry.key for entry in self._pictures.entries() if ground_truth is None or entry.key in ground_truth)
        self.keys = tuple(known)[:n]

    def __iter__(self) -> Iterator[Case]:
        return (self.read(key) for key in self.keys)

    def require_region(self, labels: Sequence[str], split: str) -> None:
        """Refuse a split on which nothing can be located, before hours of work.

        Raises:
            InputError: No picture has a region of one of the labels.
        """
        if not any(region.label in labels for case in self for region in case.regions):
            raise InputError(
                f"none of {len(self.keys)} {split} pictures has a region of a class of the prompt set; settings are "
                "chosen and maps scored on pictures with boxes or masks; give shards that have them, or set "
                "regions=none to score what needs none."
            )

    def digest(self, key: str) -> str:
        """Return the digest of all that a picture is scored by: its bytes, its findings and its masks."""
        sample = self._pictures.read_sample(key)
        truth = {} if self._truth is None else {name: mask.counts for name, mask in self._truth[key].items()}
        told = json.dumps([sample.get("json"), truth], sort_keys=True).encode()
        return hashlib.sha256(_image_of(sample) + told + sample.get("masks.npz", b"")).hexdigest()

    def read(self, key: str) -> Case:
        """Read a picture.

        Raises:
            ShardError: The sample is damaged, or a mask does not fit its picture.
        """
        sample = self._pictures.read_sample(key)
        picture = decode(_image_of(sample), dicom=self._dicom)
        info = sample.get("json", {})
        findings = _findings_of(key, info)
        masks = self._masks(sample, findings, picture.size)
        sentences = {each["label"]: each.get("prompt") for each in findings}
        for mask in masks.values():
            _check_size(key, mask, picture.size)
        regions = [Region(label, sentences.get(label), mask) for label, mask in masks.items() if mask.any()]
        labels = info.get("labels") or [region.label for region in regions] or list(sentences)
        return Case(key, picture, prepare(picture, self._preprocessing), tuple(labels), tuple(regions))

    def _masks(
        self, sample: Mapping[str, Any], findings: Sequence[Mapping[str, Any]], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        if not self._has_regions:
            return {}
        if self._truth is None:
            return _masks_of(sample, findings, size)
        return _chexlocalize_masks(self._truth[sample["__key__"]])


def read_ground_truth(paths: Sequence[str]) -> GroundTruth | None:
    """Read CheXlocalize's JSON files of masks into one; None where there is none."""
    truth: GroundTruth = {}
    for path in paths:
        truth |= read_masks(path)
    return truth if paths else None


def _image_of(sample: Mapping[str, Any]) -> bytes:
    data: bytes = next(sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample)
    return data


def _findings_of(key: str, info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    findings: list[Mapping[str, Any]] = info.get("findings") or []
    for each in findings if isinstance(findings, list) else [None]:
        box = each.get("box") if isinstance(each, dict) else None
        is_box = box is None or (isinstance(box, list) and len(box) == 4 and all(isinstance(edge, int) for edge in box))
        if not isinstance(each, dict) or not isinstance(each.get("label"), str) or not is_box:
            raise ShardError(
                f"findings of key {ascii(key)} cannot be read; they are a list of objects with a label, and where "
                "known a prompt and a box [row0, column0, row1, column1] of whole numbers; write them again."
            )
    return findings


def _masks_of(
    sample: Mapping[str, Any], findings: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> dict[str, Tensor]:
    if "masks.npz" in sample:
        try:
            with zipfile.ZipFile(io.BytesIO(sample["masks.npz"])) as packed:
                if max((member.file_size for member in packed.infolist()), default=0) > _MAX_MASK_BYTES:
                    raise ValueError("a mask is larger than any picture")
            with np.load(io.BytesIO(sample["masks.npz"]), allow_pickle=False) as stored:
                return {label: torch.from_numpy(stored[label].astype(bool)) for label in stored.files}
        except (ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
            raise ShardError(
                f"masks.npz of key {ascii(sample['__key__'])} cannot be read; it holds one boolean array a label, "
                "without pickles; write it again."
            ) from None
    masks: dict[str, Tensor] = {}
    for finding in findings:
        if finding.get("box"):
            row0, column0, row1, column1 = finding["box"]
            mask = masks.setdefault(finding["label"], torch.zeros(size, dtype=torch.bool))
            mask[row0:row1, column0:column1] = True
    return masks


def _chexlocalize_masks(truth: Mapping[str, Any]) -> dict[str, Tensor]:
    return {MIMIC_LABELS[pathology]: decode_mask(mask) for pathology, mask in truth.items()}


def _check_size(key: str, mask: Tensor, size: tuple[int, int]) -> None:
    if tuple(mask.shape) != size:
        raise ShardError(
            f"a mask of key {ascii(key)} has shape {tuple(mask.shape)}, its picture {size}; masks lie in the "
            "original-image frame; write them in the picture's size."
        )
