"""Who is on the film: the numbers that differ between patients, and the outlines that follow from them."""

from dataclasses import dataclass

import numpy as np

from mapstack.phantom.canvas import Points, Pose, curve, ellipse, mirrored

LEFT, RIGHT = 1, -1
"""The patient's sides as the sign of x: the patient's left is on the viewer's right."""

APEX_Y = -0.362
"""Height of the top of the lungs."""

# The inside of the rib cage below the apex: heights, and distances from the spine as shares of its width at the base.
_WALL_Y = (-0.29, -0.18, -0.05, 0.08, 0.2)
_WALL_X = (0.70, 0.84, 0.92, 0.97, 0.995)

# The two halves of the chest overlap a little, so that no seam shows between them.
_OVERLAP_X = -0.012


@dataclass(frozen=True)
class Patient:
    """One patient and one exposure; lengths in the body's frame (see `Canvas`).

    Args:
        pose: Position before the film.
        build: 0 slim to 1 heavy.
        chest: Half the inner width of the rib cage at its base.
        breath: How far the diaphragm lies below its usual height.
        dome_gap: How much higher the right dome is than the left.
        turned: Shift of the mediastinum against the spine by a turned trunk; positive to the viewer's right.
        heart: How far the heart reaches from the spine to the viewer's left and right.
        knob: Size of the aortic knob, 1 for the usual.
        breasts: Weight of the breast shadows, 0 for none.
        axilla: Heights of the right and the left armpit.
        arm: How far the arms stand off.
        clavicle: Rise of the clavicles from the middle to the shoulder.
        bone: Weight of all bone, 1 for the usual.
        haze: Scattered radiation [opacity].
        exposure: Factor on all densities; above 1 the film is brighter.
        contrast: Steepness of the film.
        grain: Standard deviation of the film noise [density].
        marker: Whether the side marker lies on the film.
    """

    pose: Pose
    build: float
    chest: float
    breath: float
    dome_gap: float
    turned: float
    heart: tuple[float, float]
    knob: float
    breasts: float
    axilla: tuple[float, float]
    arm: float
    clavicle: float
    bone: float
    haze: float
    exposure: float
    contrast: float
    grain: float
    marker: bool

    @property
    def cardiothoracic_ratio(self) -> float:
        """Width of the heart over the inner width of the chest; above 0.5 the heart is enlarged."""
        return sum(self.heart) / (2 * self.chest)


def draw_patient(generator: np.random.Generator) -> Patient:
    """Draw one patient with a heart of normal size."""
    between = generator.uniform
    build = float(generator.beta(2, 2))
    chest = between(0.37, 0.405)
    heart_right = between(0.095, 0.12)
    heart_left = 2 * chest * between(0.41, 0.48) - heart_right
    return Patient(
        pose=_draw_pose(generator),
        build=build,
        chest=chest,
        breath=between(-0.05, 0.03) - 0.02 * build,
        dome_gap=between(0.015, 0.04),
        turned=float(np.clip(generator.normal(0, 0.008), -0.018, 0.018)),
        heart=(heart_right, heart_left),
        knob=between(0.8, 1.3),
        breasts=max(0.0, between(-0.6, 1.0)),
        axilla=(between(-0.02, 0.25), between(-0.02, 0.25)),
        arm=between(0.0, 0.05),
        clavicle=between(0.03, 0.11),
        bone=between(0.85, 1.3),
        haze=between(0.0, 0.05),
        exposure=between(0.93, 1.1),
        contrast=between(1.35, 1.65),
        grain=between(0.004, 0.009),
        marker=bool(between(0, 1) < 0.6),
    )


def _draw_pose(generator: np.random.Generator) -> Pose:
    tilt, aside = np.clip(generator.normal(0, (0.022, 0.015)), (-0.06, -0.03), (0.06, 0.03))
    return Pose(float(tilt), generator.uniform(1.07, 1.19), (float(aside), generator.uniform(0.02, 0.06)))


def lung_outline(patient: Patient, side: int) -> Points:
    """Return the inside of the rib cage above the diaphragm on one side, down to the spine."""
    wall = [(_OVERLAP_X, -0.26), (0.05, -0.325), (0.115, APEX_Y), (0.195, -0.35)]
    wall += [(share * patient.chest, y) for share, y in zip(_WALL_X, _WALL_Y, strict=True)]
    wall.append((patient.chest, base_y(patient) - 0.02))
    return mirrored(np.vstack([curve(*wall), diaphragm(patient, side)]), side)


def diaphragm(patient: Patient, side: int) -> Points:
    """Return the diaphragm from the costophrenic angle to the spine, as if it were the patient's left one."""
    w, base, dome = patient.chest, base_y(patient), dome_y(patient, side)
    outer = [(0.985 * w, base), (0.93 * w, base - 0.035), (0.76 * w, dome + 0.02), (0.55 * w, dome)]
    return curve(*outer, (0.36 * w, dome + 0.006), (0.18 * w, dome + 0.03), (_OVERLAP_X, base - 0.035))


def base_y(patient: Patient) -> float:
    """Return the height of the costophrenic angles, the lowest points of the lungs."""
    return 0.29 + patient.breath


def dome_y(patient: Patient, side: int) -> float:
    """Return the height of the top of the diaphragm on one side."""
    return 0.195 + patient.breath - patient.dome_gap * (side == RIGHT)


def wall_x(patient: Patient, y: float) -> float:
    """Return how far the inside of the rib cage lies from the spine at a height."""
    heights = (APEX_Y, -0.35, *_WALL_Y, 0.29)
    return patient.chest * float(np.interp(y, heights, (0.3, 0.5, *_WALL_X, 1.0)))


def heart_outline(patient: Patient) -> Points:
    """Return the silhouette of the heart."""
    r, w = patient.heart
    floor = dome_y(patient, LEFT) + 0.07
    # The lower border follows the diaphragm; the great vessels stay.
    low = 0.7 * patient.breath
    left = [(0.055, -0.135), (0.085, -0.095), (0.30 * w + 0.07, -0.05), (0.75 * w, 0.035 + low / 2)]
    left += [(0.93 * w, 0.10 + low), (w, 0.165 + low), (0.95 * w, 0.215 + low), (0.7 * w, floor)]
    right = [(-0.7 * r, floor), (-0.93 * r, 0.18 + low), (-r, 0.10 + low), (-0.88 * r, 0.03 + low / 2)]
    right += [(-0.055 - 0.15 * r, -0.04), (-0.06, -0.11)]
    return curve(*left, *right, closed=True) + np.array([patient.turned, 0.0])


def inner_x(patient: Patient, side: int, y: float) -> float:
    """Return how far from the spine the lung becomes visible beside heart and hilum at a height."""
    outline = heart_outline(patient)
    near = outline[np.abs(outline[:, 1] - y) < 0.03, 0] * side
    return max([0.10, *near.tolist()])


def mediastinum_outlines(patient: Patient) -> list[Points]:
    """Return the upper mediastinum with the great vessels, and the aortic knob."""
    right = [(-0.075, -0.56), (-0.07, -0.40), (-0.062, -0.31), (-0.06, -0.23), (-0.066, -0.15), (-0.075, -0.08)]
    left = [(0.075, -0.04), (0.06, -0.12), (0.055, -0.20), (0.058, -0.28), (0.07, -0.40), (0.075, -0.56)]
    knob = ellipse((0.042, -0.165), 0.042 * patient.knob, 0.048 * patient.knob)
    moved = np.array([patient.turned, 0.0])
    return [curve(*right, (-0.08, 0.05), (0.08, 0.05), *left) + moved, knob + moved]


def trunk_outlines(patient: Patient) -> list[Points]:
    """Return neck, shoulder, arm and trunk, for each side of the film."""
    wide = patient.chest + 0.055 + 0.05 * patient.build
    gap = wide + patient.arm
    neck = 0.125 + 0.045 * patient.build
    outlines = []
    for side, axilla in zip((RIGHT, LEFT), patient.axilla, strict=True):
        shoulder = [(0.0, -0.9), (neck, -0.9), (neck, -0.50), (neck + 0.025, -0.435), (0.26, -0.395)]
        shoulder += [(0.38, -0.375), (0.50, -0.33), (0.62, -0.24), (0.70, -0.10)]
        arm = [(0.78, 0.3), (0.82, 0.9), (gap + 0.16, 0.9), (gap + 0.08, 0.45)]
        arm += [(gap + 0.035 - patient.arm / 2, axilla + 0.08), (wide + 0.02, axilla)]
        trunk = [(wide + 0.004, axilla + 0.06), (wide - 0.004, axilla + 0.14), (wide, 0.5), (wide + 0.02, 0.9)]
        outlines.append(mirrored(np.vstack([curve(*shoulder, *arm, *trunk), [(0.0, 0.9)]]), side))
    return outlines
