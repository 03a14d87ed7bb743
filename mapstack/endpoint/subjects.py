"""What a request is about: a picture that was sent, one that was seen before, or a sample of a stack store."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapstack.basis import Basis
from mapstack.endpoint.refusals import Refusal
from mapstack.endpoint.requests import Request
from mapstack.endpoint.stack_cache import AnyStack, StackCache
from mapstack.errors import ConfigError
from mapstack.geometry import Geometry
from mapstack.images import Picture, Prepared, collate, decode, prepare
from mapstack.models import EmbeddingModel
from mapstack.store import Record, Store
from mapstack.stored_stack import read_basis, read_stack


@dataclass(frozen=True, eq=False)
class Subject:
    """One picture, and what is known of it.

    Attributes:
        sha256: Of the picture's file; None for a stored sample whose record does not say.
        geometry: The way back onto the original picture.
        picture: None where only a stored stack is at hand.
        prepared: As the model sees it; None likewise.
        record: Of the stack store, where the request named a key.
    """

    sha256: str | None
    geometry: Geometry
    picture: Picture | None = None
    prepared: Prepared | None = None
    record: Record | None = None


class StoredSamples:
    """The stack store that the endpoint serves from.

    Args:
        folder: The store.
        fingerprint: Of the endpoint's model.

    Raises:
        StoreError: The folder is no store, or damaged.
        ConfigError: Its stacks were made by another model.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._store = Store(folder)
        self.manifest: dict[str, Any] = self._store.manifest
        self._basis = read_basis(self.manifest, self._store.basis)
        written_with = self.manifest["identity"]["weights"]
        if written_with != fingerprint:
            raise ConfigError(
                f"stack store '{folder}' was written with weights {written_with[:12]}..., the endpoint has "
                f"{fingerprint[:12]}...; texts must come from the same model; serve that one, or another store."
            )

    @property
    def basis(self) -> Basis | None:
        """The basis of the stacks; None for the axes."""
        return self._basis

    def read(self, key: str) -> Record:
        """Read a sample, its bytes compared with their checksum.

        Raises:
            Refusal: There is none of that key.
            StoreError: It is damaged.
        """
        if key not in self._store:
            raise Refusal(
                "unknown_key",
                f"the stack store holds no sample of that key ({len(key)} characters, {len(self._store)} samples); "
                "keys are those of the input shards; correct it.",
                field="key",
            )
        return self._store.read(key, check=True)

    def stack(self, record: Record, *, normalize: bool, map_size: int | None) -> AnyStack:
        """Return the stack of a record."""
        return read_stack(record, self.manifest, self._basis, normalize=normalize, map_size=map_size)


def find_subject(
    request: Request, model: EmbeddingModel, cache: StackCache, stored: StoredSamples | None, *, max_pixels: int
) -> Subject:
    """Find or read the picture of a request.

    Raises:
        Refusal: It is not known here, or does not belong to the sample that is named with it.
        ImageError: It cannot be read.
    """
    subject = None
    if request.image is not None:
        subject = _sent(request.image, model, cache, max_pixels)
    elif request.image_sha256 is not None:
        known = cache.get_picture(request.image_sha256, model.preprocessing)
        if known is None:
            raise Refusal(
                "unknown_image",
                "the picture of that image_sha256 is not kept here, or no longer; send the image itself.",
                field="image_sha256",
            )
        subject = Subject(request.image_sha256, known[1].geometry, *known)
    if request.key is None:
        if subject is None:
            raise RuntimeError("a request without a picture was let pass.")
        return subject
    return _of_store(request.key, subject, stored)


def _sent(image: bytes, model: EmbeddingModel, cache: StackCache, max_pixels: int) -> Subject:
    known = cache.get_picture(hashlib.sha256(image).hexdigest(), model.preprocessing)
    if known is None:
        picture = decode(image, max_pixels=max_pixels)
        known = picture, prepare(picture, model.preprocessing)
        cache.put_picture(*known, model.preprocessing)
    return Subject(known[0].sha256, known[1].geometry, *known)


def _of_store(key: str, sent: Subject | None, stored: StoredSamples | None) -> Subject:
    if stored is None:
        raise Refusal("unknown_key", "this server has no stack store; send the image instead of a key.", field="key")
    record = stored.read(key)
    geometry = Geometry.from_dict(record.info["geometry"])
    sha256 = record.info.get("sha256")
    if sent is None:
        return Subject(sha256, geometry, record=record)
    if sent.sha256 != sha256:
        raise Refusal("bad_image", "the image is not that of the stored sample; send the same file.", field="image")
    return Subject(sha256, geometry, sent.picture, sent.prepared, record)


@torch.no_grad()
def embed(subjects: Sequence[Subject], model: EmbeddingModel) -> list[Tensor]:
    """Embed pictures in one run of the model, each of them once; stored samples bring their embedding with them.

    Returns:
        The raw `I_p` of each subject, in order.
    """
    fresh: dict[str, Prepared] = {}
    for subject in subjects:
        if subject.record is None and subject.prepared is not None:
            fresh[subject.prepared.sha256] = subject.prepared
    found: dict[str, Tensor] = {}
    if fresh:
        inputs = collate(list(fresh.values())).to(model.device)
        found = dict(zip(fresh, model.embed_images(inputs.pixel_values.to(model.dtype)), strict=True))
    embeddings = []
    for subject in subjects:
        if subject.record is not None:
            embeddings.append(torch.from_numpy(subject.record.arrays["embedding"]).to(model.device, model.dtype))
        elif subject.sha256 is not None:
            embeddings.append(found[subject.sha256])
    return embeddings
