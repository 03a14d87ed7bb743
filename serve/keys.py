"""The tokens of a TorchServe on this host."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mapstack.errors import ConfigError

KEY_FILE = "key_file.json"
_N_TRIES, _WAIT_S = 10, 0.05


@dataclass(frozen=True)
class Keys:
    """The tokens of a server on this host, read anew for every call, since they are renewed.

    Attributes:
        file: `key_file.json` of the run folder.
    """

    file: Path

    def read(self, kind: str) -> str:
        """Return the token of a kind: inference, management or API.

        Raises:
            ConfigError: The file is not there or holds none.
        """
        for left in range(_N_TRIES - 1, -1, -1):
            try:
                return str(json.loads(self.file.read_text(encoding="utf-8"))[kind]["key"])
            except ValueError:
                if left:  # the server is about to write it
                    time.sleep(_WAIT_S)
            except (OSError, KeyError, TypeError):
                break
        raise ConfigError(
            f"token file '{self.file}' cannot be read; the server writes it when it starts; start it, or give a token."
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other clients of this host from renewing: a new token ends the one that another has just got."""
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
