"""What the tests of pictures look at in a drawn figure."""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

HEIGHT, WIDTH = 24, 30
SENTENCE = "Moderate right ventricular enlargement with a rounded, upturned cardiac apex on the left."


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image).astype(int)


def drawn(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def image_axes(figure: Figure) -> list[Any]:
    """The axes of the pictures: those of colour bars keep their frame."""
    return [axes for axes in figure.axes if not axes.axison]


def bars(figure: Figure) -> list[Any]:
    return [axes for axes in figure.axes if axes.axison]


def raster(axes: Any) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def region(figure: Figure, axes: Any) -> np.ndarray:
    """The drawn pixels of some axes, a margin of two left out."""
    box = axes.get_window_extent()
    rendered = drawn(figure)
    top, bottom = len(rendered) - round(box.y1), len(rendered) - round(box.y0)
    return rendered[top + 2 : bottom - 2, round(box.x0) + 2 : round(box.x1) - 2]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def tick_labels(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


# The raster


def assert_tidy(figure: Figure) -> None:
    """No text leaves the page, and none lies on another or on a picture."""
    drawn(figure)
    page = figure.bbox
    extents = [(text.get_text(), text.get_window_extent()) for text in figure.texts if text.get_text()]
    extents += [
        (label.get_text(), label.get_window_extent()) for axes in bars(figure) for label in axes.get_yticklabels()
    ]
    panels = [axes.get_window_extent() for axes in image_axes(figure)]
    for position, (words, box) in enumerate(extents):
        assert box.x0 >= page.x0, words
        assert box.x1 <= page.x1, words
        assert box.y0 >= page.y0, words
        assert box.y1 <= page.y1, words
        for other, other_box in extents[position + 1 :]:
            assert not overlap(box, other_box), (words, other)
        for panel in panels:
            assert not overlap(box, panel), words


def overlap(one: Any, other: Any) -> bool:
    # Lines of a block touch by the width of a descender: half a point is no overlap.
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(wide > 1 and high > 3)
