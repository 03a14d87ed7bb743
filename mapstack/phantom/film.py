"""The film: its noise, its tone curve and the marker that lies on it."""

import numpy as np

from mapstack.phantom.canvas import Canvas, Field, Points
from mapstack.phantom.patient import Patient

# Opacity of a unit of density, set so that lungs, shoulders and abdomen come out as on real films.
_OPACITY = 1.62


def expose(density: Field, patient: Patient) -> Field:
    """Turn density into grey values [0, 255]: free air is black, and thick parts run together towards white.

    Example:
        >>> from mapstack.phantom.patient import draw_patient
        >>> air, lung, bone = expose(np.float32([[0.0, 0.3, 0.9]]), draw_patient(np.random.default_rng(0)))[0]
        >>> bool(0 <= air < lung < bone <= 255)  # air is black, bone is white
        True
    """
    opacity = np.maximum(_OPACITY * patient.exposure * density + patient.haze, 0)
    return 255 * (1 - np.exp(-(opacity ** np.float32(patient.contrast))))


def add_film(density: Field, canvas: Canvas, patient: Patient, generator: np.random.Generator) -> Field:
    """Add the noise and, on some films, the marker of the patient's left side."""
    noisy = density + np.float32(patient.grain) * generator.standard_normal(canvas.size, dtype=np.float32)
    return noisy + 0.8 * canvas.lines([(_marker(canvas), 0.008, 1.0)]) if patient.marker else noisy


def _marker(canvas: Canvas) -> Points:
    return canvas.from_film(np.array([(0.44, -0.46), (0.44, -0.42), (0.465, -0.42)]))
