"""The tokens of a TorchServe on this host."""

import json
from dataclasses import dataclass
from pathlib import Path

from mapstack.errors import ConfigError

KEY_FILE = "key_file.json"


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
        try:
            return str(json.loads(self.file.read_text(encoding="utf-8"))[kind]["key"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"token file '{self.file}' cannot be read; the server writes it when it starts; start it, or give a "
                "token."
            ) from None
