"""What survives a restart of this host, and what must not: named by the id that the kernel gives every boot."""

import shutil
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARK = "boot_id"
_INFO = "info.json"  # every entry of the cache has one


def boot_id() -> str:
    """Return what names the current boot of this host; "" where the system does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def forget_entries_of_another_boot(cache: Path) -> None:
    """Empty a cache that was filled before this host was started.

    Its files are not synced and have no checksum: after a power cut an entry may be there with zeros in it. Nothing is
    taken away but entries, whatever else lies in the folder.

    Args:
        cache: The folder; made where it does not exist.

    Raises:
        OSError: It cannot be made or read.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark, current = cache / _MARK, boot_id()
    if current and mark.is_file() and mark.read_text(encoding="ascii", errors="replace") == current:
        return
    for entry in list(cache.iterdir()):
        if (entry / _INFO).is_file():
            shutil.rmtree(entry)
    mark.write_text(current, encoding="ascii")
