from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest

from tests.figures.drawn import HEIGHT, WIDTH


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture
def attribution() -> np.ndarray:
    """Positive in the upper left, negative in the lower right, zero elsewhere."""
    scores = np.zeros((HEIGHT, WIDTH), np.float32)
    scores[:12, :10] = 2e-5
    scores[12:, 20:] = -2e-5
    return scores


@pytest.fixture
def plain_types() -> Iterator[None]:
    """What a user meets who gives a wrong array, also when the suite runs under jaxtyping's import hook."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def maps() -> list[list[np.ndarray]]:
    """Two rows of three different maps; the middle one of the lower row is blank."""
    rng = np.random.default_rng(2)
    rows = [[rng.normal(size=(HEIGHT, WIDTH)) * 10.0**-power for power in (0, 3, 6)] for _ in range(2)]
    rows[1][1] = np.zeros((HEIGHT, WIDTH))
    return rows
