"""A folder of entries, bounded in bytes, that the workers of one host share: the least recently used goes first.

An entry is a folder of `.npy` files and one `info.json`; it appears and goes by one rename, so that a reader meets it
whole or not at all, and what a reader has mapped into memory outlives its name. Nothing here is synced to the disk:
what a power cut takes is computed again. Nor does a disk that fails, or a folder that is taken away under a running
server, cost an answer: what cannot be read is not there, and what cannot be written is not kept.
"""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mapstack.errors import ConfigError

_INFO = "info.json"
_TEMPORARY = "tmp."
_LOCKS = "locks"
_CHANGES = "changes"
_BYTES = "bytes"
_N_LOCKS = 256
_FOLDER_OVERHEAD = 8192  # what the names and the info take, generously


class CacheFolder:
    """The files of the cache.

    Args:
        root: A folder that no other user may enter; it is made where it does not exist.
        max_bytes: Of all entries together.

    Raises:
        ConfigError: The folder cannot be made, or others may enter it.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        try:
            is_private = self._make()
        except OSError as error:
            raise ConfigError(
                f"cache folder '{root}' cannot be made ({error.strerror}); the server keeps stacks there; set "
                "cache.folder to one that it may write."
            ) from None
        if not is_private:
            raise ConfigError(
                f"cache folder '{root}' can be entered by others; maps are patients' data, and foreign ones would be "
                "served; make it private (chmod 700)."
            )

    def path(self, name: str) -> Path:
        """Return where an entry lies, whether it is there or not."""
        return self.root / name

    def names(self, prefix: str) -> list[str]:
        """List the entries whose name begins so."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if entry.name.startswith(prefix))
        except OSError:
            return []

    def inode(self, name: str) -> int | None:
        """Tell an entry from a later one of its name; None where there is none."""
        try:
            return self.path(name).stat().st_ino
        except OSError:
            return None

    def touch(self, name: str) -> bool:
        """Say whether an entry is there, and count it as used."""
        try:
            os.utime(self.path(name))
        except OSError:
            return False
        return True

    def read(self, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """Map the arrays of an entry into memory, shared with the other workers; None where it is not there.

        An entry that cannot be read is taken away. To be read does not count as use: see `touch`.
        """
        folder = self.path(name)
        if self.inode(name) is None:
            return None
        try:
            info = json.loads((folder / _INFO).read_text(encoding="ascii"))
            # Mode "c": torch wants an array that could be written; nothing writes to it.
            arrays = {each: np.load(folder / f"{each}.npy", mmap_mode="c") for each in info["arrays"]}
            return arrays, dict(info["about"])
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            self.remove(name)
            return None

    def put(
        self, name: str, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], *, max_share: float = 1.0
    ) -> bool:
        """Add an entry, and take away what is then too much.

        Args:
            name: Its kind, a dot, and what tells it from others of its kind.
            arrays: What it holds.
            about: What is told of them, as JSON carries it.
            max_share: Of the bound, for all entries of its kind together.

        Returns:
            False where it does not fit the bound or the disk; the cache is then as it was, or smaller.
        """
        n_bytes = sum(array.nbytes for array in arrays.values()) + _FOLDER_OVERHEAD
        of_kind = int(max_share * self.max_bytes)
        if n_bytes > of_kind:
            return False
        try:
            with self.locked([_CHANGES]):
                left = self._shrink({f"{name.split('.')[0]}.": of_kind - n_bytes, "": self.max_bytes - n_bytes})
                self._write(name, arrays, about)
                self._note_bytes(left + n_bytes)
        except OSError:
            return False
        return True

    def _write(self, name: str, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
        temporary = self.root / f"{_TEMPORARY}{os.getpid()}"
        try:
            temporary.mkdir(mode=0o700)
            for each, array in arrays.items():
                np.save(temporary / f"{each}.npy", array, allow_pickle=False)
            info = {"arrays": list(arrays), "about": dict(about)}
            (temporary / _INFO).write_text(json.dumps(info), encoding="ascii")
            if not self.path(name).exists():
                temporary.rename(self.path(name))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Take an entry away, if it is there."""
        grave = self.root / f"{_TEMPORARY}{os.getpid()}.removed"
        try:
            self.path(name).rename(grave)
        except OSError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    def n_bytes(self) -> int:
        """Say what all entries took when any worker last added one [bytes]: to sum them takes a look at every file."""
        try:
            return int((self.root / _LOCKS / _BYTES).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    @contextmanager
    def locked(self, names: Iterable[str]) -> Iterator[None]:
        """Hold the locks of some names; the system frees those of a worker that dies.

        In one order everywhere, so that two workers never wait for each other.

        Raises:
            OSError: There are no locks to be had, since the disk fails or the folder belongs to others.
        """
        stripes = sorted({_stripe(name) for name in names})
        with ExitStack() as held:
            for stripe in stripes:
                file = held.enter_context(self._open_lock(stripe))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _open_lock(self, stripe: str) -> BinaryIO:
        """Open a lock file; where the folder was taken away under the running server, it is made again."""
        path = self.root / _LOCKS / stripe
        try:
            return path.open("wb")
        except FileNotFoundError:
            if not self._make():
                raise
        return path.open("wb")

    def _make(self) -> bool:
        """Make the folder where it does not exist; say whether it is this user's alone."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.root.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            return False
        (self.root / _LOCKS).mkdir(mode=0o700, exist_ok=True)
        return True

    def _entries(self) -> list[tuple[int, str, int]]:
        """List (last use, name, bytes) of the entries."""
        found = []
        for name in self.names(""):
            if name == _LOCKS:
                continue
            try:
                files = list(os.scandir(self.path(name)))
                found.append((self.path(name).stat().st_mtime_ns, name, sum(file.stat().st_size for file in files)))
            except OSError:  # another worker took it away
                continue
        return found

    def _shrink(self, allowed: Mapping[str, int]) -> int:
        """Take away the least recently used until the names of each prefix hold at most so many bytes.

        Returns:
            How many are left, of all names.
        """
        for name in self.names(_TEMPORARY):  # of workers that died: who writes holds the lock that we hold
            shutil.rmtree(self.path(name), ignore_errors=True)
        entries = sorted(self._entries())
        for prefix, most in allowed.items():
            n_bytes = sum(size for _, name, size in entries if name.startswith(prefix))
            for entry in [entry for entry in entries if entry[1].startswith(prefix)]:
                if n_bytes <= most:
                    break
                self.remove(entry[1])
                entries.remove(entry)
                n_bytes -= entry[2]
        return sum(size for _, _, size in entries)

    def _note_bytes(self, n_bytes: int) -> None:
        """Write down, for all workers to tell, what the entries take; by one rename, as entries come."""
        partial = self.root / _LOCKS / f"{_BYTES}.partial"
        partial.write_text(str(n_bytes), encoding="ascii")
        partial.replace(self.root / _LOCKS / _BYTES)


def _stripe(name: str) -> str:
    """Return the lock file of a name: there are few, since removing one that somebody waits for is a race."""
    return name if name == _CHANGES else f"{sum(name.encode()) % _N_LOCKS:03d}"
