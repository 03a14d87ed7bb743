"""The input pipeline: from the index to batches, as WebDataset stages.

The work is divided by sample over ranks and workers, and never by the environment: `split_by_node` reads RANK in the
process that iterates, and under Lightning's own launcher every sample then comes twice.
"""

import hashlib
import json
import math
import multiprocessing
import multiprocessing.context
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from mapstack.errors import MapstackError, ShardError
from mapstack.store import Failure
from train_like.index import IMAGE_SUFFIXES, Entry
from train_like.tarwalk import ShardReader, is_seekable

MAX_JSON_BYTES = 2**20
MAX_JSON_DEPTH = 32

Sample = dict[str, Any]


def divide(n: int, part: int, n_parts: int) -> range:
    """Cut `n` items into `n_parts` contiguous ranges, whose lengths differ by one at most.

    Returns:
        Range number `part`.

    Example:
        >>> [divide(7, part, 3) for part in range(3)]
        [range(0, 2), range(2, 4), range(4, 7)]
    """
    return range(n * part // n_parts, n * (part + 1) // n_parts)


def share(entries: Sequence[Entry], part: int, n_parts: int) -> list[Entry]:
    """Answer one of `n_parts` shares of the samples: of a rank among the ranks, then of a worker within its rank.

    Samples of a shard that can be seeked are divided one by one. A shard that cannot is given away whole, because
    whoever reads its last sample has to read all the others.
    """
    free = [entry for entry in entries if is_seekable(entry.shard)]
    streams = list(dict.fromkeys(entry.shard for entry in entries if not is_seekable(entry.shard)))
    own = {streams[i] for i in divide(len(streams), part, n_parts)}
    return [free[i] for i in divide(len(free), part, n_parts)] + [entry for entry in entries if entry.shard in own]


class IndexedSource(IterableDataset[Sample]):
    """The source stage: reads the samples of this rank and worker, as WebDataset yields them.

    A sample is `{"__key__": key, "__url__": shard, "png": bytes, "json": bytes, ...}`; one that cannot be read has
    `"__error__": reason` in the place of the bytes, so that a later stage names it.

    Args:
        entries: All samples of the job.
        rank: Number of this process, as the trainer says.
        world_size: How many processes there are.
    """

    def __init__(self, entries: Sequence[Entry], *, rank: int, world_size: int) -> None:
        """Keep this rank's samples: each worker gets a copy of what stands here."""
        super().__init__()
        self.entries = share(entries, rank, world_size)

    def __iter__(self) -> Iterator[Sample]:
        """Yield this worker's samples, opening each shard once."""
        worker = get_worker_info()
        part, n_parts = (worker.id, worker.num_workers) if worker else (0, 1)
        for shard, run in groupby(share(self.entries, part, n_parts), key=attrgetter("shard")):
            yield from _read_run(shard, run)


def read_entry(entry: Entry) -> Sample:
    """Read one sample, as `IndexedSource` yields it."""
    (sample,) = _read_run(entry.shard, [entry])
    return sample


def _read_run(shard: str, run: Iterable[Entry]) -> Iterator[Sample]:
    try:
        reader = ShardReader(shard)
    except ShardError as error:
        yield from [_failed(entry.key, shard, f"the shard {error}") for entry in run]
        return
    with reader:
        for entry in run:
            yield _read_sample(reader, entry)


def _read_sample(reader: ShardReader, entry: Entry) -> Sample:
    sample: Sample = {"__key__": entry.key, "__url__": entry.shard}
    try:
        for member in entry.members:
            sample[member.suffix] = reader.read(member.offset, member.size)
            if len(sample[member.suffix]) < member.size:
                raise ShardError("is shorter than it was when it was indexed; do not change shards during a run.")
    except ShardError as error:
        return _failed(entry.key, entry.shard, f"the shard {error}")
    return sample


def _failed(key: str, shard: str, reason: str) -> Sample:
    return {"__key__": key, "__url__": shard, "__error__": reason}


def check_sample(sample: Sample) -> Sample:
    """Turn the bytes of the json into a dict, and check the image against the sha256 in it.

    Returns:
        The sample with `json` as a dict, or with `__error__` in the place of its contents.
    """
    if "json" not in sample:
        return sample
    try:
        record = parse_json(sample["json"])
        _check_sha256(record, next(sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample))
    except ShardError as error:
        return _failed(sample["__key__"], sample["__url__"], str(error))
    return sample | {"json": record}


def parse_json(data: bytes) -> dict[str, Any]:
    """Parse a sample's json: strict, bounded, an object.

    Raises:
        ShardError: It is something else.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ShardError(f"its json has {len(data)} bytes, but {MAX_JSON_BYTES} is the most that is read; shorten it.")
    try:
        record = json.loads(data, parse_constant=_refuse_constant)
    # The text of the error would quote the json: it can hold a report.
    except (ValueError, RecursionError):
        raise ShardError("its json does not parse; store a JSON object in UTF-8, without NaN.") from None
    if not isinstance(record, dict):
        raise ShardError(f"its json is a {type(record).__name__}, but must be an object; correct it.")
    if _depth(record) > MAX_JSON_DEPTH:
        raise ShardError(f"its json is nested deeper than {MAX_JSON_DEPTH} levels; flatten it.")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth


def _check_sha256(record: dict[str, Any], image: bytes) -> None:
    if "sha256" not in record:
        return
    actual = hashlib.sha256(image).hexdigest()
    if str(record["sha256"]).lower() != actual:
        raise ShardError(f"its image has the sha256 {actual[:12]}..., which its json contradicts; restore the image.")


def prepare_sample(sample: Sample, prepare: Callable[[Sample], Any]) -> Any:
    """Run `prepare` on one sample.

    Returns:
        What `prepare` answers; a `Failure` where the sample has failed already, or fails here.
    """
    failure = partial(Failure, sample["__key__"], sample["__url__"])
    if "__error__" in sample:
        return failure(sample["__error__"])
    try:
        prepared = prepare(sample)
    except MapstackError as error:
        return failure(str(error))
    except Exception as error:
        # The text of an error that is not ours may quote the sample.
        return failure(f"its preparation failed with {type(error).__name__}; check the sample.")
    # WebDataset drops a None without a word.
    return failure("its preparation answered None; check the sample.") if prepared is None else prepared


def sample_pipeline(
    entries: Sequence[Entry],
    *,
    prepare: Callable[[Sample], Any],
    collate: Callable[[list[Any]], Any],
    batch_size: int,
    num_workers: int,
    timeout_s: float,
    rank: int,
    world_size: int,
) -> wds.WebLoader:
    """Build the loader of one rank: a WebDataset pipeline, of no stated length.

    A stated length of zero would make Lightning leave the loop of a rank that has no work out, together with the
    barrier at its end, at which the other ranks then wait.

    With workers, `prepare` and `collate` are pickled, and the modules that define them are imported in each worker: let
    these be light.

    Args:
        entries: The samples of the job, the same on all ranks.
        prepare: Turns one sample, as `check_sample` answers it, into an item. Where it raises, the item is a `Failure`.
        collate: Turns a list of at most `batch_size` items, `Failure`s among them, into a batch. The last batch of each
            worker may be short.
        batch_size: Items a batch.
        num_workers: Processes that read, at most; 0 reads in this process, where a hang goes unnoticed.
        timeout_s: How long a batch of a worker may take [s] before RuntimeError is raised.
        rank: Number of this process, as the trainer says.
        world_size: How many processes there are.
    """
    source = IndexedSource(entries, rank=rank, world_size=world_size)
    n_workers = min(num_workers, math.ceil(len(source.entries) / batch_size))
    pipeline = wds.DataPipeline(
        source,
        wds.map(check_sample),
        wds.map(partial(prepare_sample, prepare=prepare)),
        wds.batched(batch_size, collation_fn=collate, partial=True),
    )
    return wds.WebLoader(
        pipeline,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=n_workers,
        timeout=timeout_s if n_workers else 0,
        multiprocessing_context=_worker_context() if n_workers else None,
        worker_init_fn=_end_with_rank,
    )


def _worker_context() -> multiprocessing.context.ForkServerContext:
    """Choose how workers start: forked from a clean process that has imported this module.

    To fork the rank itself would copy the locks of its threads and its CUDA context, and the end of such a worker
    raises in the rank wherever it is, be it in the middle of a commit. To spawn costs each worker the import of torch
    (2 s of a core); this way it is paid once.
    """
    context = multiprocessing.get_context("forkserver")
    # webdataset as well: this module is found from a checkout's folder only.
    context.set_forkserver_preload(["webdataset", __name__])
    return context


def _end_with_rank(worker: int) -> None:
    """End this worker when its rank is gone, however that ended.

    torch's workers look whether their parent lives, which here is the process they are forked from; and that one lives
    for as long as they do.
    """
    rank = multiprocessing.parent_process()

    def wait_and_exit() -> None:
        if rank is not None:
            rank.join()
            os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True).start()


def _as_is(batch: Any) -> Any:
    """Pass a batch on: DataLoader's own default turns arrays into tensors and rebuilds containers."""
    return batch
