"""Drawing in the body's own frame: outlines, strokes and soft fields, as arrays of the film's size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from PIL import Image, ImageDraw, ImageFilter

Field = Float32[np.ndarray, "height width"]
Points = Float64[np.ndarray, "_ 2"]
Stroke = tuple[Points, float, float]
"""A line: its course, its width [body unit] and its value [0, 1]."""
Strip = tuple[Points, Points, Sequence[float]]
"""A band: upper and lower edge, equally many points each, and the values between each point and the next [0, 1]."""

# Twice the resolution, then averaged: edges without steps.
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Pose:
    """How the patient stands before the film.

    Args:
        tilt: Turn of the body in the plane of the film, clockwise [rad].
        scale: Film sides per body unit.
        shift: Where the body's origin falls, right and down from the film's centre [shorter sides of the film].
    """

    tilt: float
    scale: float
    shift: tuple[float, float]


class Canvas:
    """A film to draw on.

    The body frame has its origin on the spine at mid-heart level; x grows to the viewer's right, which is the patient's
    left, and y grows down; one unit is the shorter side of a film on which the patient just fits. Points are (x, y).

    Args:
        size: (height, width) [px].
        pose: How the patient stands before it.
    """

    def __init__(self, size: tuple[int, int], pose: Pose) -> None:
        self.size = size
        self._unit_px = min(size) * pose.scale
        self._turn = np.array([[np.cos(pose.tilt), -np.sin(pose.tilt)], [np.sin(pose.tilt), np.cos(pose.tilt)]])
        self._origin = np.array([size[1] / 2, size[0] / 2]) + min(size) * np.array(pose.shift)
        right = (np.arange(size[1])[None, :] + 0.5 - self._origin[0]) / self._unit_px
        down = (np.arange(size[0])[:, None] + 0.5 - self._origin[1]) / self._unit_px
        cos, sin = self._turn[:, 0].tolist()
        self.x: Field = (right * cos).astype(np.float32) + (down * sin).astype(np.float32)
        self.y: Field = (down * cos).astype(np.float32) - (right * sin).astype(np.float32)

    def from_film(self, points: Points) -> Points:
        """Take points given from the film's centre [shorter side of the film] to the body frame."""
        offset = points * min(self.size) + np.array([self.size[1] / 2, self.size[0] / 2]) - self._origin
        return offset @ self._turn / self._unit_px

    def fill(self, outlines: Sequence[Points], blur: float = 0.0) -> Field:
        """Fill closed outlines with 1 on 0.

        Args:
            outlines: Corner points, body frame.
            blur: Standard deviation of a Gaussian that softens the edges [body unit].
        """
        image, draw = self._blank()
        for corners in self._pixels(outlines):
            draw.polygon(corners, fill=255)
        return self._finish(image, blur)

    def strips(self, strips: Sequence[Strip]) -> Field:
        """Fill bands, each with its own course of brightness; a later one covers an earlier one."""
        image, draw = self._blank()
        edges = self._pixels([edge for upper, lower, _ in strips for edge in (upper, lower)])
        for above, below, (_, _, values) in zip(edges[::2], edges[1::2], strips, strict=True):
            for i, value in enumerate(values):
                draw.polygon([above[i], above[i + 1], below[i + 1], below[i]], fill=round(255 * value))
        return self._finish(image, 0.0)

    def lines(self, strokes: Sequence[Stroke], blur: float = 0.0) -> Field:
        """Draw strokes; a later one covers an earlier one.

        Args:
            strokes: What to draw; where it is thinner than what can be drawn, it is drawn fainter instead.
            blur: As in `fill`.
        """
        image, draw = self._blank()
        courses = self._pixels([points for points, _, _ in strokes])
        for course, (_, width, value) in zip(courses, strokes, strict=True):
            width_px = width * self._unit_px * _OVERSAMPLING
            drawn_px = max(1, round(width_px))
            grey = round(255 * value * min(1.0, width_px / drawn_px))
            draw.line(course, fill=grey, width=drawn_px, joint="curve" if drawn_px > 3 else None)
        return self._finish(image, blur)

    def clouds(self, generator: np.random.Generator, grain: float) -> Field:
        """Draw smooth random unevenness of about zero mean and unit spread.

        Args:
            generator: Where the numbers come from; how many depends on the film's proportions only.
            grain: Distance between independent values [shorter side of the film].
        """
        short = min(self.size)
        cells = [max(2, round(side / short / grain) + 1) for side in self.size]
        coarse = Image.fromarray(generator.standard_normal(cells, dtype=np.float32))
        return _resized(coarse, self.size)

    def unsharpen(self, field: Field, blur: float) -> Field:
        """Blur a field by little more than a pixel, at any range of values."""
        sigma = blur * self._unit_px
        reach = max(1, round(2.5 * sigma))
        taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
        taps = (taps / taps.sum()).astype(np.float32)
        for axis, length in enumerate(self.size):
            padded = np.pad(field, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
            shifted = [padded[i : i + length] if axis == 0 else padded[:, i : i + length] for i in range(len(taps))]
            field = taps[0] * shifted[0]
            for tap, part in zip(taps[1:], shifted[1:], strict=True):
                field += tap * part
        return field

    def soften(self, field: Field, blur: float) -> Field:
        """Blur a field of values in [0, 1]; outside the film it goes on as at the edge."""
        # A wide blur needs no full resolution.
        step = max(1, int(blur * self._unit_px / 4))
        image = Image.fromarray((field * 255 + 0.5).astype(np.uint8)).reduce(step)
        image = image.filter(ImageFilter.GaussianBlur(blur * self._unit_px / step))
        # Back to full size as floats, or the eye would see the steps of 8 bits.
        return _resized(Image.fromarray(_to_field(image)), self.size)

    def _blank(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.size[1] * _OVERSAMPLING, self.size[0] * _OVERSAMPLING))
        return image, ImageDraw.Draw(image)

    def _finish(self, image: Image.Image, blur: float) -> Field:
        image = image.reduce(_OVERSAMPLING)
        if blur:
            image = image.filter(ImageFilter.GaussianBlur(blur * self._unit_px))
        return _to_field(image)

    def _pixels(self, courses: Sequence[Points]) -> list[list[tuple[float, float]]]:
        # One product for all of them: there are thousands of vessels.
        if not courses:
            return []
        film = (np.concatenate(courses) @ self._turn.T * self._unit_px + self._origin) * _OVERSAMPLING - 0.5
        pixels = [(x, y) for x, y in film.tolist()]
        ends = np.cumsum([len(course) for course in courses]).tolist()
        return [pixels[end - len(course) : end] for course, end in zip(courses, ends, strict=True)]


def curve(*points: Sequence[float], closed: bool = False, n_between: int = 8) -> Points:
    """Lay a smooth curve (Catmull-Rom) through points, `n_between` steps from each to the next.

    Example:
        >>> curve((0, 0), (1, 1), n_between=2).tolist()
        [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    """
    knots = np.array(points, dtype=np.float64)
    around = np.vstack([knots[-1:], knots, knots[:2]] if closed else [knots[:1], knots, knots[-1:]])
    t = np.linspace(0, 1, n_between, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (around[i : len(around) - 3 + i, None] for i in range(4))
    pieces = (
        p1 + (p2 - p0) / 2 * t + (p0 - 2.5 * p1 + 2 * p2 - p3 / 2) * t**2 + (1.5 * (p1 - p2) + (p3 - p0) / 2) * t**3
    )
    smooth = pieces.reshape(-1, 2)
    return smooth if closed else np.vstack([smooth, knots[-1:]])


def ellipse(centre: tuple[float, float], half_width: float, half_height: float) -> Points:
    """Return an ellipse that ends where it began."""
    around = np.linspace(0, 2 * np.pi, 33)
    return np.stack([centre[0] + half_width * np.cos(around), centre[1] + half_height * np.sin(around)], axis=1)


def mirrored(points: Points, side: int) -> Points:
    """Put a curve that is given for the patient's left onto a side: 1 leaves it, -1 mirrors it."""
    return points * np.array([side, 1.0])


def _resized(image: Image.Image, size: tuple[int, int]) -> Field:
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _to_field(image: Image.Image) -> Field:
    return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
