"""A folder of entries, bounded in bytes, that the workers of one host share: the least recently used goes first.

An entry is a folder of `.npy` files and one `info.json`; it appears and goes by one rename, so that a reader meets it
whole or not at all, and what a reader has mapped into memory outlives its name. Nothing here is synced to the disk:
what a power cut takes is computed again.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapstack.errors import ConfigError

_INFO = "info.json"
_TEMPORARY = "tmp."
_LOCKS = "locks"
_CHANGES = "changes"
_N_LOCKS = 256
_FOLDER_OVERHEAD = 8192  # what the names and the info take, generously


class CacheFolder:
    """The files of the cache.

    Args:
        root: A folder that no other user may enter; it is made where it does not exist.
        max_bytes: Of all entries together.

    Attributes:
        last_known_bytes: Of all entries, when this process last added one; to sum them takes a look at every file.

    Raises:
        ConfigError: The folder cannot be made, or others may enter it.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.last_known_bytes = 0
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            (root / _LOCKS).mkdir(mode=0o700, exist_ok=True)
            status = root.stat()
        except OSError as error:
            raise ConfigError(
                f"cache folder '{root}' cannot be made ({error.strerror}); the server keeps stacks there; set "
                "cache.folder to one that it may write."
            ) from None
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise ConfigError(
                f"cache folder '{root}' can be written by others; maps are patients' data, and foreign ones would be "
                "served; make it private (chmod 700)."
            )

    def path(self, name: str) -> Path:
        """Return where an entry lies, whether it is there or not."""
        return self.root / name

    def names(self, prefix: str) -> list[str]:
        """List the entries whose name begins so."""
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(prefix))

    def touch(self, name: str) -> bool:
        """Say whether an entry is there, and count it as used."""
        try:
            os.utime(self.path(name))
        except OSError:
            return False
        return True

    def read(self, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """Map the arrays of an entry into memory, shared with the other workers; None where it is not there.

        An entry that cannot be read is taken away.
        """
        folder = self.path(name)
        if not self.touch(name):
            return None
        try:
            info = json.loads((folder / _INFO).read_text(encoding="ascii"))
            # Mode "c": torch wants an array that could be written; nothing writes to it.
            arrays = {each: np.load(folder / f"{each}.npy", mmap_mode="c") for each in info["arrays"]}
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            self.remove(name)
            return None
        return arrays, info["about"]

    def put(self, name: str, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> bool:
        """Add an entry, and take away what is then too much.

        Returns:
            False where it does not fit the bound or the disk; the cache is then as it was, or smaller.
        """
        n_bytes = sum(array.nbytes for array in arrays.values()) + _FOLDER_OVERHEAD
        if n_bytes > self.max_bytes:
            return False
        temporary = self.root / f"{_TEMPORARY}{os.getpid()}"
        with self.locked([_CHANGES]):
            try:
                self.last_known_bytes = self._shrink(self.max_bytes - n_bytes) + n_bytes
                temporary.mkdir(mode=0o700)
                for each, array in arrays.items():
                    np.save(temporary / f"{each}.npy", array, allow_pickle=False)
                info = {"arrays": list(arrays), "about": dict(about)}
                (temporary / _INFO).write_text(json.dumps(info), encoding="ascii")
                if not self.path(name).exists():
                    temporary.rename(self.path(name))
            except OSError:
                return False
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return True

    def remove(self, name: str) -> None:
        """Take an entry away, if it is there."""
        grave = self.root / f"{_TEMPORARY}{os.getpid()}.removed"
        try:
            self.path(name).rename(grave)
        except OSError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    def n_bytes(self) -> int:
        """Sum the files of all entries [bytes]."""
        return sum(size for _, _, size in self._entries())

    @contextmanager
    def locked(self, names: Iterable[str]) -> Iterator[None]:
        """Hold the locks of some names; the system frees those of a worker that dies.

        In one order everywhere, so that two workers never wait for each other.
        """
        stripes = sorted({_stripe(name) for name in names})
        with ExitStack() as held:
            for stripe in stripes:
                file = held.enter_context((self.root / _LOCKS / stripe).open("wb"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

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

    def _shrink(self, allowed: int) -> int:
        """Take away the least recently used until at most `allowed` bytes are left; say how many are."""
        for name in self.names(_TEMPORARY):  # of workers that died: who writes holds the lock that we hold
            shutil.rmtree(self.path(name), ignore_errors=True)
        entries = sorted(self._entries())
        n_bytes = sum(size for _, _, size in entries)
        for _, name, size in entries:
            if n_bytes <= allowed:
                break
            self.remove(name)
            n_bytes -= size
        return n_bytes


def _stripe(name: str) -> str:
    """Return the lock file of a name: there are few, since removing one that somebody waits for is a race."""
    return name if name == _CHANGES else f"{sum(name.encode()) % _N_LOCKS:03d}"
