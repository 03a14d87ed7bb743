"""Fixtures that every room's tests share, and the table of fault figures at the end of a run."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapstack.models import EmbeddingModel, load_model
from mapstack.models.medclip import save_random_medclip
from tests.toys import SMALL_TEXT, SMALL_VISION, VOCABULARY


@pytest.fixture(scope="session", autouse=True)
def listen_to_ctrl_c() -> Iterator[None]:
    """Let the processes that tests start hear SIGINT: what a shell starts in the background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_random_medclip(
        folder, tower="vit", sizes={"vision": SMALL_VISION, "text": SMALL_TEXT}, vocabulary=VOCABULARY, seed=0
    )
    return folder


@pytest.fixture(scope="session")
def small_model(small_checkpoint: Path) -> EmbeddingModel:
    return load_model("medclip-vit", small_checkpoint)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the fault campaigns in full (make test-long)")


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """Choose how many trials a campaign makes: the first number, or with `--long` the second."""
    is_long = bool(pytestconfig.getoption("--long"))
    return lambda short, long: long if is_long else short


@pytest.fixture
def figure(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Report what a fault campaign measured; it is printed at the end of the run (see docs/reliability.md)."""
    faults = [str(mark.args[0]) for mark in request.node.iter_markers("fault")]

    def report(text: str) -> None:
        record_property("figure", f"{' '.join(faults):8} {text}")

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    # A report crosses to the main process with its properties, so that this works with several workers.
    figures = [
        text
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, text in report.user_properties
        if name == "figure"
    ]
    if figures:
        terminalreporter.section("fault figures")
        for text in sorted(map(str, figures)):
            terminalreporter.write_line(text)
