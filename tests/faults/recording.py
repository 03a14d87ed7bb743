"""A patched `os`: every call with which the store changes a folder passes an observer, which may record or spoil it."""

import errno
import fcntl
import itertools
import os
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("open", "close", "write", "fsync", "ftruncate", "rename", "replace", "unlink", "mkdir")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changes the disk, or makes a change durable.

    Attributes:
        name: `open`, `write`, `fsync`, `fsync_folder`, `ftruncate`, `rename` (`replace` too), `unlink` or `mkdir`.
        path: What it works on, relative to the watched folder; "." is that folder.
        file: Number of the file or folder behind the path, which a rename does not change.
        folder: Number of the folder that holds the path.
        target: The new path of a rename.
        is_new: Whether an `open` creates the file.
        is_emptied: Whether an `open` empties a file that was there.
        offset: Where a write begins, or the size that `ftruncate` asks for [bytes].
        data: What is written.
    """

    name: str
    path: str
    file: int
    folder: int
    target: str = ""
    is_new: bool = False
    is_emptied: bool = False
    offset: int = 0
    data: bytes = b""


Observer = Callable[[Call, Callable[..., Any]], Any]


class Watch:
    """Sends the calls of a block that work below `root` through `observe(call, perform)`; all others go by.

    `perform()` does what was asked; for a write, `perform(data)` writes other bytes. An `fsync` is told and not done:
    a killed process loses nothing that it wrote, and what survives a power cut is for the observer to say. The block
    may be entered again: the numbers of the files go on.
    """

    def __init__(self, root: Path, observe: Observer) -> None:
        self._root = os.path.abspath(root)
        self._observe = observe
        self._real: dict[str, Callable[..., Any]] = {}
        self._numbers = itertools.count(1)
        self._files = {".": 0}
        self._descriptors: dict[int, tuple[str, int]] = {}

    def __enter__(self) -> "Watch":
        for name in _NAMES:
            self._real[name] = getattr(os, name)
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        self._descriptors.clear()

    def _relative(self, path: Any) -> str | None:
        absolute = os.path.abspath(path)
        return os.path.relpath(absolute, self._root) if f"{absolute}/".startswith(f"{self._root}/") else None

    def _number(self, path: str) -> int:
        return self._files[path] if path in self._files else self._files.setdefault(path, next(self._numbers))

    def _call(self, name: str, path: str, is_new: bool = False) -> Call:
        file = next(self._numbers) if is_new else self._number(path)
        return Call(name, path, file, self._number(os.path.dirname(path) or "."), is_new=is_new)

    def _open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        def perform() -> int:
            return self._real["open"](path, flags, mode, **options)

        relative, exists = self._relative(path), os.path.exists(path)
        if relative is None or not (exists or flags & os.O_CREAT):
            return perform()
        call = self._call("open", relative, is_new=not exists)
        call = replace(call, is_emptied=exists and bool(flags & os.O_TRUNC))
        fd: int = self._observe(call, perform)
        self._files[relative] = call.file
        self._descriptors[fd] = (relative, call.file)
        return fd

    def _close(self, fd: int) -> None:
        self._descriptors.pop(fd, None)
        self._real["close"](fd)

    def _of_descriptor(self, name: str, fd: int) -> Call:
        path, file = self._descriptors[fd]
        return Call(name, path, file, self._number(os.path.dirname(path) or "."))

    def _write(self, fd: int, data: Any) -> int:
        if fd not in self._descriptors:
            return self._real["write"](fd, data)
        is_append = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        offset = os.fstat(fd).st_size if is_append else os.lseek(fd, 0, os.SEEK_CUR)
        call = replace(self._of_descriptor("write", fd), offset=offset, data=bytes(data))
        return self._observe(call, lambda written=call.data: self._real["write"](fd, written))

    def _fsync(self, fd: int) -> None:
        if fd in self._descriptors:
            name = "fsync_folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync"
            self._observe(self._of_descriptor(name, fd), lambda: None)
        else:
            self._real["fsync"](fd)

    def _ftruncate(self, fd: int, length: int) -> None:
        if fd in self._descriptors:
            call = replace(self._of_descriptor("ftruncate", fd), offset=length)
            self._observe(call, lambda: self._real["ftruncate"](fd, length))
        else:
            self._real["ftruncate"](fd, length)

    def _rename(self, source: Any, target: Any) -> None:
        old, new = self._relative(source), self._relative(target)
        if old is None or new is None:
            return self._real["rename"](source, target)
        self._observe(replace(self._call("rename", old), target=new), lambda: self._real["rename"](source, target))
        self._files[new] = self._files.pop(old)

    _replace = _rename

    def _unlink(self, path: Any, **options: Any) -> None:
        relative = self._relative(path)
        if relative is None or not os.path.lexists(path):
            return self._real["unlink"](path, **options)
        self._observe(self._call("unlink", relative), lambda: self._real["unlink"](path))
        del self._files[relative]

    def _mkdir(self, path: Any, mode: int = 0o777, **options: Any) -> None:
        relative = self._relative(path)
        if relative is None or os.path.exists(path) or not os.path.isdir(os.path.dirname(path)):
            return self._real["mkdir"](path, mode, **options)
        call = self._call("mkdir", relative, is_new=True)
        self._observe(call, lambda: self._real["mkdir"](path, mode))
        self._files[relative] = call.file


class CallList:
    """An observer that only notes the calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, call: Call, perform: Callable[..., Any]) -> Any:
        self.calls.append(call)
        return perform()


class Killer:
    """An observer that ends this process with SIGKILL before call number `at`, or half-way through it (a write)."""

    def __init__(self, at: int, is_torn: bool = False) -> None:
        self._left = at
        self._is_torn = is_torn

    def __call__(self, call: Call, perform: Callable[..., Any]) -> Any:
        if self._left == 0:
            if self._is_torn and len(call.data) > 1:
                perform(call.data[: len(call.data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        return perform()


class FullDisk:
    """An observer that lets so many bytes be written and no more, as a full disk does."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes

    def __call__(self, call: Call, perform: Callable[..., Any]) -> Any:
        if call.name != "write" or not call.data:
            return perform()
        if not self._n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n_written = perform(call.data[: self._n_bytes])
        self._n_bytes -= n_written
        return n_written


class FailingCall:
    """An observer that refuses call number `at`: an fsync with EIO, any other for want of space (or of inodes)."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, call: Call, perform: Callable[..., Any]) -> Any:
        self._left -= 1
        if self._left == -1:
            number = errno.EIO if call.name.startswith("fsync") else errno.ENOSPC
            raise OSError(number, os.strerror(number), call.path)
        return perform()


class SlowDisk:
    """An observer that lets every write be seen half done for a while, as the system may do with a large one."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._is_rest = False

    def __call__(self, call: Call, perform: Callable[..., Any]) -> Any:
        if call.name != "write":
            return perform()
        time.sleep(self._pause_s)
        n_bytes = len(call.data) if self._is_rest else -(-len(call.data) // 2)
        self._is_rest = n_bytes < len(call.data)
        return perform(call.data[:n_bytes])
