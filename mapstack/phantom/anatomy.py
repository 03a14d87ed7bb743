"""The normal chest: how much each part weakens the beam, summed over the depth of the body."""

from dataclasses import dataclass, replace

import numpy as np

from mapstack.phantom.bones import draw_bones
from mapstack.phantom.canvas import Canvas, Field, curve, ellipse, mirrored
from mapstack.phantom.patient import (
    LEFT,
    RIGHT,
    Patient,
    diaphragm,
    dome_y,
    heart_outline,
    lung_outline,
    mediastinum_outlines,
    trunk_outlines,
)
from mapstack.phantom.vessels import draw_vessels

# The part of the lungs' depth that heart and great vessels take.
SHARE_COVERED = 0.88
# What the X-ray tube's focus and the detector blur [body unit].
UNSHARPNESS = 0.002


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A chest before the tone curve.

    Args:
        canvas: The film.
        patient: The patient.
        density: Weakening of the beam by everything; 0 is free air.
        thorax: For each side, 1 inside the rib cage above the diaphragm, from the wall to the spine.
        depth: Density that the air of the lungs takes away where nothing lies before them.
        covered: Share of that depth which heart and great vessels take [0, 1].
        heart: 1 inside the heart's silhouette.
        vessels: Density of the lung vessels.
    """

    canvas: Canvas
    patient: Patient
    density: Field
    thorax: dict[int, Field]
    depth: Field
    covered: Field
    heart: Field
    vessels: Field

    @property
    def air(self) -> Field:
        """Density that the air of the lungs takes away."""
        return self.depth * (1 - self.covered)

    def with_heart(self, patient: Patient) -> "Anatomy":
        """Return the chest with the heart of `patient`, who differs in nothing else and has a larger one."""
        heart = _draw_heart(self.canvas, patient, np.maximum(self.thorax[RIGHT], self.thorax[LEFT]))
        covered = np.maximum(self.covered, SHARE_COVERED * heart)
        # A heart that is wider is deeper, too.
        change = (self.depth - 0.85 * self.vessels) * (covered - self.covered) + _bulk(self.canvas, heart)
        change += 0.06 * heart - _bulk(self.canvas, self.heart)
        return replace(self, patient=patient, density=self.density + change, covered=covered, heart=heart)


def draw_anatomy(canvas: Canvas, patient: Patient, generator: np.random.Generator) -> Anatomy:
    """Draw a normal chest."""
    thorax = {side: canvas.fill([lung_outline(patient, side)]) for side in (RIGHT, LEFT)}
    lungs = np.maximum(thorax[RIGHT], thorax[LEFT])
    heart = _draw_heart(canvas, patient, lungs)
    covered = SHARE_COVERED * np.maximum(heart, canvas.fill(mediastinum_outlines(patient), blur=0.004))
    uneven = 0.6 * canvas.clouds(generator, 0.12) + 0.4 * canvas.clouds(generator, 0.035)
    inside = np.clip(2 * canvas.soften(lungs, 0.05) - 1, 0, 1)
    depth = lungs * (0.215 + 0.285 * inside) * (1 + 0.06 * uneven)
    vessels = 0.16 * canvas.lines(draw_vessels(generator, patient)) * lungs * (1 - 0.85 * covered)
    vessels = canvas.unsharpen(vessels, UNSHARPNESS)
    density = _draw_soft_tissue(canvas, patient, generator) + draw_bones(canvas, patient, generator)
    density += _bulk(canvas, heart) + _draw_hila(canvas, patient) + _draw_abdomen(canvas, patient, generator)
    density -= depth * (1 - covered) + _draw_airway(canvas, patient)
    density = canvas.unsharpen(density, UNSHARPNESS) + vessels
    return Anatomy(canvas, patient, density, thorax, depth, covered, heart, vessels)


def _draw_heart(canvas: Canvas, patient: Patient, above_diaphragm: Field) -> Field:
    # The beat blurs its border.
    return canvas.fill([heart_outline(patient)], blur=0.005) * above_diaphragm


def _bulk(canvas: Canvas, heart: Field) -> Field:
    return 0.07 * heart * canvas.soften(heart, 0.04)


def _draw_soft_tissue(canvas: Canvas, patient: Patient, generator: np.random.Generator) -> Field:
    body = canvas.fill(trunk_outlines(patient), blur=0.006)
    thick = 0.245 + 0.05 * patient.build + 0.27 * canvas.soften(body, 0.05)
    # The trunk is deepest in the middle and towards the abdomen.
    middle = np.exp(-((canvas.x / 0.33) ** 2)) * np.clip(0.75 + 0.8 * canvas.y, 0.25, 1.2)
    thick += (0.20 + 0.04 * patient.build) * middle
    thick += 0.016 * canvas.clouds(generator, 0.15) + 0.004 * canvas.clouds(generator, 0.03)
    return body * thick + patient.breasts * _draw_breasts(canvas, patient)


def _draw_breasts(canvas: Canvas, patient: Patient) -> Field:
    oval = ellipse((0.25, 0.09), 0.17, 0.15 + 0.05 * patient.build)
    shadows = canvas.fill([mirrored(oval, side) for side in (RIGHT, LEFT)], blur=0.008)
    return 0.13 * shadows * np.clip(0.45 + 2.2 * canvas.y, 0, 1)


def _draw_abdomen(canvas: Canvas, patient: Patient, generator: np.random.Generator) -> Field:
    below = []
    for side in (RIGHT, LEFT):
        roof = diaphragm(patient, side)
        x, y = roof[0]
        around = [(roof[-1, 0], 0.9), (x + 0.05, 0.9), (x + 0.03, y + 0.2), (x + 0.015, y + 0.06)]
        below.append(mirrored(np.vstack([roof, around]), side))
    # Over the spine the beam is weak already, and the edge of the abdomen is lost there.
    belly = canvas.fill(below) * (1 - 0.6 * np.exp(-((canvas.x / 0.09) ** 2)))
    weight = (0.18 + 0.10 * canvas.soften(belly, 0.06)) * (1 + 0.15 * patient.build)
    return belly * (weight - _draw_gas(canvas, patient, generator))


def _draw_gas(canvas: Canvas, patient: Patient, generator: np.random.Generator) -> Field:
    # The stomach's bubble lies under the left dome, flat below where it meets the fluid.
    level = dome_y(patient, LEFT) + generator.uniform(0.045, 0.085)
    x, wide = generator.uniform(0.15, 0.22), generator.uniform(0.035, 0.07)
    high = level - dome_y(patient, LEFT) - 0.018
    bubble = curve(*[(x - wide * np.cos(t), level - high * np.sin(t)) for t in np.linspace(0, np.pi, 7)])
    bowel = []
    for _ in range(int(generator.integers(0, 5))):
        centre = np.array([generator.uniform(-0.25, 0.25), generator.uniform(0.33, 0.45)])
        shape = ellipse((0.0, 0.0), 1.4, 1.0)[:-1:4] * generator.uniform(0.012, 0.032, (8, 1))
        bowel.append(curve(*(shape + centre).tolist(), closed=True))
    return generator.uniform(0.0, 0.2) * canvas.fill([bubble], blur=0.004) + 0.10 * canvas.fill(bowel, blur=0.006)


def _draw_hila(canvas: Canvas, patient: Patient) -> Field:
    right = [(-0.07, -0.06), (-0.115, -0.035), (-0.14, 0.02), (-0.135, 0.075), (-0.115, 0.06), (-0.08, 0.0)]
    left = [(0.07, -0.09), (0.115, -0.075), (0.145, -0.03), (0.14, 0.03), (0.12, 0.02), (0.08, -0.02)]
    moved = np.array([patient.turned, 0.0])
    return 0.10 * canvas.fill([curve(*shape, closed=True) + moved for shape in (right, left)], blur=0.012)


def _draw_airway(canvas: Canvas, patient: Patient) -> Field:
    trachea = curve((0.0, -0.9), (0.0, -0.42), (-0.003, -0.25), (-0.008, -0.125))
    right = curve((-0.012, -0.135), (-0.045, -0.085), (-0.085, -0.045))
    left = curve((-0.004, -0.135), (0.045, -0.095), (0.1, -0.07))
    moved = np.array([0.8 * patient.turned, 0.0])
    return 0.13 * canvas.lines([(trachea + moved, 0.032, 1.0), (right + moved, 0.02, 0.6), (left + moved, 0.017, 0.6)])
