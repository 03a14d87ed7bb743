"""`project`: stack store + prompts -> maps, without the image model."""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mapstack.basis import Basis
from mapstack.config import Config
from mapstack.errors import ConfigError, ShardError, StoreError
from mapstack.figures import overlay_figure, save
from mapstack.geometry import Geometry
from mapstack.images import Picture
from mapstack.models import load_text_tower
from mapstack.readouts import TextReadout
from mapstack.store import Record, Store, member_name
from mapstack.stored_stack import describe_maps, read_basis, read_stack
from mapstack.threads import one_thread
from train_like.errors import DONE, SOME_FAILED
from train_like.pictures import ShardPictures
from train_like.result import Result
from train_like.texts import tell_truncated

# Reading, checking and decoding a record keeps a core busy for longer than a disk needs to give it.
_MAX_THREADS = 4
_KEPT = ("geometry", "sha256")  # what a map's json repeats of its record, beside what `describe_maps` tells


@dataclass(frozen=True)
class Projection:
    """The maps of one sample, with what their json says of them; `density` as in `mapstack.Explanation`."""

    key: str
    maps: torch.Tensor
    density: float
    geometry: Geometry
    info: dict[str, Any]


def project(config: Config) -> Result:
    """Write the map of every configured text for every sample of the store.

    For each sample: `KEY.maps.npy` (texts, height, width; model-input frame), `KEY.json` (names, logits, residuals)
    and, where pictures are asked for, `KEY.NUMBER-LABEL.png`, the overlay on the original picture.

    Of a store that is not complete what is there is projected, and the result says what is not.

    Raises:
        ConfigError: No texts are configured.
        ShardError: A picture cannot be read, or is not the one that the store explains under its key.
        SpanError: A text lies outside the span of the store's basis.
        StoreError: The store is damaged, or was written with other weights than the configured checkpoint's.
    """
    store = Store(config.output)
    account = _account(store)
    readout = _make_readout(config, store)
    basis = read_basis(store.manifest, store.basis)
    if basis is not None:
        basis.require(readout.span, config.project.span_tolerance)
    pictures = ShardPictures(config.data) if config.project.pictures else None
    output = Path(config.project.output)
    output.mkdir(parents=True, exist_ok=True)
    keys = list(islice(store.keys(), config.project.limit))

    def make(key: str) -> Projection:
        return project_record(store.read(key, check=True), store.manifest, basis, readout, config.stack.map_size)

    # A free text may name a patient, and a file's name is seen by more people than its content.
    slugs = ["text" if group.is_free else slug(group.name) for group in readout.groups]
    residual: float | None = None
    for projection in tqdm(_work_ahead(keys, make), desc="project", unit="image", file=sys.stderr, total=len(keys)):
        for value in projection.info["residual"] or []:
            residual = max(residual or 0.0, abs(value))
        _write(projection, output)
        if pictures is not None:
            picture = pictures.read_picture(projection.key)
            _require_same_picture(projection, picture)
            _draw(projection, np.asarray(picture.image), output, store.manifest, slugs)
    summary = {
        "output": str(output),
        "samples": len(keys),
        "texts": readout.n_rows,
        "largest_residual": residual,
        **account,
    }
    is_whole = store.manifest["complete"] and not account["failed"]
    return Result(DONE if is_whole else SOME_FAILED, summary)


def _account(store: Store) -> dict[str, int | None]:
    """Count the samples that have no map: how many were expected, those that failed, and those that nobody named."""
    expected, n_failed = store.manifest["totals"]["expected"], len(store.failures())
    n_missing = None if expected is None else max(0, expected - len(store) - n_failed)
    return {"expected": expected, "failed": n_failed, "missing": n_missing}


def _work_ahead(keys: Sequence[str], make: Callable[[str], Projection]) -> Iterator[Projection]:
    """Yield the projection of each key, in order, while threads work on the next ones.

    At most as many are begun besides the one that was taken as there are threads, so that the memory does not grow with
    the store. They share the cores; what torch would share with threads of its own waits for cores that are taken.
    """
    n_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with one_thread(), ThreadPoolExecutor(n_threads) as threads:
        ahead: deque[Future[Projection]] = deque()
        for key in keys:
            ahead.append(threads.submit(make, key))
            if len(ahead) > n_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _make_readout(config: Config, store: Store) -> TextReadout:
    groups = config.prompts.groups()
    if not groups:
        raise ConfigError("no prompts are configured; a map needs a text; set prompts.file or prompts.texts.")
    text = load_text_tower(
        config.model.name,
        config.model.checkpoint,
        prompt_padding=config.model.prompt_padding,  # type: ignore[arg-type]
    )
    written_with = store.manifest["identity"]["weights"]
    if text.fingerprint != written_with:
        raise StoreError(
            f"stack store '{config.output}' was written with weights {written_with[:12]}..., the checkpoint has "
            f"{text.fingerprint[:12]}...; texts must come from the same model; set model.checkpoint to that one."
        )
    tell_truncated(groups, text)
    return TextReadout(groups, text, normalize=config.stack.normalize)


def project_record(
    record: Record, manifest: dict[str, Any], basis: Basis | None, readout: TextReadout, map_size: int | None
) -> Projection:
    """Return the maps of one stored stack for the texts of a readout."""
    stack = read_stack(record, manifest, basis, normalize=readout.normalize, map_size=map_size)
    directions = readout.directions_at(stack.embedding)
    maps = stack.project(directions)
    if not all(extreme.isfinite() for extreme in maps.aminmax()):  # NaN where any value is, and no copy is made
        raise StoreError(
            f"a map of record {ascii(record.key)} holds NaN or infinity; none is ever written; verify the store, and "
            "see whether the model's numbers leave the range of float32."
        )
    residual = stack.residual(maps, directions)
    info = {
        "names": [group.name for group in readout.groups],
        "logits": readout.logits(stack.embedding)[0].tolist(),
        "residual": None if residual is None else residual[0].tolist(),
        "normalize": readout.normalize,
        **describe_maps(record, manifest, stack, readout),
        **{name: record.info[name] for name in _KEPT if name in record.info},
    }
    return Projection(record.key, maps[0], stack.density, Geometry.from_dict(record.info["geometry"]), info)


def _write(projection: Projection, output: Path) -> None:
    name = member_name(projection.key)
    np.save(output / f"{name}.maps.npy", projection.maps.float().numpy(), allow_pickle=False)
    text = json.dumps({"key": projection.key, **projection.info}, allow_nan=False, indent=2)
    (output / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _require_same_picture(projection: Projection, picture: Picture) -> None:
    """Refuse to draw a map on another picture that happens to have its key.

    Raises:
        ShardError: It is another one.
    """
    explained = projection.info.get("sha256")
    if picture.sha256 != explained:
        raise ShardError(
            f"key {ascii(projection.key)} has a picture of sha256 {picture.sha256[:12]}... in the shards, the store "
            f"explains {str(explained)[:12]}...; a map is drawn on its own picture only; set data.shards to what the "
            "store was made from, or project.pictures=false."
        )


def _draw(projection: Projection, picture: Any, output: Path, manifest: dict[str, Any], slugs: Sequence[str]) -> None:
    maps = projection.geometry.to_original(projection.density * projection.maps).numpy()
    for number, (name, attribution) in enumerate(zip(projection.info["names"], maps, strict=True)):
        figure = overlay_figure(
            picture,
            attribution,
            title=f"{name}: logit {projection.info['logits'][number]:.2f}",
            unit=map_unit(manifest["identity"]["method"]["name"]),
            caption=manifest["note"] or None,
        )
        save(figure, output / f"{member_name(projection.key)}.{number:03d}-{slugs[number]}.png")


def map_unit(method: str) -> str:
    """Return the unit of a method's maps, for colour bars."""
    slopes = ("gradient", "saliency")
    return "logit per unit of brightness" if method in slopes else "logit per pixel"


def slug(name: str) -> str:
    """Turn a name into a part of a file name.

    Example:
        >>> slug("Pleural Effusion 3")
        'pleural-effusion-3'
    """
    words = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in name.lower()).split()
    return "-".join(words)[:60] or "text"
