"""The index of the input shards: which samples there are, where their bytes lie, and what is wrong with the rest.

The shards are walked once, before any work starts. Whatever they hold is then either an entry, which the job will
explain, or a problem, which it will name. Nothing here opens a member.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from braceexpand import braceexpand

from mapstack.errors import ShardError
from train_like.errors import StoppedError
from train_like.tarwalk import ShardReader, TarMember, scheme_of, walk_tar
from train_like.watchdog import watch

# The whole of what is ever opened. Pickles and whatever else could run code are not among it.
IMAGE_SUFFIXES = ("jpeg", "jpg", "png", "dcm")
SUFFIXES = ("masks.npz", "json", *IMAGE_SUFFIXES)

_N_NAMED = 3  # of the duplicate keys, in the sentence that refuses them


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample.

    Attributes:
        suffix: In lower case, without the dot.
        offset: Where its bytes begin in the unpacked shard [byte].
        size: How many there are [byte].
    """

    suffix: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample that can be read. Its key is data, never to be used as a path."""

    key: str
    shard: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One sample that cannot be read; or, where the key is None, a shard of which some or all is lost."""

    key: str | None
    shard: str
    reason: str


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """What the shards hold.

    Attributes:
        entries: The samples to work on, in the order of the shards.
        problems: The samples that cannot be read, and the places where a shard is cut or damaged.
        shards: The shards that were walked.
        n_ignored: How many members have another suffix; they are never opened.
        digest: sha256 over the names (without folders) and sizes of the shards, and over the keys and the places of the
            samples: the identity of the shard list, wherever it is mounted.
    """

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]
    shards: tuple[str, ...]
    n_ignored: int
    digest: str

    @property
    def n_expected(self) -> int:
        """Count what the job has to account for: done + failed = expected.

        Every entry counts one. Every problem counts one and has failed already: also a cut, behind which nobody knows
        how many samples there were, so that the books of a damaged shard never balance without a failure.
        """
        return len(self.entries) + len(self.problems)

    def limited(self, limit: int | None) -> Self:
        """Keep the first `limit` entries over all ranks (None: all of them). The problems stay, and the digest."""
        return replace(self, entries=self.entries[:limit])


def expand_shards(shards: str | Sequence[str], allowed_schemes: Sequence[str] = ("file",)) -> list[str]:
    """Expand braces, wildcards and `::` lists into single shards, as WebDataset users write them.

    Args:
        shards: One pattern or several, such as `shards/phantom-{000000..000003}.tar`.
        allowed_schemes: What may stand before a colon. `pipe` runs the rest in a shell.

    Raises:
        ShardError: A scheme is not allowed, a file is missing, or nothing is left.

    Example:
        >>> expand_shards("s3://chest/{08..10}.tar", allowed_schemes=["s3"])
        ['s3://chest/08.tar', 's3://chest/09.tar', 's3://chest/10.tar']
    """
    patterns = [shards] if isinstance(shards, str) else shards
    parts = [part for pattern in patterns for part in pattern.split("::") if part.strip()]
    expanded = [shard for part in parts for shard in _expand(part, allowed_schemes)]
    if not expanded:
        raise ShardError("data.shards names no shard; name at least one tar of samples.")
    return expanded


def _expand(pattern: str, allowed_schemes: Sequence[str]) -> Iterator[str]:
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise ShardError(f"shard pattern '{pattern}' has a brace without its partner; close it.") from error
    for name in names:
        scheme = scheme_of(name)
        if scheme not in allowed_schemes:
            raise ShardError(
                f"shard '{name}' has the scheme '{scheme}', which data.allowed_schemes ({', '.join(allowed_schemes)}) "
                "does not hold; copy the shard to disk, or allow the scheme."
            )
        if scheme == "file":
            yield from _local_files(re.sub("^file:(//)?", "", name, flags=re.IGNORECASE))
        else:
            yield name


def _local_files(path: str) -> list[str]:
    paths = [path] if os.path.exists(path) or not glob.has_magic(path) else sorted(glob.glob(path))
    if not paths:
        raise ShardError(f"shard pattern '{path}' matches no file; correct data.shards.")
    for candidate in paths:
        if not os.path.isfile(candidate):
            what = "is no regular file" if os.path.exists(candidate) else "does not exist"
            raise ShardError(f"shard '{candidate}' {what}; correct data.shards.")
    return paths


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and suffix; None for a suffix that is not read.

    Only the end of the name decides, and not its first dot: DICOM UIDs, which hold dots, stay whole.

    Example:
        >>> split_name("study/1.2.840.PNG"), split_name("7.masks.npz"), split_name("7.pkl")
        (('study/1.2.840', 'png'), ('7', 'masks.npz'), None)
    """
    lowered = name.lower()
    for suffix in SUFFIXES:
        if lowered.endswith("." + suffix):
            return name[: -len(suffix) - 1], suffix
    return None


def outline_shards(shards: Sequence[str]) -> str:
    """Return a sha256 over the names (without folders) and sizes of shards, of which the index' digest is made, too.

    It is known at once, where the walk takes minutes: shards of another outline never have the same digest.

    Args:
        shards: As `expand_shards` answers.
    """
    digest = hashlib.sha256()
    for shard in shards:
        size = None
        if scheme_of(shard) == "file":
            with suppress(OSError):  # the walk will say so
                size = os.path.getsize(shard)
        digest.update(_line(os.path.basename(shard), size))
    return digest.hexdigest()


def index_shards(
    shards: Sequence[str], *, duplicates: Literal["fail", "first"] = "fail", timeout_s: float | None = None
) -> ShardIndex:
    """Walk every shard and list its samples.

    Consecutive members with one key are a sample. A shard that is cut or damaged is walked up to that place: its whole
    samples are entries; the sample before the place is a problem, because parts of it may be missing, and the place
    itself is another. The samples of a shard have a json each, or none has: one that lacks it among others is a
    problem, too.

    Args:
        shards: As `expand_shards` answers.
        duplicates: What happens where a key comes back, in the same shard or in another: `fail`, or the `first` is
            taken and the others become problems.
        timeout_s: How long a shard may give nothing [s]; None for any time.

    Raises:
        ShardError: A key comes back, and `duplicates` is `fail`.
        StoppedError: A shard gives nothing any more.
    """
    indexer = _Indexer()
    if timeout_s is None:
        indexer.add_shards(shards)
    else:
        _add_watched(indexer, shards, timeout_s)
    if indexer.repeats and duplicates == "fail":
        raise ShardError(_name_duplicates(indexer.repeats, indexer.homes))
    return ShardIndex(
        tuple(indexer.entries), tuple(indexer.problems), tuple(shards), indexer.n_ignored, indexer.hash.hexdigest()
    )


def _add_watched(indexer: "_Indexer", shards: Sequence[str], timeout_s: float) -> None:
    try:
        watch(lambda: indexer.add_shards(shards), lambda: indexer.progress, timeout_s)
    except TimeoutError:
        indexer.abandon()
        n_walked, _ = indexer.progress
        raise StoppedError(
            f"reading the shards stopped ('{shards[n_walked - 1]}' has given nothing for {timeout_s:g} s while "
            "samples were counted); see data.timeout_s; the same command goes on."
        ) from None


def _name_duplicates(repeats: list[tuple[str, str]], homes: dict[str, str]) -> str:
    named = [f"{key!r} in '{homes[key]}' and '{shard}'" for key, shard in repeats[:_N_NAMED]]
    if len(repeats) > _N_NAMED:
        named.append("...")
    return (
        f"the shards hold {len(repeats)} duplicate keys ({', '.join(named)}), but a key names one sample; "
        "repack the shards, or set data.duplicates=first."
    )


@dataclass(slots=True)
class _Group:
    """Consecutive members with one key."""

    key: str
    members: list[Member] = field(default_factory=list)
    flaw: str | None = None

    def takes(self, key: str, suffix: str) -> bool:
        """Say whether the next member belongs here: a second file of one suffix begins a duplicate."""
        return key == self.key and all(suffix != member.suffix for member in self.members)

    def add(self, suffix: str, member: TarMember) -> None:
        self.members.append(Member(suffix, member.offset, member.size))
        if self.flaw is None and (member.flaw or member.size == 0):
            self.flaw = f"its {suffix} {member.flaw or 'is empty; store the whole file.'}"

    def find_flaw(self) -> str | None:
        """Say why this is no sample; None where it is one."""
        images = [member.suffix for member in self.members if member.suffix in IMAGE_SUFFIXES]
        if self.flaw is None and len(images) != 1:
            held = " and ".join(images) or "none"
            return f"a sample has one image ({', '.join(IMAGE_SUFFIXES)}), this one has {held}; repack the shard."
        if self.flaw is None and not self.key.rpartition("/")[2]:
            return "the member's name is a suffix alone, without a key; rename it."
        return self.flaw


class _Indexer:
    """Collects entries and problems over the shards."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self.homes: dict[str, str] = {}  # key -> the first shard that holds it
        self.repeats: list[tuple[str, str]] = []
        self.n_ignored = 0
        self.hash = hashlib.sha256()
        self._n_begun = 0
        self._reader: ShardReader | None = None
        self._is_abandoned = False

    @property
    def progress(self) -> tuple[int, int]:
        """How many shards were begun, and how far the last one was read [byte]."""
        reader = self._reader  # another thread sets it
        return self._n_begun, 0 if reader is None else reader.position

    def abandon(self) -> None:
        """Begin no other shard; for another thread, while this one hangs."""
        self._is_abandoned = True
        reader = self._reader
        if reader is not None:
            reader.abandon()

    def add_shards(self, shards: Sequence[str]) -> None:
        for shard in shards:
            if self._is_abandoned:
                return
            self._reader = None
            self._n_begun += 1
            self.add_shard(shard)

    def add_shard(self, shard: str) -> None:
        self._record(os.path.basename(shard))
        n_before = len(self.entries)
        group: _Group | None = None
        damage: str | None = None
        try:
            with ShardReader(shard) as reader:
                self._reader = reader
                self._record(reader.size)
                for member in walk_tar(reader):
                    group = self._add_member(shard, group, member)
        except ShardError as error:
            damage = f"the shard {error}"
        if group is not None:
            if damage is not None:
                group.flaw = (
                    "the shard is cut or damaged behind this sample, so parts of it may be missing; repack the shard."
                )
            self._close(shard, group)
        elif damage is None:
            damage = (
                f"the shard holds no sample: no member ends in {', '.join(SUFFIXES)}; check that it is the right file."
            )
        self._settle(n_before)
        if damage is not None:
            self.problems.append(Problem(None, shard, damage))

    def _add_member(self, shard: str, group: _Group | None, member: TarMember) -> _Group | None:
        split = split_name(member.name)
        if split is None:
            self.n_ignored += 1
            return group
        key, suffix = split
        if group is None or not group.takes(key, suffix):
            if group is not None:
                self._close(shard, group)
            group = _Group(key)
        group.add(suffix, member)
        return group

    def _close(self, shard: str, group: _Group) -> None:
        if group.key in self.homes:
            self.repeats.append((group.key, shard))
            reason = (
                f"is a duplicate: shard '{self.homes[group.key]}' holds the key already, and the first one is taken."
            )
            self.problems.append(Problem(group.key, shard, reason))
            return
        self.homes[group.key] = shard
        flaw = group.find_flaw()
        if flaw is not None:
            self.problems.append(Problem(group.key, shard, flaw))
            return
        self.entries.append(Entry(group.key, shard, tuple(group.members)))

    def _settle(self, n_before: int) -> None:
        """Name the samples of the last shard that lack the json which others in it have, and record the rest.

        Where a page was zeroed that held the last members, the tar ends earlier and is sound.
        """
        found = self.entries[n_before:]
        has_json = [any(member.suffix == "json" for member in entry.members) for entry in found]
        if any(has_json):
            reason = "it has no json, which other samples of its shard have; restore it, or store none in the shard."
            self.problems += [
                Problem(entry.key, entry.shard, reason) for entry, has in zip(found, has_json, strict=True) if not has
            ]
            self.entries[n_before:] = [entry for entry, has in zip(found, has_json, strict=True) if has]
        for entry in self.entries[n_before:]:
            self._record(entry.key, [(member.suffix, member.offset, member.size) for member in entry.members])

    def _record(self, *values: object) -> None:
        self.hash.update(_line(*values))


def _line(*values: object) -> bytes:
    # JSON keeps apart what mere joining would not: ("a", "bc") and ("ab", "c").
    return json.dumps(values).encode("ascii") + b"\n"
