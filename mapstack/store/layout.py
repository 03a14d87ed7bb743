"""The file names of a stack store, and the parts that a folder holds."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
BASIS = "basis.npy"
ERRORS = "errors.jsonl"
LOCK = "store.lock"
TEMPORARY = ".tmp"

_PART_NAME = re.compile(r"part-(\d{4,})-(\d{4,})-(\d{4,})(\.tar|\.tar\.partial|\.jsonl)")
_OTHER_NAMES = frozenset({MANIFEST, BASIS, ERRORS, LOCK, *(name + TEMPORARY for name in (MANIFEST, BASIS, ERRORS))})


@dataclass(frozen=True, order=True, slots=True)
class Part:
    """One tar and its journal, written by one rank of one run.

    Attributes:
        run: Number of the run that wrote it, from 1.
        rank: Rank of the process in that run, from 0.
        sequence: Number of the part within the rank, from 0.
    """

    run: int
    rank: int
    sequence: int

    @property
    def stem(self) -> str:
        """The name without a suffix."""
        return f"part-{self.run:04d}-{self.rank:04d}-{self.sequence:04d}"

    def sealed(self, folder: Path) -> Path:
        """The path of the finished tar."""
        return folder / f"{self.stem}.tar"

    def partial(self, folder: Path) -> Path:
        """The path of the tar while it is being written."""
        return folder / f"{self.stem}.tar.partial"

    def journal(self, folder: Path) -> Path:
        """The path of the journal."""
        return folder / f"{self.stem}.jsonl"


def list_parts(folder: Path) -> list[Part]:
    """List every part that has a tar or a journal in the folder, in the order of run, rank and sequence."""
    matches = (_PART_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted({Part(*(int(number) for number in match.groups()[:3])) for match in matches if match})


def next_run(folder: Path) -> int:
    """Say the number of the next run: one more than the largest that left a part, so that no name comes twice."""
    return max((part.run for part in list_parts(folder)), default=0) + 1


def store_files(folder: Path) -> Iterator[Path]:
    """Yield the plain files whose names belong to a stack store."""
    return (path for path in folder.iterdir() if _is_store_file(path))


def foreign_files(folder: Path) -> Iterator[Path]:
    """Yield everything in the folder that is no part of a stack store."""
    return (path for path in folder.iterdir() if not _is_store_file(path))


def _is_store_file(path: Path) -> bool:
    named = path.name in _OTHER_NAMES or _PART_NAME.fullmatch(path.name) is not None
    return named and path.is_file() and not path.is_symlink()
