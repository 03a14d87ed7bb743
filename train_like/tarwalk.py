"""The strict walk of a tar: every header's checksum holds, every block has an owner, two zero blocks close it.

Stock readers stop without a word where a tar was cut between two members, or where a page of it was zeroed, and the
samples behind that place are lost silently. This walk raises instead, after it has yielded the members before it.

The errors here do not name the shard: the record they end in does.
"""

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, NamedTuple, NoReturn, Self, cast

from mapstack.errors import ShardError

BLOCK_BYTES = 512
MAX_MEMBER_BYTES = 64 * 2**20
# Extension headers hold names: a longer one is damage, or an attack.
MAX_EXTENSION_BYTES = 2**20
# Two zero blocks, then zeros up to a full record of 20 blocks. Where more follow, pages that held members may have been
# zeroed, and nothing else in the tar would tell.
MAX_TAIL_BYTES = (2 + 20) * BLOCK_BYTES
# Of a packed shard, once it has unpacked to more than one member may hold: pictures hardly shrink, while gzip can
# write a thousand zeros in a byte, and members of them without end.
MAX_UNPACK_RATIO = 100

_SKIP_BYTES = 2**20
_ZEROS = bytes(BLOCK_BYTES)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=\n]+)=")
_PAX_SIZE = re.compile(rb"[0-9]{1,15}")
_REGULAR = frozenset((b"0", b"\0", b"7"))
_EXTENSIONS = frozenset((b"x", b"g", b"L", b"K"))
_BODILESS = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe"}


class TarMember(NamedTuple):
    """One member of a tar.

    Attributes:
        name: As the tar has it: data, never to be used as a path.
        offset: Where its bytes begin in the unpacked tar [byte].
        size: How many there are [byte].
        flaw: Why it must not be read; None for a regular file within the ceiling.
    """

    name: str
    offset: int
    size: int
    flaw: str | None


class _Header(NamedTuple):
    kind: bytes
    name: bytes
    size: int


def scheme_of(shard: str) -> str:
    """Name the scheme of a shard: `pipe`, `https`, ...; `file` for a plain path.

    Example:
        >>> scheme_of("PIPE:cat a.tar"), scheme_of("shards/a.tar"), scheme_of("./a:b.tar")
        ('pipe', 'file', 'file')
    """
    match = _SCHEME.match(shard)
    return match[1].lower() if match else "file"


def is_packed(shard: str) -> bool:
    """Say, by its name, whether a shard is a gzipped tar."""
    return shard.lower().endswith((".gz", ".tgz"))


def is_seekable(shard: str) -> bool:
    """Say, by its name, whether any byte of a shard can be read without reading the ones before it."""
    return scheme_of(shard) == "file" and not is_packed(shard)


class ShardReader:
    """Reads byte ranges of a shard; forward only where the shard cannot be seeked.

    Attributes:
        is_seekable: Any range can be read at any time.
        size: Of the file as it lies on disk [byte]; None for a URL.

    Raises:
        ShardError: The shard cannot be opened.
    """

    def __init__(self, shard: str) -> None:
        """Open a local path, or a URL that webdataset's `gopen` reads."""
        self.is_seekable = is_seekable(shard)
        self._raw = _open(shard)
        self.size = os.fstat(self._raw.fileno()).st_size if scheme_of(shard) == "file" else None
        self._packed = _Counted(self._raw) if is_packed(shard) else None
        # gzip asks a file for nothing but `read` where it only goes forward.
        self._file: Any = gzip.GzipFile(fileobj=cast(IO[bytes], self._packed)) if self._packed else self._raw
        self._position = 0
        self._failure: str | None = None

    def __enter__(self) -> Self:
        """Enter the `with` block that closes the shard."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the shard."""
        # A downloader that is stopped early ends with an error of its own.
        with suppress(OSError):
            self._file.close()
            self._raw.close()

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`; fewer only where the shard ends.

        Raises:
            ShardError: The bytes cannot be read, lie before the place that a forward-only reader has reached, or are
                those of a bomb: more than MAX_UNPACK_RATIO times the packed bytes they come from.
        """
        try:
            if self.is_seekable:
                self._position = self._file.seek(offset)
            else:
                self._skip_to(offset)
            data: bytes = self._file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            # The text of some errors holds the URL, and with it a password.
            self._failure = getattr(error, "strerror", None) or type(error).__name__
            raise ShardError(
                f"cannot be read from byte {offset} ({self._failure}); check or repack the shard."
            ) from error
        self._position += len(data)
        self._refuse_bomb()
        return data

    @property
    def position(self) -> int:
        """How far the unpacked shard was read [byte]."""
        return self._position

    def abandon(self) -> None:
        """End the program that a URL is read through, if there is one, and with it a read that waits for it."""
        program = getattr(self._raw, "proc", None)
        if program is not None:
            program.kill()

    def _skip_to(self, offset: int) -> None:
        if self._failure:
            # After a failed read the place in the stream is unknown: what comes next could be another sample's bytes.
            raise ShardError(f"cannot be read behind an earlier error ({self._failure}); check or repack the shard.")
        if offset < self._position:
            raise ShardError(f"is at byte {self._position} and can only be read forward; byte {offset} is behind it.")
        while self._position < offset and (skipped := self._file.read(min(offset - self._position, _SKIP_BYTES))):
            self._position += len(skipped)
            self._refuse_bomb()

    def _refuse_bomb(self) -> None:
        if self._packed and self._position > max(MAX_MEMBER_BYTES, MAX_UNPACK_RATIO * self._packed.n_bytes):
            raise ShardError(
                f"unpacks to more than {MAX_UNPACK_RATIO} times its size at byte {self._position}, as no pictures do; "
                "repack the shard, or store it unpacked."
            )


class _Counted:
    """A binary file that counts what was read of it [byte]."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.n_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        self.n_bytes += len(data)
        return data


def _open(shard: str) -> Any:
    try:
        if scheme_of(shard) == "file":
            return open(shard, "rb")
        # Imported here: webdataset brings torch with it, and local shards need neither.
        from webdataset.gopen import gopen

        return gopen(shard, "rb")
    except OSError as error:
        raise ShardError(f"cannot be opened ({error.strerror}); check its path and rights.") from error
    except ValueError as error:
        raise ShardError(
            f"has the scheme '{scheme_of(shard)}', which nothing here opens; use pipe: instead."
        ) from error


def walk_tar(reader: ShardReader) -> Iterator[TarMember]:
    """Yield the members of a tar in their order, by their headers alone.

    Folders are left out. PAX and GNU long names are resolved.

    Raises:
        ShardError: The tar is cut, damaged or of a kind that is refused. All members yielded before are whole, except
            that the last of them may be cut.
    """
    offset = 0
    defaults: dict[str, bytes] = {}
    extension: dict[str, bytes] | None = None
    while (block := _read_block(reader, offset)) != _ZEROS:
        header = _parse_header(block, offset)
        offset += BLOCK_BYTES
        if header.kind == b"g":
            defaults |= _read_extension(reader, header, offset)
            offset += _padded(header.size)
        elif header.kind in _EXTENSIONS:
            extension = (extension or {}) | _read_extension(reader, header, offset)
            offset += _padded(header.size)
        else:
            member = _describe(header, defaults | (extension or {}), offset, reader.is_seekable)
            extension = None
            offset += _padded(member.size)
            if header.kind != b"5":
                yield member
    if extension is not None:
        _damaged(offset, "an extended header has no member behind it")
    _check_end(reader, offset)


def _read_block(reader: ShardReader, offset: int) -> bytes:
    block = reader.read(offset, BLOCK_BYTES)
    if len(block) < BLOCK_BYTES:
        raise ShardError(
            f"is cut: it ends before byte {offset + BLOCK_BYTES}, but two zero blocks must close a tar; "
            "restore or repack the shard."
        )
    return block


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _damaged(offset: int, what: str) -> NoReturn:
    raise ShardError(f"is damaged at byte {offset}: {what}; restore or repack the shard.")


def _parse_header(block: bytes, offset: int) -> _Header:
    """Parse one header block.

    Source:
        POSIX.1-2017, pax, "ustar Interchange Format".
    """
    # The checksum is taken with eight spaces in its own place.
    if _parse_number(block[148:156], offset) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        _damaged(offset, "the checksum of a header does not hold")
    name = block[:100].partition(b"\0")[0]
    # Only POSIX has the prefix here: GNU keeps times in its place.
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    kind = block[156:157]
    if kind not in _REGULAR and kind not in _BODILESS and kind not in _EXTENSIONS:
        _damaged(offset, f"a member is of type {kind!r}, but only regular files may stand in a shard")
    return _Header(kind, name, _parse_number(block[124:136], offset))


def _parse_number(field: bytes, offset: int) -> int:
    if field[:5] == b"\x80\0\0\0\0":  # GNU: a size beyond eleven octal digits is binary
        return int.from_bytes(field[5:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:
        _damaged(offset, "a number in a header is not octal")
    return int(match[1] or b"0", 8)


def _read_extension(reader: ShardReader, header: _Header, body: int) -> dict[str, bytes]:
    if header.size > MAX_EXTENSION_BYTES:
        _damaged(body, f"an extended header of {header.size} bytes is longer than {MAX_EXTENSION_BYTES}")
    data = reader.read(body, header.size)
    if header.kind == b"L":
        return {"path": data.partition(b"\0")[0]}
    return _parse_pax(data, body) if header.kind in (b"x", b"g") else {}


def _parse_pax(data: bytes, body: int) -> dict[str, bytes]:
    """Keep the records that say where a member is and what it is called."""
    records = {}
    start = 0
    while start < len(data):
        match = _PAX_RECORD.match(data, start)
        end = start + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            _damaged(body + start, "an extended header does not parse")
        keyword = match[2].decode("ascii", "replace")
        if keyword in ("path", "size") or keyword.startswith("GNU.sparse."):
            records["sparse" if keyword.startswith("GNU") else keyword] = data[match.end() : end - 1]
        start = end
    return records


def _describe(header: _Header, extension: dict[str, bytes], body: int, is_seekable: bool) -> TarMember:
    name = (extension.get("path") or header.name).decode("utf-8", "surrogateescape")
    if header.kind in _BODILESS:
        return TarMember(
            name, body, 0, f"is {_BODILESS[header.kind]}, but only regular files are read; store its bytes."
        )
    size = header.size
    if extension.get("size"):
        if not _PAX_SIZE.fullmatch(extension["size"]):
            _damaged(body, "the size in an extended header is not a number of at most 15 digits")
        size = int(extension["size"])
    if size > MAX_MEMBER_BYTES and not is_seekable:
        # To pass over it would mean to unpack it.
        _damaged(body, f"a member of {size} bytes is longer than {MAX_MEMBER_BYTES}, the most that is unpacked")
    flaw = None
    if size > MAX_MEMBER_BYTES:
        flaw = f"has {size} bytes, but {MAX_MEMBER_BYTES} is the most that is read; store a smaller file."
    elif "sparse" in extension:
        flaw = "is a sparse file, but only regular files are read; store its bytes."
    return TarMember(name, body, size, flaw)


def _check_end(reader: ShardReader, offset: int) -> None:
    """Check what follows the zero block at `offset`: another one, then zeros to the end of the record at most."""
    second = _read_block(reader, offset + BLOCK_BYTES)
    # Reading past the end also makes gzip check its own checksum.
    rest = reader.read(offset + 2 * BLOCK_BYTES, MAX_TAIL_BYTES - 2 * BLOCK_BYTES + 1)
    if second.strip(b"\0") or rest.strip(b"\0"):
        _damaged(offset, "zero blocks stand there, but more than zeros follows")
    if len(rest) > MAX_TAIL_BYTES - 2 * BLOCK_BYTES:
        _damaged(offset, f"more than {MAX_TAIL_BYTES} zeros stand there, where a tar writer leaves fewer")
