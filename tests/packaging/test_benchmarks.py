"""Every benchmark can be started, though the suite has no time to run them."""

import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_it_is_run(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__ is not None
    if hasattr(module, "main") or hasattr(module, "throughput"):
        assert f"python -m benchmarks.{name}" in module.__doc__
