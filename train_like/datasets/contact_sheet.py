"""The contact sheet: 24 samples of a dataset with their labels, boxes and masks, to look at before anything is run."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mapstack.errors import ImageError
from mapstack.store.disk import write_atomic
from train_like.datasets.loading import Loaded, Rules, load_sample, thumbnail
from train_like.datasets.rows import Row

FILE = "contact_sheet.png"
N_SAMPLES = 24

_N_COLUMNS = 6
_SIDE, _CAPTION, _GAP = 256, 78, 8  # px
_LINE, _FONT = 15, 12  # px
_BACKGROUND, _TEXT, _DIM = (24, 24, 28), (235, 235, 235), (150, 150, 155)
_COLOURS = ((255, 110, 80), (90, 190, 255), (255, 205, 70), (150, 230, 120), (230, 130, 255), (255, 150, 190))
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
    chosen += _evenly([row for row in rows if row not in chosen], N_SAMPLES - len(chosen))
    n_lines = -(-len(chosen) // _N_COLUMNS)
    sheet = Image.new(
        "RGB", (_N_COLUMNS * (_SIDE + _GAP) + _GAP, n_lines * (_SIDE + _CAPTION + _GAP) + _GAP), _BACKGROUND
    )
    for number, row in enumerate(chosen):
        line, column = divmod(number, _N_COLUMNS)
        _draw(sheet, load_sample(row, rules), _GAP + column * (_SIDE + _GAP), _GAP + line * (_SIDE + _CAPTION + _GAP))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    write_atomic(folder / FILE, file.getvalue())


def _evenly(rows: Sequence[Row], n: int) -> list[Row]:
    n = min(n, len(rows))
    return [rows[number * len(rows) // n] for number in range(n)]


def _draw(sheet: Image.Image, loaded: Loaded, left: int, top: int) -> None:
    try:
        picture, scale = thumbnail(loaded.sample, _SIDE)
    except ImageError:
        # Its header was sound; `extract` will name it.
        pen = ImageDraw.Draw(sheet)
        pen.text((left, top), f"{loaded.sample.key}:\ncannot be decoded", _COLOURS[0], ImageFont.load_default(_FONT))
        return
    findings = [finding for finding in loaded.sample.info.get("findings", ()) if "box" in finding]
    names = list(dict.fromkeys([*loaded.sample.masks, *(finding["label"] for finding in findings)]))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    for name, mask in loaded.sample.masks.items():
        picture = _tinted(picture, mask, colours[name])
    pen = ImageDraw.Draw(picture)
    for finding in findings:
        row0, column0, row1, column1 = (edge * scale for edge in finding["box"])
        pen.rectangle(
            (column0, row0, max(column1 - 1, column0), max(row1 - 1, row0)), outline=colours[finding["label"]]
        )
    sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
    _write_caption(ImageDraw.Draw(sheet), loaded, colours, left, top + _SIDE + 3)


def _tinted(picture: Image.Image, mask: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    small = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    pixels = np.array(picture).astype(np.float32)
    pixels[small] = (1 - _MASK_SHARE) * pixels[small] + _MASK_SHARE * np.array(colour, np.float32)
    return Image.fromarray(pixels.astype(np.uint8))


def _write_caption(
    pen: ImageDraw.ImageDraw, loaded: Loaded, colours: dict[str, tuple[int, int, int]], left: int, top: int
) -> None:
    font = ImageFont.load_default(_FONT)
    info = loaded.sample.info
    where = " ".join(str(info[name]) for name in ("split", "view") if name in info)
    lines = [(loaded.sample.key, _TEXT), (f"{loaded.size[0]} x {loaded.size[1]} px  {where}".strip(), _DIM)]
    shown = list(dict.fromkeys([*info["labels"], *colours]))
    lines += [(name, colours.get(name, _TEXT)) for name in shown[:3]]
    if len(shown) > 3:
        lines[-1] = (f"{shown[2]} and {len(shown) - 3} more", lines[-1][1])
    for number, (text, colour) in enumerate(lines):
        while text and pen.textlength(text, font) > _SIDE:
            text = text[:-2]
        pen.text((left, top + number * _LINE), text, colour, font)
