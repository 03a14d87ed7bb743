"""The journals: which samples a part holds, where, and with which checksum.

A sample is done when its line is on disk, and the line is written after the bytes are.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mapstack.errors import StoreError
from mapstack.store.layout import Part, list_parts
from mapstack.store.lines import decode_line, encode_line, iter_lines

TAR_BLOCK = 512
TAR_RECORD = 20 * TAR_BLOCK


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed sample.

    Attributes:
        key: The key of the sample, as its shard gave it.
        name: What its members are called in the tar, before the first dot.
        offset: Where its first tar header begins [bytes].
        size: From there to the end of its last padded block [bytes].
        sha256: Of that whole range, headers included.
        members: For each suffix (`stack.npy`, `json`) the offset within the range, and the size, of its data [bytes].
    """

    key: str
    name: str
    offset: int
    size: int
    sha256: str
    members: dict[str, tuple[int, int]]

    @property
    def end(self) -> int:
        """Where the next sample begins [bytes]."""
        return self.offset + self.size

    def encode(self) -> bytes:
        """The line of the journal."""
        return encode_line(asdict(self))

    @classmethod
    def decode(cls, line: bytes) -> "Entry | None":
        """Read a line of the journal; None if it is torn or damaged."""
        fields = decode_line(line)
        if fields is None or fields.keys() != set(cls.__dataclass_fields__):
            return None
        fields["members"] = {suffix: (offset, size) for suffix, (offset, size) in fields["members"].items()}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Journal:
    """What a journal holds.

    Attributes:
        entries: The whole lines, in order.
        line_ends: Where each of those ends [bytes].
        bad_lines: The numbers, from 1, of the lines that are torn or damaged.
        n_bytes: Size of the file.
    """

    entries: list[Entry]
    line_ends: list[int]
    bad_lines: list[int]
    n_bytes: int

    @property
    def n_leading(self) -> int:
        """How many entries stand before the first bad line."""
        return self.bad_lines[0] - 1 if self.bad_lines else len(self.entries)


def read_journal(path: Path) -> Journal:
    """Read a journal, which may be missing (a part that is just being created) or end in a torn line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    journal = Journal([], [], [], len(content))
    for number, (offset, line) in enumerate(iter_lines(content), start=1):
        entry = Entry.decode(line)
        if entry is None:
            journal.bad_lines.append(number)
        else:
            journal.entries.append(entry)
            journal.line_ends.append(offset + len(line))
    return journal


def padded_end(end: int) -> int:
    """Say the size [bytes] of a sealed tar whose last sample ends at `end`.

    Two zero blocks end a tar, and zeros fill it up to whole records of 10,240 bytes, as GNU tar and `tarfile` do.
    """
    return -(-(end + 2 * TAR_BLOCK) // TAR_RECORD) * TAR_RECORD


def read_committed(folder: Path, part: Part) -> Journal:
    """Read the samples of a part that count as done.

    In a part that is still being written those are the lines before the first bad one: the next may be half written.

    Raises:
        StoreError: A sealed part has no journal or a damaged one, or the tar is gone.
    """
    is_sealed = part.sealed(folder).exists()  # asked first: once sealed, the journal is final
    journal = read_journal(part.journal(folder))
    if is_sealed and not journal.bad_lines and journal.entries:
        return journal
    if is_sealed:
        reason = f"line {journal.bad_lines[0]} of its journal is damaged" if journal.bad_lines else "it has no journal"
        raise damaged_part(folder, part, reason)
    n_leading = journal.n_leading
    journal = Journal(journal.entries[:n_leading], journal.line_ends[:n_leading], [], journal.n_bytes)
    if journal.entries:
        os.close(open_tar(folder, part))
    return journal


def damaged_part(folder: Path, part: Part, reason: str) -> StoreError:
    """The error for a part that cannot be used as it is."""
    return StoreError(
        f"stack store '{folder}' is damaged in {part.stem}: {reason}; a part is used only whole; remove its .tar and "
        ".jsonl and run the extraction again, which computes those samples anew."
    )


def open_tar(folder: Path, part: Part) -> int:
    """Open the tar of a part for reading, sealed or not.

    Raises:
        StoreError: There is none.
    """
    # The partial tar may get its final name between the first look and the second; hence the third.
    for path in (part.sealed(folder), part.partial(folder), part.sealed(folder)):
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
    raise damaged_part(folder, part, "its tar is missing")


@dataclass(frozen=True, slots=True)
class Tally:
    """What the journals of a store count.

    Attributes:
        done: The keys of the committed samples.
        n_bytes: Their size in the tars.
        n_unsealed: How many parts are not sealed.
    """

    done: frozenset[str]
    n_bytes: int
    n_unsealed: int


def tally(folder: Path) -> Tally:
    """Count what is done.

    Raises:
        StoreError: A part is damaged.
    """
    done: set[str] = set()
    n_bytes = n_unsealed = 0
    for part in list_parts(folder):
        entries = read_committed(folder, part).entries
        done.update(entry.key for entry in entries)
        n_bytes += sum(entry.size for entry in entries)
        n_unsealed += not part.sealed(folder).exists()
    return Tally(frozenset(done), n_bytes, n_unsealed)
