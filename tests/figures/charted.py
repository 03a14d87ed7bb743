"""Numbers that the charts are drawn from."""

from typing import Any

import numpy as np

from mapstack.charts import Bar, Curves
from mapstack.metrics.bootstrap import Interval

LONG = "integrated_gradients [mean of the reference pictures], contrast with the text of a normal chest"


def interval(mean: float) -> Interval:
    return Interval(mean, mean - 0.1, mean + 0.05)


def curves(name: str, shift: float = 0.0, **changes: Any) -> Curves:
    mean = np.array([4.0, 2.0, 1.0]) + shift
    arrays = {"fractions": np.array([0.0, 0.5, 1.0]), "mean": mean, "low": mean - 1, "high": mean + 2}
    return Curves(name, **{**arrays, **changes})


def square(n: int, off: float = 0.25) -> np.ndarray:
    return np.where(np.eye(n, dtype=bool), 1.0, off)


BARS = [
    Bar("occlusion", interval(0.7)),
    Bar(LONG, interval(0.4)),
    Bar("centre prior", interval(0.5), is_reference=True),
    Bar("random", interval(0.1), is_reference=True),
]
