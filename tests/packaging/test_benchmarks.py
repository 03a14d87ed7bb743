"""Every benchmark can be started, though the suite has no time to run them."""

import importlib
from pathlib import Path

import pytest

# One needs Quantus, whose licence keeps it out of everything that is installed here.
ELSEWHERE = {"metric_agreement"}
SCRIPTS = sorted({path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py")} - ELSEWHERE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_it_is_run(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__ is not None
    if hasattr(module, "main") or hasattr(module, "throughput"):
        assert f"python -m benchmarks.{name}" in module.__doc__
