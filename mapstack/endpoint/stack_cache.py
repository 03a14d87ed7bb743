"""The cache of stacks and pictures: the next text about the same picture costs a matrix product and no model run."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mapstack.basis import Basis
from mapstack.endpoint.cache_files import CacheFolder
from mapstack.errors import MapstackError
from mapstack.explainer import Explainer
from mapstack.geometry import Geometry
from mapstack.images import Picture, Prepared, Preprocessing
from mapstack.methods import Occlusion, Sweep, Windows
from mapstack.stack import OcclusionStack, Stack

AnyStack = Stack | OcclusionStack

_SPAN_TOLERANCE = 1e-5
"""Share of a direction that may lie outside the rows: what rounding leaves of a text that the rows were made of."""

_PICTURES_SHARE = 0.25
"""Of the cache, for pictures: they come with every request, and a stack takes longer to make again."""


@dataclass
class CacheCounts:
    """What the cache did since the last time that somebody asked."""

    hits: int = 0
    misses: int = 0


class StackCache:
    """Stacks of single pictures, by picture, model, method and basis.

    Args:
        root: The folder; None keeps nothing.
        max_bytes: Of all files in it.
        max_open: Stacks that this process keeps mapped into memory.
    """

    def __init__(self, root: Path | None, max_bytes: int, max_open: int) -> None:
        self.folder = CacheFolder(root, max_bytes) if root is not None and max_bytes else None
        self.counts = CacheCounts()
        self._max_open = max_open
        self._open: OrderedDict[str, tuple[int, AnyStack]] = OrderedDict()

    def find(self, explainer: Explainer, sha256: str, directions: Tensor, tag: str = "") -> AnyStack | None:
        """Return a stack that gives the exact maps of directions, or None.

        Args:
            explainer: Model, method and form of the maps.
            sha256: Of the picture.
            directions: Every direction that may be asked of it.
            tag: Sets stacks apart that depend on more than picture and method.
        """
        axes = self.get(stack_name(explainer, sha256, None, tag), normalize=explainer.normalize)
        if axes is not None or self.folder is None:
            return axes
        for name in self.folder.names(f"{_subject(explainer, sha256, False, tag)}."):
            # Only looked at: to count one that does not cover the texts as used would keep it in the place of others.
            known = self._look(name)
            basis = known[1].basis if known is not None and isinstance(known[1], Stack) else None
            if known is not None and basis is not None and _covers(basis.to(directions), directions):
                return self._use(name, known, explainer.normalize)
        return None

    def get(self, name: str, *, normalize: bool) -> AnyStack | None:
        """Return a stack by its name, mapped from the files."""
        known = self._look(name)
        if known is None:
            self._open.pop(name, None)
            return None
        return self._use(name, known, normalize)

    def put(self, name: str, stack: AnyStack) -> None:
        """Keep the stack of one picture, if it fits and its numbers are finite."""
        arrays, about = _from_stack(stack)
        if self.folder is not None and all(np.isfinite(array).all() for array in arrays.values()):
            self.folder.put(name, arrays, about)
        self._close_surplus()

    @contextmanager
    def computing(self, names: Iterable[str]) -> Iterator[None]:
        """Keep other workers from computing the same stacks at the same time, where locks can be had."""
        with ExitStack() as held:
            if self.folder is not None:
                with suppress(OSError):
                    held.enter_context(self.folder.locked(names))
            yield

    def put_picture(self, picture: Picture, prepared: Prepared, preprocessing: Preprocessing) -> None:
        """Keep a picture and what a model's preprocessing made of it, so that it can be named by its sha256 alone."""
        name = _picture_name(picture.sha256, preprocessing)
        if self.folder is not None and not self.folder.touch(name):
            arrays = {"pixels": np.asarray(picture.image), "pixel_values": prepared.pixel_values.numpy()}
            self.folder.put(name, arrays, {"geometry": prepared.geometry.to_dict()}, max_share=_PICTURES_SHARE)

    def get_picture(self, sha256: str, preprocessing: Preprocessing) -> tuple[Picture, Prepared] | None:
        """Return a picture that was kept for models of this preprocessing."""
        name = _picture_name(sha256, preprocessing)
        content = None if self.folder is None else self.folder.read(name)
        if content is None or self.folder is None:
            return None
        try:
            picture, prepared = _to_picture(*content, sha256, preprocessing)
        except (KeyError, TypeError, ValueError, MapstackError):  # as in `_read`
            self.folder.remove(name)
            return None
        self.folder.touch(name)
        return picture, prepared

    def _look(self, name: str) -> tuple[int, AnyStack] | None:
        """Return a stack with its inode, without counting it as used."""
        inode = None if self.folder is None else self.folder.inode(name)
        if inode is None:
            return None
        known = self._open.get(name)
        if known is not None and known[0] == inode:
            return known
        stack = self._read(name)
        return None if stack is None else (inode, stack)

    def _use(self, name: str, known: tuple[int, AnyStack], normalize: bool) -> AnyStack:
        """Count a stack as used, and keep it open."""
        if self.folder is not None:
            self.folder.touch(name)
        self._open[name] = known
        self._open.move_to_end(name)
        self._close_surplus()
        return known[1].explaining(normalize=normalize)

    def _read(self, name: str) -> AnyStack | None:
        content = None if self.folder is None else self.folder.read(name)
        try:
            return None if content is None else _to_stack(*content)
        except (KeyError, TypeError, ValueError):  # files of another version, or damaged ones: computed again
            if self.folder is not None:
                self.folder.remove(name)
            return None

    def _close_surplus(self) -> None:
        for name in [name for name in self._open if not (self.folder and self.folder.path(name).exists())]:
            del self._open[name]  # evicted by another worker; its space on the disk is freed only now
        while len(self._open) > self._max_open:
            self._open.popitem(last=False)


def stack_name(explainer: Explainer, sha256: str, basis: Basis | None, tag: str = "") -> str:
    """Return the name of a stack: everything that decides its numbers."""
    subject = _subject(explainer, sha256, basis is None, tag)
    return f"{subject}.{'axes' if basis is None else _digest(basis.rows.numpy(force=True).tobytes())}"


def _subject(explainer: Explainer, sha256: str, along_axes: bool, tag: str) -> str:
    serves_both = explainer.method.one_stack_serves_both and (along_axes or isinstance(explainer.method, Occlusion))
    identity = {
        "picture": sha256,
        "weights": explainer.model.fingerprint,
        "preprocessing": asdict(explainer.model.preprocessing),  # no weight says how pictures are prepared
        "method": explainer.method.describe(),
        "normalize": "both" if serves_both else explainer.normalize,
        "map_size": explainer.frame_size,
        "seed": explainer.seed,
        "dtype": str(explainer.model.dtype),
        "tag": tag,
    }
    return "stack." + _digest(json.dumps(identity, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _picture_name(sha256: str, preprocessing: Preprocessing) -> str:
    """Name a picture by everything that decides its numbers: another model may want it otherwise."""
    return f"picture.{sha256}.{_digest(json.dumps(asdict(preprocessing), sort_keys=True).encode())}"


def _to_picture(
    arrays: dict[str, NDArray[Any]], about: dict[str, Any], sha256: str, preprocessing: Preprocessing
) -> tuple[Picture, Prepared]:
    """Read what `put_picture` kept; ValueError and its like where it is not that."""
    geometry = Geometry.from_dict(about["geometry"])
    pixels, pixel_values = arrays["pixels"], torch.from_numpy(arrays["pixel_values"])
    shape = (len(preprocessing.mean), preprocessing.image_size, preprocessing.image_size)
    if pixels.dtype != np.uint8 or pixels.shape[:2] != geometry.original or pixel_values.dtype != torch.float32:
        raise ValueError("the picture is not of the size that its geometry has")
    if pixel_values.shape != shape:
        raise ValueError("the model's input is not of the size that the model wants")
    return Picture(Image.fromarray(pixels), sha256), Prepared(pixel_values, geometry, sha256)


def _covers(basis: Basis, directions: Tensor) -> bool:
    outside = basis.residual(directions).norm(dim=-1)
    return bool((outside <= _SPAN_TOLERANCE * directions.norm(dim=-1)).all())


def _from_stack(stack: AnyStack) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    tensors = {"embedding": stack.embedding[0]}
    about: dict[str, Any] = {"normalize": stack.normalize}
    if isinstance(stack, OcclusionStack):
        tensors |= {"scores": stack.sweep.occluded[0], "baseline_embedding": stack.sweep.at_baseline[0]}
        about |= {"map_size": stack.map_size, "windows": asdict(stack.sweep.windows)}
    else:
        tensors["stack"] = stack.values[0]
        about |= {"is_raw": stack.is_raw, "n_steps": stack.n_steps, "is_converged": stack.is_converged}
        if stack.baseline_embedding is not None:
            tensors["baseline_embedding"] = stack.baseline_embedding[0]
        if stack.basis is not None:
            tensors |= {"rows": stack.basis.rows, "centre": stack.basis.centre}
    return {name: tensor.numpy(force=True) for name, tensor in tensors.items()}, about


def _to_stack(arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> AnyStack:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    embedding, baseline = tensors["embedding"][None], tensors.get("baseline_embedding")
    if "scores" in tensors and baseline is not None:
        sweep = Sweep(embedding, tensors["scores"][None], baseline[None], Windows(**about["windows"]))
        return OcclusionStack(embedding, about["normalize"], sweep, about["map_size"])
    stack = Stack(
        embedding,
        about["normalize"],
        tensors["stack"][None],
        basis=Basis(tensors["rows"], tensors["centre"]) if "rows" in tensors else None,
        baseline_embedding=None if baseline is None else baseline[None],
        is_raw=about["is_raw"],
    )
    return replace(stack, n_steps=tuple(about["n_steps"]), is_converged=tuple(about["is_converged"]))
