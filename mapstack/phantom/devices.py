"""Support devices: what treatment leaves on a chest film."""

from dataclasses import replace

import numpy as np

from mapstack.phantom.anatomy import Anatomy
from mapstack.phantom.canvas import Canvas, Field, Points, Stroke, curve, ellipse, mirrored
from mapstack.phantom.findings import Change
from mapstack.phantom.patient import APEX_Y, LEFT, Patient, wall_x


def draw_device(anatomy: Anatomy, generator: np.random.Generator, side: int) -> Change:
    """Place a tracheal tube, a central venous catheter, a pacemaker or a chest tube."""
    kind = str(generator.choice(["tracheal tube", "catheter", "pacemaker", "chest tube"]))
    canvas, patient = anatomy.canvas, anatomy.patient
    if kind == "tracheal tube":
        side, device = 0, _draw_tracheal_tube(canvas, patient, generator)
    elif kind == "catheter":
        device = generator.uniform(0.22, 0.32) * canvas.lines([(_catheter(patient, generator, side), 0.0065, 1.0)])
    elif kind == "pacemaker":
        device = _draw_pacemaker(canvas, patient, generator, side)
    else:
        device = _draw_chest_tube(canvas, patient, generator, side)
    return Change(replace(anatomy, density=anatomy.density + device), side, {}, kind)


def _draw_tracheal_tube(canvas: Canvas, patient: Patient, generator: np.random.Generator) -> Field:
    # The tip lies above the carina (y = -0.13), the other end beyond the film.
    tip = generator.uniform(-0.24, -0.18)
    middle = curve((0.0, -0.9), (0.0, -0.42), (-0.003, tip)) + np.array([0.8 * patient.turned, 0.0])
    walls: list[Stroke] = [(middle + np.array([aside, 0.0]), 0.004, 0.7) for aside in (-0.010, 0.010)]
    return 0.28 * canvas.lines([(middle, 0.021, 0.3), *walls, (middle + np.array([0.004, 0.0]), 0.004, 1.0)])


def _catheter(patient: Patient, generator: np.random.Generator, side: int) -> Points:
    # Down the jugular vein of either side, to the superior vena cava, which lies on the patient's right.
    tip = (-0.058, generator.uniform(-0.10, 0.0))
    neck = side * generator.uniform(0.075, 0.105)
    if side == LEFT:
        course = [(neck + 0.01, -0.9), (neck, -0.38), (0.055, -0.275), (0.0, -0.215), (-0.045, -0.165), tip]
    else:
        course = [(neck - 0.01, -0.9), (neck, -0.38), (-0.062, -0.26), (-0.055, -0.17), tip]
    return curve(*course) + np.array([patient.turned, 0.0])


def _draw_pacemaker(canvas: Canvas, patient: Patient, generator: np.random.Generator, side: int) -> Field:
    x, y = generator.uniform(0.24, 0.29), generator.uniform(-0.22, -0.17)
    wide, high = generator.uniform(0.036, 0.046), generator.uniform(0.028, 0.036)
    # A rounded box.
    box = ellipse((0.0, 0.0), 1.0, 1.0)
    can = mirrored(np.sign(box) * np.abs(box) ** 0.55 * (wide, high) + (x, y), side)
    # The leads run under the clavicle, down the vena cava on the patient's right, and into the heart.
    vein = [(side * (x - wide), y - 0.01), (side * 0.17, -0.235), (side * 0.09, -0.23), (-0.02, -0.20), (-0.055, -0.12)]
    low = 0.7 * patient.breath
    ventricle = curve(*vein, (-0.075, 0.02), (-0.03, 0.12 + low), (0.65 * patient.heart[1], 0.155 + low))
    leads = [ventricle]
    if generator.uniform() < 0.5:
        leads.append(curve(*vein, (-0.085, 0.03), (-0.07, 0.075), (-0.04, 0.05)))
    moved = np.array([patient.turned, 0.0])
    wires: list[Stroke] = [(lead + moved, 0.0055, 1.0) for lead in leads]
    wires += [(lead[-3:] + moved, 0.009, 1.0) for lead in leads]
    return np.maximum(0.55 * canvas.fill([can]), 0.32 * canvas.lines(wires))


def _draw_chest_tube(canvas: Canvas, patient: Patient, generator: np.random.Generator, side: int) -> Field:
    entry, tip = generator.uniform(0.02, 0.12), generator.uniform(APEX_Y + 0.07, -0.18)
    wall = wall_x(patient, entry)
    course = [(wall + 0.16, entry + 0.06), (wall + 0.01, entry - 0.01), (0.8 * wall, entry - 0.10)]
    middle = mirrored(curve(*course, (0.6 * wall, (entry + tip) / 2 - 0.04), (0.19, tip)), side)
    band = [(middle, 0.018, 0.25), (middle + np.array([0.007, 0.0]), 0.0035, 0.7)]
    return 0.30 * canvas.lines([*band, (middle - np.array([0.005, 0.0]), 0.005, 1.0)])
