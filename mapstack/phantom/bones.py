"""The bones on the film: ribs, clavicles, scapulae, upper arms and spine."""

import numpy as np
from jaxtyping import Float64

from mapstack.phantom.canvas import Canvas, Field, Points, Strip, Stroke, curve, ellipse, mirrored
from mapstack.phantom.patient import LEFT, RIGHT, Patient, base_y, wall_x

Angles = Float64[np.ndarray, " n_angles"]

_N_RIBS = 10
_RIB_SPACING = 0.062


def draw_bones(canvas: Canvas, patient: Patient, generator: np.random.Generator) -> Field:
    """Draw all bones as density."""
    ribs = _draw_ribs(canvas, patient, generator)
    # The belly lets little through, and what passes is scattered: the ribs pale below the diaphragm.
    ribs *= 0.55 + 0.45 / (1 + np.exp(np.clip((canvas.y - 0.21 - patient.breath) / 0.02, -20, 20)))
    clavicles, blades = _draw_clavicles(canvas, patient), _draw_blades(canvas, patient)
    return patient.bone * (ribs + clavicles + blades + _draw_spine(canvas))


def _draw_ribs(canvas: Canvas, patient: Patient, generator: np.random.Generator) -> Field:
    behind = np.linspace(0.05, 0.53 * np.pi, 19)
    before = np.linspace(0.49 * np.pi, 0.83 * np.pi, 13)
    # A beam that meets the rib along its length, at the side wall, passes through more bone; near the spine the rib is
    # lost in what lies before it.
    course = np.clip(behind[:-1] / 0.45, 0.35, 1.0) * (0.45 + 0.3 * np.sin(behind[:-1]) ** 10)
    # In front the rib ends in cartilage, which is not seen.
    fading = np.clip(0.55 - 0.45 * (before[:-1] - np.pi / 2) / (0.33 * np.pi), 0.0, 1.0)
    back: list[Strip] = []
    front: list[Strip] = []
    edges: list[Stroke] = []
    for side in (RIGHT, LEFT):
        for number, wobble in enumerate(generator.normal(0, 0.003, _N_RIBS).tolist()):
            upper, lower = _thicken(_rib(patient, number, side, behind, wobble), 0.021 + 0.003 * np.sin(behind))
            back.append((upper, lower, course.tolist()))
            edges += [(upper[2:], 0.0035, 0.6), (lower[2:], 0.0035, 1.0)]
            widening = np.linspace(0.022, 0.031, len(before))
            upper, lower = _thicken(_rib(patient, number, side, before, wobble), widening)
            front.append((upper, lower, fading.tolist()))
    cortex = 0.065 * canvas.lines(edges) + 0.08 * _draw_wall(canvas, patient)
    return 0.125 * canvas.strips(back) + 0.11 * canvas.strips(front) + cortex


def _rib(patient: Patient, number: int, side: int, angles: Angles, wobble: float) -> Points:
    # An ellipse seen from behind: from the spine (0) to the side wall (pi / 2) and on, down and inwards, in front.
    head = -0.345 + _RIB_SPACING * number * (1 + 0.4 * patient.breath) + wobble
    drop = 0.07 + 0.012 * number
    x = 0.03 + (wall_x(patient, head + drop) - 0.033) * np.sin(angles)
    steepness = np.where(angles < np.pi / 2, 1.0, 0.8 + 0.05 * number)
    y = head + drop * (1 - np.cos(angles) * steepness) - 0.016 * np.sin(2 * angles)
    return mirrored(np.stack([x, y], axis=1), side)


def _thicken(middle: Points, width: Angles) -> tuple[Points, Points]:
    along = np.gradient(middle, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    across *= (width / 2 / np.maximum(np.linalg.norm(across, axis=1), 1e-9))[:, None]
    return middle - across, middle + across


def _draw_wall(canvas: Canvas, patient: Patient) -> Field:
    # The ribs, one behind the other along the beam, run together to a bright line.
    wall = np.array([[wall_x(patient, y) + 0.010, y] for y in np.linspace(-0.30, base_y(patient) + 0.01, 17)])
    return canvas.lines([(mirrored(wall, side), 0.012, 1.0) for side in (RIGHT, LEFT)])


def _draw_clavicles(canvas: Canvas, patient: Patient) -> Field:
    rise = patient.clavicle
    middle = [(0.028, -0.225), (0.09, -0.245), (0.17, -0.25 - 0.45 * rise)]
    middle += [(0.27, -0.25 - 0.9 * rise), (0.36, -0.245 - rise), (0.43, -0.235 - rise)]
    bones: list[Strip] = []
    edges: list[Stroke] = []
    for side in (RIGHT, LEFT):
        course = mirrored(curve(*middle), side) + np.array([0.8 * patient.turned, 0.0])
        width = np.interp(np.linspace(0, 1, len(course)), [0, 0.12, 0.5, 1], [0.034, 0.026, 0.022, 0.027])
        upper, lower = _thicken(course, width)
        bones.append((upper, lower, [0.8] * (len(course) - 1)))
        edges += [(upper, 0.0035, 0.8), (lower, 0.0035, 0.8)]
    return 0.13 * canvas.strips(bones) + 0.07 * canvas.lines(edges)


def _draw_blades(canvas: Canvas, patient: Patient) -> Field:
    top = -0.27 - 0.6 * patient.clavicle
    upper = [(0.29, top + 0.02), (0.39, top - 0.01), (0.405, top + 0.05), (0.385, top + 0.10), (0.40, 0.0)]
    blade = curve(*upper, (0.405, 0.09), (0.38, 0.05), (0.345, -0.08), (0.31, -0.18), closed=True)
    ball = ellipse((0.452, top + 0.035), 0.05, 0.052)
    shaft = np.array([(0.425, top + 0.075), (0.49, top + 0.05), (0.60, 0.2), (0.54, 0.22)])
    bones = [mirrored(bone, side) for side in (RIGHT, LEFT) for bone in (blade, ball, shaft)]
    rims = [(mirrored(bone, side), 0.0045, 0.75) for side in (RIGHT, LEFT) for bone in (blade, ball)]
    return 0.06 * canvas.fill(bones) + 0.08 * canvas.lines(rims)


def _draw_spine(canvas: Canvas) -> Field:
    bodies: list[Points] = []
    rims: list[Stroke] = []
    arches: list[Stroke] = []
    quarter = [(1.0, 0.0), (0.9, 0.5), (1.0, 1.0)]
    box = curve(*quarter, *[(-x, y) for x, y in reversed(quarter)], closed=True, n_between=3)
    y = -0.9
    while y < 0.9:
        height, half = 0.057 + 0.018 * y, 0.039 + 0.012 * y
        bodies.append(box * (half, height) + (0.0, y))
        rims.append((bodies[-1], 0.004, 0.7))
        arches.append((ellipse((0.0, y + 0.7 * height), 0.006, 0.3 * height), 0.005, 1.0))
        pedicle = np.array([(0.62 * half, y + 0.2 * height), (0.62 * half, y + 0.5 * height)])
        arches += [(mirrored(pedicle, side), 0.009, 0.6) for side in (RIGHT, LEFT)]
        y += 1.16 * height
    return 0.06 * canvas.fill(bodies) + 0.03 * canvas.lines(rims) + 0.03 * canvas.lines(arches)
