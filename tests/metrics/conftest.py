"""Fixtures for the metrics."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def plain_types() -> Iterator[None]:
    """What a user meets who gives a wrong shape, also when the suite runs under jaxtyping's import hook."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
