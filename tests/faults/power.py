"""A model of a disk: which states it may hold when the power fails, given the calls that a writer made.

What an fsync of a file covers is there: its bytes and its size. What an fsync of a folder covers is there: the names in
it. Of everything later any part may be there or not, in any combination: writes are dropped, cut short or left as
zeros, and new names, renames and removals are absent or present. Real file systems order more than that.
"""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapstack.store.disk import sync_folder, write_all
from tests.faults.recording import Call


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The writer told its caller that this is safe."""

    key: str


Event = Call | Acknowledged


class Died(BaseException):
    """Stands for SIGKILL within the recording process: no call has an effect after it."""


class Recorder:
    """An observer that writes a history of calls and acknowledgements.

    Attributes:
        events: The history.
    """

    def __init__(self, is_skipped: Callable[[Call], bool] = lambda call: False) -> None:
        """Start an empty history; calls for which `is_skipped` says True have an effect that no disk learns of."""
        self.events: list[Event] = []
        self._is_skipped = is_skipped
        self._dies_at: int | None = None

    def die_at(self, n_events: int | None) -> None:
        """Let the writer die once the history has that many events; with None let it live."""
        self._dies_at = n_events

    def __call__(self, call: Call, perform: Callable[..., Any]) -> Any:
        if self._dies_at is not None and len(self.events) >= self._dies_at:
            raise Died
        result = perform()
        if not self._is_skipped(call):
            self.events.append(call)
        return result

    def acknowledge(self, key: str) -> None:
        """Note that the writer called `key` safe."""
        self.events.append(Acknowledged(key))


@dataclass(slots=True)
class State:
    """What a disk holds.

    Attributes:
        files: The bytes of each file, by path.
        folders: The paths of the folders.
        acknowledged: What the writer had called safe.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)

    def fingerprint(self) -> tuple[object, ...]:
        """Tell two states apart."""
        return tuple(sorted(self.files.items())), tuple(sorted(self.folders)), tuple(sorted(self.acknowledged))

    def write(self, root: Path) -> None:
        """Bring the state into an empty folder, durably."""
        for folder in sorted(self.folders):
            os.mkdir(root / folder)
        for path, content in self.files.items():
            fd = os.open(root / path, os.O_WRONLY | os.O_CREAT)
            write_all(fd, [content])
            os.fsync(fd)
            os.close(fd)
        for folder in (".", *self.folders):
            sync_folder(root / folder)


def after_power_cut(events: Sequence[Event], share_kept: float, rng: random.Random) -> State:
    """Choose one of the states that the disk may hold when the power fails at the end of a history.

    Args:
        events: The history.
        share_kept: How much of what no fsync covers shall be there [0, 1].
        rng: Chooses which.
    """
    calls = [(index, event) for index, event in enumerate(events) if isinstance(event, Call)]
    last_sync = {call.file: index for index, call in calls if call.name.startswith("fsync")}
    contents: dict[int, bytearray] = {}
    names: dict[str, int] = {}
    folders: set[int] = set()
    for index, call in calls:
        if call.name == "mkdir":
            folders.add(call.file)
        if index < last_sync.get(call.folder, -1) or rng.random() < share_kept:
            _change_names(names, call)
        is_durable = index < last_sync.get(call.file, -1)
        _change_content(contents.setdefault(call.file, bytearray()), call, is_durable, share_kept, rng)
    reachable = {path: file for path, file in names.items() if _is_reachable(path, names)}
    return State(
        {path: bytes(contents[file]) for path, file in reachable.items() if file not in folders},
        {path for path, file in reachable.items() if file in folders},
        {event.key for event in events if isinstance(event, Acknowledged)},
    )


def _change_names(names: dict[str, int], call: Call) -> None:
    if call.is_new:
        names[call.path] = call.file
    elif call.name in ("rename", "unlink") and names.get(call.path) == call.file:
        del names[call.path]
    if call.name == "rename":
        names[call.target] = call.file


def _change_content(content: bytearray, call: Call, is_durable: bool, share_kept: float, rng: random.Random) -> None:
    is_kept = is_durable or rng.random() < share_kept
    if call.name == "ftruncate" or call.is_emptied:
        if is_kept:
            content[:] = content[: call.offset].ljust(call.offset, b"\0")
    elif call.name == "write":
        n_bytes = len(call.data)
        n_whole = n_bytes if is_kept else rng.choice((0, rng.randint(0, n_bytes)))
        # The size of a file may be on the disk before its bytes are, which are zeros then.
        n_zeros = 0 if is_kept else rng.choice((0, n_bytes - n_whole))
        if n_whole + n_zeros:
            _put(content, call.offset, call.data[:n_whole] + bytes(n_zeros))


def _put(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _is_reachable(path: str, names: dict[str, int]) -> bool:
    return all(str(folder) in names for folder in Path(path).parents if folder != Path("."))
