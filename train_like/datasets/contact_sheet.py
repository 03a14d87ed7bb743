"""The contact sheet: 24 samples of a dataset with their labels, boxes and masks, to look at before anything is run."""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mapstack.errors import ImageError
from mapstack.store.disk import write_atomic
from train_like.datasets.loading import Loaded, Rules, load_sample, thumbnail
from train_like.datasets.rows import Row

FILE = "contact_sheet.png"
N_SAMPLES = 24

_N_THREADS = 4
_PNG_LEVEL = 1  # pictures hardly shrink further
_N_COLUMNS = 6
_SIDE, _CAPTION, _GAP = 256, 78, 8  # px
_LINE, _FONT = 15, 12  # px
_N_LABELS = 3
_Colour = tuple[int, int, int]
_BACKGROUND, _TEXT, _DIM, _WRONG = (24, 24, 28), (235, 235, 235), (150, 150, 155), (255, 90, 90)
_COLOURS = (
    (255, 110, 80),
    (90, 190, 255),
    (255, 205, 70),
    (150, 230, 120),
    (230, 130, 255),
    (255, 150, 190),
    (80, 225, 205),
    (190, 150, 255),
    (220, 165, 100),
    (205, 215, 90),
)
_MASK_SHARE = 0.35


def write_contact_sheet(folder: Path, rows: Sequence[Row], rules: Rules) -> None:
    """Draw samples that lie evenly over the dataset; those with boxes or masks come first.

    Args:
        folder: Where contact_sheet.png goes.
        rows: Whose samples were written, in their order.
        rules: How they were read.
    """
    told = [row for row in rows if row.findings or row.masks]
    chosen = _evenly(told, N_SAMPLES)
    ids = {row.id for row in chosen}
    chosen += _evenly([row for row in rows if row.id not in ids], N_SAMPLES - len(chosen))
    n_lines = -(-len(chosen) // _N_COLUMNS)
    sheet = Image.new(
        "RGB", (_N_COLUMNS * (_SIDE + _GAP) + _GAP, n_lines * (_SIDE + _CAPTION + _GAP) + _GAP), _BACKGROUND
    )
    with ThreadPoolExecutor(_N_THREADS) as pool:  # Pillow decodes and reduces without Python's lock
        opened = list(pool.map(partial(_open, rules=rules), chosen))
    names = sorted({name for loaded, *_ in opened for name in _drawn(loaded)})
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    for number, (loaded, picture, scale) in enumerate(opened):
        line, column = divmod(number, _N_COLUMNS)
        left, top = _GAP + column * (_SIDE + _GAP), _GAP + line * (_SIDE + _CAPTION + _GAP)
        if picture is not None:
            _draw(picture, loaded, scale, colours)
            sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
        _write_caption(ImageDraw.Draw(sheet), loaded, colours, picture is not None, left, top + _SIDE + 3)
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=_PNG_LEVEL)
    write_atomic(folder / FILE, file.getvalue())


def _evenly(rows: Sequence[Row], n: int) -> list[Row]:
    n = min(n, len(rows))
    return [rows[number * len(rows) // n] for number in range(n)]


def _open(row: Row, rules: Rules) -> tuple[Loaded, Image.Image | None, float]:
    """Read a sample and make its picture small; None for one that cannot be decoded."""
    loaded = load_sample(row, rules)
    try:
        return loaded, *thumbnail(loaded.sample, _SIDE)
    except ImageError:
        return loaded, None, 1.0


def _drawn(loaded: Loaded) -> list[str]:
    """Name what has a mask or a box."""
    return [*loaded.sample.masks, *(finding["label"] for finding in _boxed(loaded))]


def _boxed(loaded: Loaded) -> list[dict[str, Any]]:
    return [finding for finding in loaded.sample.info.get("findings", ()) if "box" in finding]


def _draw(picture: Image.Image, loaded: Loaded, scale: float, colours: Mapping[str, _Colour]) -> None:
    """Draw masks and boxes onto the small picture of a sample."""
    for name, mask in loaded.sample.masks.items():
        picture.paste(_tinted(picture, mask, colours[name]))
    pen = ImageDraw.Draw(picture)
    for finding in _boxed(loaded):
        row0, column0, row1, column1 = (edge * scale for edge in finding["box"])
        pen.rectangle(
            (column0, row0, max(column1 - 1, column0), max(row1 - 1, row0)), outline=colours[finding["label"]]
        )


def _tinted(picture: Image.Image, mask: np.ndarray, colour: _Colour) -> Image.Image:
    small = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    pixels = np.array(picture).astype(np.float32)
    pixels[small] = (1 - _MASK_SHARE) * pixels[small] + _MASK_SHARE * np.array(colour, np.float32)
    return Image.fromarray(pixels.astype(np.uint8))


def _write_caption(
    pen: ImageDraw.ImageDraw, loaded: Loaded, colours: Mapping[str, _Colour], is_decoded: bool, left: int, top: int
) -> None:
    font = ImageFont.load_default(_FONT)
    for number, (text, colour) in enumerate(_caption(loaded, colours, is_decoded)):
        shown = text
        while len(shown) > 1 and pen.textlength(shown, font) > _SIDE:
            shown = f"{shown[:-2]}…"
        pen.text((left, top + number * _LINE), shown, colour, font)


def _caption(loaded: Loaded, colours: Mapping[str, _Colour], is_decoded: bool) -> list[tuple[str, _Colour]]:
    """Say what a sample is, a line each: its labels have the colour of what is drawn, and their sentence follows."""
    info = loaded.sample.info
    where = " ".join(str(info[name]) for name in ("split", "view") if name in info)
    lines = [(loaded.sample.key, _TEXT), (f"{loaded.size[0]} x {loaded.size[1]} px  {where}".strip(), _DIM)]
    if not is_decoded:  # its header was sound; `extract` will name it
        return [*lines, ("cannot be decoded", _WRONG)]
    drawn = _drawn(loaded)
    prompts = {finding["label"]: finding["prompt"] for finding in info.get("findings", ()) if "prompt" in finding}
    labels = list(dict.fromkeys([*info["labels"], *drawn]))
    for label in labels[:_N_LABELS]:
        text = f"{label}: {prompts[label]}" if label in prompts else label
        lines.append((text, colours[label] if label in drawn else _TEXT))
    if len(labels) > _N_LABELS:
        lines[-1] = (f"{labels[_N_LABELS - 1]} and {len(labels) - _N_LABELS} more", lines[-1][1])
    return lines
