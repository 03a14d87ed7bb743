"""docs/reliability.md says which test shows which fault; it must neither promise nor leave out one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
READING = [f"R{number}" for number in range(1, 15)]
WRITING = [f"W{number}" for number in range(1, 12)]
SERVING = [f"S{number}" for number in range(1, 21) if number != 15]


def documented() -> set[tuple[str, str]]:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([RWS]\d+) \|(.*)\|$", text, re.MULTILINE)
    return {(fault, test) for fault, row in rows for test in re.findall(r"`(tests/[\w/]+\.py::\w+)`", row)}


def faults_of(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr == "fault":
            for argument in part.args:
                assert isinstance(argument, ast.Constant)
                yield str(argument.value)


def marked() -> set[tuple[str, str]]:
    found = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                name = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                found |= {(fault, name) for mark in node.decorator_list for fault in faults_of(mark)}
    return found


def test_every_fault_has_a_test_and_every_fault_test_its_row() -> None:
    assert documented() == marked()


def test_no_fault_is_left_out() -> None:
    assert {fault for fault, _ in documented()} >= {*READING, *WRITING, *SERVING}


def test_every_row_states_a_figure() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| [RWS]\d+ \|.*$", text, re.MULTILINE):
        *_, figure, end = row.split("|")
        assert re.search(r"\d", figure), row
        assert not end
