"""The manifest: what the store was computed with, and whether it is complete."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from mapstack.errors import InputError, StoreError
from mapstack.store.disk import write_atomic
from mapstack.store.layout import MANIFEST

FORMAT = "mapstack stack store"
FORMAT_VERSION = 2
"""What is written. Version 1 had no compressed members, which its readers would take for damage, and no `u` and `v`."""

_READABLE_VERSIONS = (1, 2)
_IMPLIED = {"precision": "32-true"}  # of a store that says nothing of it
_UNTOLD = ("prompts", "prompts_padding")  # by an earlier mapstack: its stores are gone on with, whatever they were
_MAX_SHOWN = 80


def normalise(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a caller's manifest into the form in which JSON gives it back.

    Raises:
        InputError: It has no mapping `identity`, or holds something that JSON cannot carry.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(manifest), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the manifest cannot be written as JSON ({error}); it holds text, finite numbers, booleans, lists and "
            "mappings; convert the rest."
        ) from None
    if not isinstance(plain.get("identity"), dict):
        raise InputError(
            "the manifest has no mapping 'identity'; a store is resumed only with the same identity; put there every "
            "setting that changes the records."
        )
    return plain


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with its format, its version and its own checksum, so that it appears at once."""
    write_atomic(folder / MANIFEST, _render({**manifest, "format": FORMAT, "format_version": FORMAT_VERSION}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a store; that of an older version of the format in the words of this one.

    Raises:
        StoreError: There is none, it is damaged, or a newer version of the format wrote it.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"'{folder}' is no stack store; a store has a {MANIFEST}; name the folder that the extraction wrote."
        ) from None
    manifest = _parse(content)
    if manifest.get("format") != FORMAT:
        raise StoreError(
            f"'{folder / MANIFEST}' is not the manifest of a stack store, or is damaged; it is JSON that says format "
            f"'{FORMAT}'; restore it, or use another folder."
        )
    if manifest.get("format_version") not in _READABLE_VERSIONS:
        readable = " and ".join(map(str, _READABLE_VERSIONS))
        raise StoreError(
            f"stack store '{folder}' has format version {manifest.get('format_version')}; this mapstack reads versions "
            f"{readable}; use the mapstack that wrote it, or a newer one."
        )
    if _render(manifest) != content:
        raise StoreError(
            f"'{folder / MANIFEST}' was changed after it was written; it vouches for every record and carries its own "
            "sha256; restore it, or write the store anew with overwrite: true."
        )
    return _upgrade(manifest)


def names_another_format(folder: Path) -> bool:
    """Say whether the folder holds a manifest.json that some other program wrote."""
    path = folder / MANIFEST
    # Looked for in the bytes, because our own manifest with a bit flipped may no longer parse.
    return path.exists() and FORMAT.encode() not in path.read_bytes()


def require_same_identity(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to mix records of two configurations.

    Args:
        folder: The store, for the message.
        stored: The identity that the store was written with.
        given: That of this run.

    Raises:
        StoreError: A field differs; the first is named with both values.
    """
    ours, theirs = _IMPLIED | _flatten(given), _IMPLIED | _flatten(stored)
    compared = (ours.keys() | theirs.keys()).difference(name for name in _UNTOLD if name not in theirs)
    differing = sorted(name for name in compared if _show(ours, name) != _show(theirs, name))
    if not differing:
        return
    first, others = differing[0], differing[1:]
    also = f" (and differs in {', '.join(others)})" if others else ""
    raise StoreError(
        f"stack store '{folder}' was written with {first} = {_short(theirs, first)}, this run has "
        f"{_short(ours, first)}{also}; one store holds one configuration; use another output folder or the same "
        "configuration, or discard the store with overwrite: true."
    )


def _render(manifest: Mapping[str, Any]) -> bytes:
    fields = {name: value for name, value in manifest.items() if name != "sha256"}
    fields["sha256"] = sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return json.dumps(fields, indent=2, sort_keys=True).encode() + b"\n"


def _upgrade(manifest: dict[str, Any]) -> dict[str, Any]:
    """Say what goes without saying in version 1, so that a store of it is resumed by the same configuration."""
    if manifest["format_version"] != 1:
        return manifest
    return {**manifest, "identity": {"compress": "none", **manifest["identity"]}}


def _parse(content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _flatten(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _show(flat: Mapping[str, Any], name: str) -> str:
    # As JSON, so that 1 and true and 1.0 are three different values.
    return json.dumps(flat[name], sort_keys=True) if name in flat else "nothing"


def _short(flat: Mapping[str, Any], name: str) -> str:
    shown = _show(flat, name)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
