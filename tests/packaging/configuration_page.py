"""The generated part of docs/configuration.md: a table of the keys of every block of every configuration.

    python -m tests.packaging.configuration_page

writes it anew from the dataclasses and their docstrings. What stands outside its marks is written by hand.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from mapstack.methods import METHODS
from serve.config import ServeConfig
from train_like.cli import _COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
START, END = "<!-- tables -->\n", "<!-- /tables -->\n"

_NO_KEYS = "It has no parameters."
_METHODS = (
    "A method's block has its `name` and any of its parameters: `method`, `figure_2`, each of `figure_1` and "
    "`candidates`, and each value of `endpoint.methods`."
)
_SERVE = ("pack", "start", "stop", "explain")


def configurations() -> dict[type, list[str]]:
    """Return each configuration with the commands that take it."""
    found: dict[type, list[str]] = {}
    for command, (_, place, _) in _COMMANDS.items():
        if place is not None:
            file, name = place.split(":")
            found.setdefault(getattr(import_module(f"mapstack.{file}"), name), []).append(command)
    return {**found, ServeConfig: [f"serve {command}" for command in _SERVE]}


def blocks(schema: type, path: str = "") -> Iterator[tuple[str, type]]:
    """Yield a dataclass and every one below it, with the keys that lead there."""
    yield path, schema
    for each in fields(schema):
        block = _default(each)
        if is_dataclass(block):
            yield from blocks(type(block), f"{path}.{each.name}".lstrip("."))


def all_blocks() -> dict[type, str]:
    """Return every dataclass that a YAML file fills, once, and what its table is called."""
    found: dict[type, str] = {}
    for schema, commands in configurations().items():
        for path, block in blocks(schema):
            found.setdefault(block, f"`{path}`" if path else ", ".join(f"`{command}`" for command in commands))
    return found | {method: f"`{name}`" for name, method in METHODS.items()}


def meanings(schema: type) -> dict[str, str]:
    """Return what the docstrings of a dataclass and of those that it extends say of attributes."""
    return {name: meaning for kind in reversed(schema.__mro__) for name, meaning in own_meanings(kind).items()}


def own_meanings(kind: type) -> dict[str, str]:
    """Return what the section "Attributes" of a docstring in Google style says."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    section = re.search(r"^Attributes:\n((?: {4}.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.split(r"^ {4}(?=\w)", section[1], flags=re.MULTILINE)[1:] if section else []
    pairs = (entry.split(":", maxsplit=1) for entry in entries)
    return {name: " ".join(meaning.split()) for name, meaning in pairs}


def tables() -> str:
    """Return the generated part of the page."""
    titles = all_blocks()
    (first, *others), methods = configurations(), list(METHODS.values())
    parts = [_section(first, titles), f"## Methods\n\n{_METHODS}\n"]
    parts += [_table(method, titles, level=3) for method in methods]
    shown = {block for _, block in blocks(first)}
    for schema in others:
        parts.append(_section(schema, titles, shown))
        shown |= {block for _, block in blocks(schema)}
    return "\n".join(parts)


def _section(schema: type, titles: dict[type, str], shown: set[type] | None = None) -> str:
    below = (block for path, block in blocks(schema) if path and block not in (shown or ()))
    parts = [_table(schema, titles, level=2), *(_table(block, titles, level=3) for block in dict.fromkeys(below))]
    return "\n".join(parts)


def _table(schema: type, titles: dict[type, str], level: int) -> str:
    summary = " ".join(inspect.cleandoc(vars(schema)["__doc__"]).split("\n\n")[0].split())
    found, rows = meanings(schema), []
    for each in fields(schema):
        value = _default(each)
        told = f"[block](#{anchor(titles[type(value)])})" if is_dataclass(value) else f"`{_in_yaml(value)}`"
        rows.append(f"| `{each.name}` | {_cell(told)} | {_cell(found.get(each.name, ''))} |")
    body = "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) if rows else _NO_KEYS
    return f"{'#' * level} {titles[schema]}\n\n{summary}\n\n{body}\n"


def anchor(title: str) -> str:
    """Return what a heading is linked by, on GitHub."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _in_yaml(value: Any) -> str:
    flow: str = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**6)
    return flow.strip()[1:-1]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def split_page() -> tuple[str, str, str]:
    """Return the page: what stands before the tables, the tables, and what follows."""
    head, rest = PAGE.read_text(encoding="utf-8").split(START)
    middle, foot = rest.split(END)
    return head, middle, foot


def main() -> None:
    """Write the tables into the page."""
    head, _, foot = split_page()
    PAGE.write_text(head + START + tables() + END + foot, encoding="utf-8")


if __name__ == "__main__":
    main()
