"""What a disease adds to a normal chest: one function a finding, each drawing it on a given side."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from mapstack.phantom.anatomy import SHARE_COVERED, UNSHARPNESS, Anatomy
from mapstack.phantom.canvas import Field, Points, curve, mirrored
from mapstack.phantom.patient import APEX_Y, RIGHT, Patient, dome_y, inner_x, wall_x

ZONES = ("upper", "mid", "lower")


@dataclass(frozen=True, eq=False)
class Change:
    """A finding before it is put into words.

    Args:
        anatomy: The chest with it.
        side: `LEFT`, `RIGHT`, or 0 where it has none.
        facts: What the sentence may say of it: words by the name of the gap they fill.
        variant: Which set of sentences describes it.
    """

    anatomy: Anatomy
    side: int
    facts: dict[str, str]
    variant: str


Draw = Callable[[Anatomy, np.random.Generator, int], Change]


def draw_consolidation(anatomy: Anatomy, generator: np.random.Generator, side: int) -> Change:
    """Fill a part of the lung with fluid: a cloud with air-filled bronchi in it where it is dense."""
    patient, canvas = anatomy.patient, anatomy.canvas
    zone = str(generator.choice(ZONES))
    extent = generator.uniform(0.05, 0.12)
    y = _zone_y(patient, side, zone, generator.uniform(0.3, 0.7))
    near, far = inner_x(patient, side, y), wall_x(patient, y)
    x = near + (far - near) * generator.uniform(0.35, 0.65)
    spokes = np.linspace(0, 2 * np.pi, 13)[:-1]
    radii = extent * generator.uniform(0.7, 1.25, 12)
    shape = np.stack([x + radii * np.cos(spokes), y + 0.85 * radii * np.sin(spokes)], axis=1)
    cloud = canvas.fill([mirrored(curve(*shape.tolist(), closed=True), side)], blur=0.32 * extent)
    patchy = 0.6 * canvas.clouds(generator, 0.045) + 0.5 * canvas.clouds(generator, 0.02)
    # The patches fray the border as well as the inside.
    cloud = np.clip(1.8 * cloud - 0.3 + 0.35 * patchy * np.sqrt(cloud), 0, 1) * (0.9 + 0.1 * np.tanh(patchy))
    strength = generator.uniform(0.42, 0.9)
    with_bronchi = strength > 0.65
    if with_bronchi:
        bronchi = [(mirrored(course, side), 0.007, 1.0) for course in _bronchi(generator, x, y, extent)]
        cloud *= 1 - 0.4 * canvas.lines(bronchi, blur=0.002)
    facts = {
        "zone": zone,
        "intensity": _grade(strength, (0.56, "faint"), (0.72, "moderately dense"), (1.0, "dense")),
        "size": _grade(extent, (0.07, "small"), (0.095, "medium-sized"), (1.0, "large")),
    }
    return _changed(anatomy, strength * cloud * anatomy.air, side, facts, "with bronchi" if with_bronchi else "plain")


def draw_nodule(anatomy: Anatomy, generator: np.random.Generator, side: int) -> Change:
    """Put a round lesion into the lung."""
    patient, canvas = anatomy.patient, anatomy.canvas
    zone = str(generator.choice(ZONES))
    radius = generator.uniform(0.028, 0.065)
    side, y, near, far = _place_round(patient, side, zone, generator.uniform(0.25, 0.75), radius)
    x = side * (near + (far - near) * generator.uniform(0, 1))
    right, down = (canvas.x - x) / radius, (canvas.y - y) / radius
    bump, phase = generator.uniform(0.0, 0.08), generator.uniform(0, 2 * np.pi)
    square = (right**2 + down**2) * (1 + bump * np.cos(3 * np.arctan2(down, right) + phase))
    weight = generator.uniform(0.16, 0.32)
    facts = {
        "zone": zone,
        "intensity": _grade(weight, (0.21, "faint"), (0.27, "well-defined"), (1.0, "dense")),
        "size": _grade(radius, (0.040, "small"), (0.053, "medium-sized"), (1.0, "large")),
    }
    # Above 3 cm radiologists speak of a mass.
    variant = "nodule" if facts["size"] == "small" else "mass"
    return _changed(anatomy, weight * np.clip(1 - square, 0, 1) ** 0.7, side, facts, variant)


def draw_effusion(anatomy: Anatomy, generator: np.random.Generator, side: int) -> Change:
    """Fill the base of the pleural space with fluid, whose surface climbs at the walls."""
    patient, canvas = anatomy.patient, anatomy.canvas
    amount = generator.uniform(0, 1)
    wall, low = patient.chest, dome_y(patient, side) + 0.06 - 0.27 * amount
    climb = 0.035 + 0.05 * amount
    surface = [(wall + 0.06, low - 1.5 * climb), (0.97 * wall, low - climb), (0.8 * wall, low - 0.3 * climb)]
    surface += [(0.5 * wall, low), (0.2 * wall, low - 0.15 * climb), (0.0, low - 0.3 * climb)]
    outline = np.vstack([curve(*surface), [(0.0, 0.6), (wall + 0.06, 0.6)]])
    fluid = canvas.fill([mirrored(outline, side)], blur=0.007) * anatomy.thorax[side]
    # The mediastinum closes the pleural space towards the spine.
    fluid *= np.clip((side * canvas.x - 0.02) / 0.07, 0, 1)
    # The heart's border is lost in the fluid, and lower down, where the fluid is deepest, the diaphragm.
    deep = np.clip((canvas.y - dome_y(patient, side) + 0.10) / 0.10, 0, 1)
    change = fluid * (0.97 * anatomy.air + (0.09 + 0.11 * deep) * (1 - 0.6 * anatomy.covered) - 0.9 * anatomy.vessels)
    change = canvas.unsharpen(change, UNSHARPNESS)
    size = _grade(amount, (0.25, "small"), (0.68, "moderate"), (1.0, "large"))
    return _changed(anatomy, change, side, {"size": size}, size)


def draw_cardiomegaly(anatomy: Anatomy, generator: np.random.Generator, side: int) -> Change:
    """Enlarge the heart, more to the patient's left; `side` does not matter."""
    patient = anatomy.patient
    ratio = generator.uniform(0.54, 0.66)
    grown = 2 * patient.chest * (ratio - patient.cardiothoracic_ratio)
    enlarged = replace(patient, heart=(patient.heart[0] + 0.36 * grown, patient.heart[1] + 0.64 * grown))
    size = _grade(ratio, (0.58, "mild"), (0.62, "moderate"), (1.0, "severe"))
    return Change(anatomy.with_heart(enlarged), 0, {"size": size}, size)


def draw_pneumothorax(anatomy: Anatomy, generator: np.random.Generator, side: int) -> Change:
    """Part the lung from the wall: beyond its edge, a thin line, there is air and no vessel."""
    patient, canvas = anatomy.patient, anatomy.canvas
    amount = generator.uniform(0, 1)
    lung = mirrored(_collapsed(patient, amount), side)
    # Only beside heart and mediastinum, which close the pleural space towards the spine.
    room = anatomy.thorax[side] * np.clip(1 - anatomy.covered / SHARE_COVERED, 0, 1)
    beyond = room * (1 - canvas.fill([lung]))
    change = 0.09 * room * canvas.lines([(lung, 0.006, 1.0)]) - beyond * (anatomy.vessels + 0.14)
    size = _grade(amount, (0.33, "small"), (0.68, "moderate"), (1.0, "large"))
    return _changed(anatomy, change, side, {"size": size}, size)


def draw_atelectasis(anatomy: Anatomy, generator: np.random.Generator, side: int) -> Change:
    """Draw thin bands of collapsed lung across the base."""
    patient, canvas = anatomy.patient, anatomy.canvas
    if inner_x(patient, side, dome_y(patient, side) - 0.05) > 0.72 * patient.chest:
        side = RIGHT  # beside an enlarged heart there is no room on the left
    n_bands = int(generator.integers(1, 4))
    width, slope = generator.uniform(0.010, 0.020), generator.uniform(-0.25, 0.25)
    bands = []
    for i in range(n_bands):
        y = dome_y(patient, side) - 0.035 - 0.055 * i - generator.uniform(0, 0.015)
        near = inner_x(patient, side, y) - 0.02
        length = (wall_x(patient, y) - near - 0.03) * generator.uniform(0.65, 1.0)
        along = np.linspace(0, 1, 17)
        middle = np.stack([near + along * length, y + slope * (along - 0.5) * length], axis=1)
        middle[:, 1] += generator.uniform(-0.012, 0.004) * np.sin(np.pi * along)
        # Thickest in its middle.
        half = np.stack([np.zeros(17), 0.6 * width * np.sqrt(np.sin(np.pi * along).clip(0))], axis=1)
        bands.append(mirrored(np.vstack([middle - half, (middle + half)[::-1]]), side))
    strength = generator.uniform(0.20, 0.36)
    lung = (anatomy.air > 0.08) * anatomy.thorax[side]
    facts = {
        "intensity": _grade(strength, (0.25, "mild"), (0.31, "moderate"), (1.0, "marked")),
        "kind": "linear" if width < 0.0135 else "plate-like",
        "bands": ("a single band", "two bands", "three bands")[n_bands - 1],
    }
    variant = "single" if n_bands == 1 else "several"
    return _changed(anatomy, strength * canvas.fill(bands, blur=0.004) * lung, side, facts, variant)


def _changed(anatomy: Anatomy, change: Field, side: int, facts: dict[str, str], variant: str) -> Change:
    return Change(replace(anatomy, density=anatomy.density + change), side, facts, variant)


def _zone_y(patient: Patient, side: int, zone: str, share: float) -> float:
    # The thirds of the lung between its top and the top of the diaphragm.
    third = (dome_y(patient, side) - APEX_Y) / 3
    return APEX_Y + third * (ZONES.index(zone) + share)


def _place_round(
    patient: Patient, side: int, zone: str, share: float, radius: float
) -> tuple[int, float, float, float]:
    """Return side, height, and distances from the spine between which a round lesion lies within the lung."""
    heights = sorted([share, *np.linspace(0.1, 0.9, 33).tolist()], key=lambda other: abs(other - share))
    # Closer to heart and wall where there is little room; beside an enlarged heart there is none on the left.
    for each, gap, height in product((side, RIGHT), (1.0, 0.2), heights):
        y = _zone_y(patient, each, zone, height)
        near = inner_x(patient, each, y) + radius + 0.02 * gap
        far = wall_x(patient, y) - radius - 0.035 * gap
        if near <= far and y - radius >= APEX_Y + 0.02 and y + radius <= dome_y(patient, each):
            break
    return each, y, near, far


def _grade(value: float, *steps: tuple[float, str]) -> str:
    return next(word for limit, word in steps if value <= limit)


def _bronchi(generator: np.random.Generator, x: float, y: float, extent: float) -> list[Points]:
    # They come from the hilum and fork within the cloud.
    towards = np.arctan2(y + 0.04, x - 0.08)
    courses = []
    for turn in generator.uniform(-0.7, 0.7, 4):
        start = np.array([x, y]) - 0.8 * extent * np.array([np.cos(towards), np.sin(towards)])
        start += generator.normal(0, 0.2 * extent, 2)
        angle = towards + turn
        middle = start + 0.6 * extent * np.array([np.cos(angle), np.sin(angle)])
        end = middle + 0.6 * extent * np.array([np.cos(angle + 0.4 * turn), np.sin(angle + 0.4 * turn)])
        courses.append(curve(*np.stack([start, middle, end]).tolist(), n_between=4))
    return courses


def _collapsed(patient: Patient, amount: float) -> Points:
    top = APEX_Y + 0.045 + 0.13 * amount
    aside = 0.02 + 0.10 * amount
    # A small one lies at the apex only; a large one reaches down to the diaphragm.
    end = -0.17 + 0.42 * amount
    edge = [(-0.1, top + 0.08), (0.06, top + 0.015), (0.11, top), (0.17, top + 0.012)]
    for y in np.linspace(top + 0.06, 0.32, 9).tolist():
        closing = float(np.clip((end - y) / 0.2, 0, 1))
        gap = aside * closing**2 * (3 - 2 * closing)
        # Where lung and wall meet, the edge leaves the rib cage, so that no line is drawn along the wall.
        edge.append((wall_x(patient, y) - gap + 0.03 * (gap == 0), y))
    return np.vstack([curve(*edge), [(-0.1, 0.32)]])
