"""What stands in the blocks of docs/mlops.md, by the names that the document gives them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "mlops.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Return the first block after a file's name."""
    found = re.search(rf"`{re.escape(name)}`.*?```\w+\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None, name
    return found[1]


def write_blocks(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(block(name), encoding="utf-8")
