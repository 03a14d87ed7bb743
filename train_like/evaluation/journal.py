"""What was scored, one checksummed line a picture and stage: an evaluation that was stopped goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapstack.errors import StoreError
from mapstack.store.lines import decode_line, encode_line, iter_lines


class Journal:
    """The scores of an evaluation on disk.

    Args:
        folder: Of the evaluation.
        signature: What the scores depend on; scores of another signature are not continued.
        overwrite: Discard what is there.

    Raises:
        StoreError: The folder holds an evaluation of another signature.
    """

    def __init__(self, folder: Path, signature: Mapping[str, Any], *, overwrite: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "scores.jsonl"
        self._scores: dict[str, dict[str, Any]] = {}
        self._digests: dict[tuple[str, str], str] = {}
        head = {"signature": json.loads(json.dumps(signature))}
        if overwrite:
            self._path.unlink(missing_ok=True)
        lines = self._read()
        if not lines:
            self._path.write_bytes(encode_line(head))
            return
        _check_signature(folder, lines[0].get("signature", {}), head["signature"])
        for line in lines[1:]:
            self._keep(line)

    def stage(self, name: str) -> dict[str, Any]:
        """Return the scores of a stage, by key."""
        return self._scores.setdefault(name, {})

    def holds(self, stage: str, key: str, sha256: str) -> bool:
        """Say whether a picture was scored, and not another one of its key."""
        return self._digests.get((stage, key)) == sha256

    def add(self, stage: str, key: str, sha256: str, scores: Mapping[str, Any]) -> None:
        """Write the scores of the picture of these bytes."""
        line = {"stage": stage, "key": key, "sha256": sha256, "scores": scores}
        with self._path.open("ab") as file:
            file.write(encode_line(line))
            file.flush()
            os.fsync(file.fileno())
        self._keep(line)

    def _keep(self, line: Mapping[str, Any]) -> None:
        self.stage(line["stage"])[line["key"]] = line["scores"]
        self._digests[line["stage"], line["key"]] = line["sha256"]

    def _read(self) -> list[dict[str, Any]]:
        """Read up to the first line that a kill tore, and cut that off."""
        if not self._path.exists():
            return []
        content = self._path.read_bytes()
        whole: list[dict[str, Any]] = []
        for offset, line in iter_lines(content):
            fields = decode_line(line)
            if fields is None:
                os.truncate(self._path, offset)
                break
            whole.append(fields)
        return whole


def _check_signature(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in wanted if stored.get(name) != wanted[name]]
    if differing:
        raise StoreError(
            f"evaluation '{folder}' was made with another {differing[0]}; scores of one evaluation belong to one "
            "configuration; use another output, or overwrite=true to discard it."
        )
