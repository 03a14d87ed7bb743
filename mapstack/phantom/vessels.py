"""The lung vessels: trees that fan out from the hila."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from mapstack.phantom.canvas import Stroke
from mapstack.phantom.patient import LEFT, RIGHT, Patient

Paths = Float64[np.ndarray, "n_branches n_points 2"]
Numbers = Float64[np.ndarray, " n_branches"]

# What takes a tree that is grown for the patient's left to its side: a factor and a shift.
Place = tuple[Float64[np.ndarray, "2"], Float64[np.ndarray, "2"]]

_N_STEPS = 6
_N_FINE = 130
# How much of its width a branch has left at each step.
_TAPER = 1 - 0.7 * np.arange(_N_STEPS + 1) / _N_STEPS
# Directions of the main branches from the hilum, from the apex to the base [rad below the horizontal].
_MAIN = np.array([-1.45, -1.2, -0.95, -0.65, -0.35, -0.1, 0.15, 0.4, 0.65, 0.85, 1.05, 1.25, 1.45])
# For each generation, how many children a branch has and at how many steps its width changes.
_GENERATIONS = ((7, 1), (3, 3), (0, 6))


def draw_vessels(generator: np.random.Generator, patient: Patient) -> list[Stroke]:
    """Draw the vessels of both lungs, the wide ones last, so that they cover the others."""
    strokes: list[Stroke] = []
    for side in (RIGHT, LEFT):
        place = np.array([side, 1.0]), np.array([patient.turned, 0.0])
        strokes += [*_draw_fine(generator, place), *_draw_tree(generator, side, place)]
    return sorted(strokes, key=lambda stroke: stroke[1])


def _draw_tree(generator: np.random.Generator, side: int, place: Place) -> Iterator[Stroke]:
    start, angle, width, length = _draw_roots(generator, side)
    for n_children, n_even in _GENERATIONS:
        paths, turns = _grow(generator, start, angle, length)
        for path, wide in zip(paths * place[0] + place[1], width.tolist(), strict=True):
            for i in range(0, _N_STEPS, n_even):
                tapered = wide * float(_TAPER[i])
                yield path[i : i + n_even + 1], tapered, min(1.0, tapered / 0.011)
        at = generator.integers(1, _N_STEPS + 1, (len(start), n_children))
        parent = np.arange(len(start))[:, None]
        forks = generator.choice([-1.0, 1.0], at.shape) * generator.uniform(0.3, 0.9, at.shape)
        start = paths[parent, at].reshape(-1, 2)
        angle = (turns[parent, at] + forks).ravel()
        width = (width[:, None] * _TAPER[at] * generator.uniform(0.5, 0.8, at.shape)).ravel()
        length = (length[:, None] * generator.uniform(0.3, 0.6, at.shape)).ravel()


def _draw_roots(
    generator: np.random.Generator, side: int
) -> tuple[Float64[np.ndarray, "n_branches 2"], Numbers, Numbers, Numbers]:
    n = len(_MAIN)
    # The left hilum stands a little higher than the right.
    hilum_y = -0.035 - 0.02 * (side == LEFT)
    start = np.stack([generator.uniform(0.075, 0.11, n), hilum_y + 0.06 * np.sin(_MAIN)], axis=1)
    start += generator.normal(0, 0.012, (n, 2))
    angle = _MAIN + generator.normal(0, 0.12, n)
    # Blood sinks: the lower vessels of a standing patient are wider.
    width = generator.uniform(0.007, 0.011, n) * (1 + 0.25 * np.sin(_MAIN))
    length = generator.uniform(0.16, 0.28, n) * (1 - 0.15 * np.abs(np.sin(_MAIN)))
    return start, angle, width, length


def _draw_fine(generator: np.random.Generator, place: Place) -> Iterator[Stroke]:
    # The many vessels too thin to be followed back to the hilum.
    start = np.stack([generator.uniform(0.08, 0.36, _N_FINE), generator.uniform(-0.33, 0.24, _N_FINE)], axis=1)
    angle = np.arctan2(start[:, 1] + 0.03, start[:, 0] - 0.05) + generator.normal(0, 0.5, _N_FINE)
    paths, _ = _grow(generator, start, angle, generator.uniform(0.03, 0.09, _N_FINE))
    for path, value in zip(paths * place[0] + place[1], generator.uniform(0.2, 0.6, _N_FINE).tolist(), strict=True):
        yield path, 0.0022, value


def _grow(
    generator: np.random.Generator, start: Float64[np.ndarray, "n_branches 2"], angle: Numbers, length: Numbers
) -> tuple[Paths, Float64[np.ndarray, "n_branches n_points"]]:
    bends = np.cumsum(generator.normal(0, 0.2, (len(start), _N_STEPS + 1)), axis=1)
    turns = angle[:, None] + bends
    steps = (length / _N_STEPS)[:, None, None] * np.stack([np.cos(turns), np.sin(turns)], axis=-1)[:, :-1]
    return np.concatenate([start[:, None], start[:, None] + np.cumsum(steps, axis=1)], axis=1), turns
