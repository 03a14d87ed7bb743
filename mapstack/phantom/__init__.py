"""Synthetic frontal chest X-rays whose findings are known to the pixel.

A phantom is drawn as an X-ray is made: every part of the body weakens the beam by its depth, the weakenings add up, and
a tone curve with noise turns the sum into grey. A finding changes the sum where it lies and nowhere else, so that the
same seed with and without it gives the same picture outside its mask, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt8

from mapstack.errors import InputError, unknown_name
from mapstack.phantom.anatomy import Anatomy, draw_anatomy
from mapstack.phantom.canvas import Canvas
from mapstack.phantom.devices import draw_device
from mapstack.phantom.film import add_film, expose
from mapstack.phantom.findings import (
    Draw,
    draw_atelectasis,
    draw_cardiomegaly,
    draw_consolidation,
    draw_effusion,
    draw_nodule,
    draw_pneumothorax,
)
from mapstack.phantom.patient import LEFT, RIGHT, draw_patient
from mapstack.phantom.wording import describe

NO_FINDING = "No Finding"
MIN_SIDE_PX, MAX_SIDE_PX = 224, 512
MAX_FINDINGS = 2

# Cardiomegaly first: where the heart grows there is less lung for the next finding. Devices last: they lie on top.
_DRAW: dict[str, Draw] = {
    "Cardiomegaly": draw_cardiomegaly,
    "Consolidation": draw_consolidation,
    "Lung Lesion": draw_nodule,
    "Atelectasis": draw_atelectasis,
    "Pleural Effusion": draw_effusion,
    "Pneumothorax": draw_pneumothorax,
    "Support Devices": draw_device,
}

LABELS = (*_DRAW, NO_FINDING)
"""The class labels that a phantom can have, spelled as MIMIC-CXR's."""

# A change smaller than this is lost in the noise and is left out [grey value].
_MATERIAL_CHANGE = 1.5
# Each purpose has random numbers of its own, so that the patient stays the same whatever is found in them.
_PATIENT, _FILM, _LABELS, _SIDE, _FINDING = range(5)


@dataclass(frozen=True, eq=False)
class Finding:
    """One finding and where it is.

    Args:
        label: A class label of `LABELS`, never "No Finding".
        prompt: A sentence that is true of it.
        box: (row0, column0, row1, column1) around the mask, half-open [px], original-image frame.
        mask: True where the finding changed the picture, original-image frame.
    """

    label: str
    prompt: str
    box: tuple[int, int, int, int]
    mask: Bool[np.ndarray, "height width"]


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic chest X-ray.

    Args:
        pixels: Grey values; the patient's left is on the viewer's right.
        findings: What is found in it; nothing in a normal one.
        labels: The label of each finding, or "No Finding" alone.
        report: The sentences of the findings, or one that says that there is none.
        seed: What it was drawn from.
    """

    pixels: UInt8[np.ndarray, "height width"]
    findings: tuple[Finding, ...]
    labels: tuple[str, ...]
    report: str
    seed: int


def phantom(seed: int, *, size: int | tuple[int, int] = 320, labels: Sequence[str] | None = None) -> Phantom:
    """Draw a synthetic frontal chest X-ray; the same arguments give the same bytes.

    Args:
        seed: Of everything random. Patient, exposure and noise depend on it and on the size only, never on `labels`.
        size: The side of a square film or (height, width) [px], each 224 to 512, at most 3 : 2.
        labels: One or two findings of `LABELS`; "No Finding" or nothing for a normal film. By default drawn from the
            seed: one film in seven is normal, four in ten of the others have two findings.

    Raises:
        InputError: The seed is negative, the size is out of range, a label is unknown or comes twice, "No Finding"
            stands beside another, or there are more than two.

    Example:
        >>> from mapstack.phantom import phantom
        >>> film = phantom(7, labels=["Pleural Effusion"])
        >>> film.report
        'Large amount of left pleural fluid obscuring the hemidiaphragm and the lower lung.'
        >>> row0, column0, row1, column1 = film.findings[0].box
        >>> column0 > 0.4 * 320 and row1 > 0.7 * 320  # the patient's left is on the viewer's right, and low is low
        True
    """
    height, width = _check_size(size)
    if seed < 0:
        raise InputError(f"seed {seed} is negative; a seed is an integer of at least 0; choose another.")
    chosen = _draw_labels(seed) if labels is None else _check_labels(labels)
    patient_numbers = np.random.default_rng([seed, _PATIENT])
    patient = draw_patient(patient_numbers)
    anatomy = draw_anatomy(Canvas((height, width), patient.pose), patient, patient_numbers)
    findings = []
    for label, side in zip(chosen, _draw_sides(seed, chosen), strict=True):
        anatomy, finding = _add_finding(anatomy, label, side, seed)
        findings.append(finding)
    density = add_film(anatomy.density, anatomy.canvas, patient, np.random.default_rng([seed, _FILM]))
    pixels = np.rint(expose(density, patient)).astype(np.uint8)
    if not findings:
        normal = describe(NO_FINDING, "plain", {}, np.random.default_rng([seed, _FINDING, len(_DRAW)]))
        return Phantom(pixels, (), (NO_FINDING,), normal, seed)
    return Phantom(pixels, tuple(findings), tuple(chosen), " ".join(f.prompt for f in findings), seed)


def _add_finding(anatomy: Anatomy, label: str, side: int, seed: int) -> tuple[Anatomy, Finding]:
    numbers = np.random.default_rng([seed, _FINDING, list(_DRAW).index(label)])
    change = _DRAW[label](anatomy, numbers, side)
    before, after = (expose(chest.density, chest.patient) for chest in (anatomy, change.anatomy))
    mask = np.abs(after - before) >= _MATERIAL_CHANGE
    # What is too faint to be seen is undone, so that the mask is the whole of the change.
    density = np.where(mask, change.anatomy.density, anatomy.density)
    facts = change.facts | ({"side": "left" if change.side == LEFT else "right"} if change.side else {})
    finding = Finding(label, describe(label, change.variant, facts, numbers), _box(mask), mask)
    return replace(change.anatomy, density=density), finding


def _box(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def _draw_labels(seed: int) -> list[str]:
    numbers = np.random.default_rng([seed, _LABELS])
    if numbers.uniform() < 1 / 7:
        return []
    n_findings = 2 if numbers.uniform() < 0.4 else 1
    return _in_order(numbers.choice(list(_DRAW), n_findings, replace=False).tolist())


def _draw_sides(seed: int, labels: Sequence[str]) -> list[int]:
    # Two findings lie in different halves of the chest, so that neither hides the other.
    side = int(np.random.default_rng([seed, _SIDE]).choice([RIGHT, LEFT]))
    sides = []
    for label in labels:
        sides.append(side)
        side = side if label == "Cardiomegaly" else -side
    return sides


def _in_order(labels: Sequence[str]) -> list[str]:
    return [label for label in _DRAW if label in labels]


def _check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < MIN_SIDE_PX or max(height, width) > min(MAX_SIDE_PX, 1.5 * min(height, width)):
        raise InputError(
            f"size {height} x {width} px is out of range; each side of a phantom is {MIN_SIDE_PX} to {MAX_SIDE_PX} px "
            "and the longer one at most 1.5 times the shorter; draw it within that and resize the picture."
        )
    return height, width


def _check_labels(labels: Sequence[str]) -> list[str]:
    for label in labels:
        if label not in LABELS:
            raise InputError(unknown_name("label", label, LABELS))
    found = [label for label in labels if label != NO_FINDING]
    if len(set(labels)) < len(labels) or len(found) > MAX_FINDINGS or (found and len(found) < len(labels)):
        raise InputError(
            f"labels {', '.join(labels)} do not go together; a phantom has one or two different findings, or "
            f"'{NO_FINDING}' alone; draw another phantom for the rest."
        )
    return _in_order(found)
