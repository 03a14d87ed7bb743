"""A long job needs no more memory at its end than at its beginning."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mapstack.explainer import Explainer
from mapstack.stack import Stack
from tests.train_like.jobs import Ended, flat_png, write_shard

Campaign = Callable[[int, int], int]
Command = Callable[..., Ended]
Figure = Callable[[str], None]

FIRST, LAST = 100, 400
MAX_GROWTH = 64e6


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def delete_sealed(store: Path) -> None:
    """Full stacks of 400 pictures would take 20 GB; parts are sealed at 4."""
    for tar in store.glob("part-*.tar"):
        tar.with_suffix(".jsonl").unlink()
        tar.unlink()


@pytest.mark.fault("W8")
def test_memory_does_not_grow_with_the_pictures(
    write_config: Callable[[str | Path], Path],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    campaign: Campaign,
    figure: Figure,
) -> None:
    """Under a model that costs nothing; the stacks are new ones for every batch, as those of a true method are."""
    map_size, n_seen = campaign(28, 224), 0
    resident: dict[int, int] = {}
    noise = torch.randn(1, 512, map_size, map_size, generator=torch.Generator().manual_seed(0))

    def make_stack(self: Explainer, inputs: Any, basis: Any = None, check: Any = None) -> Stack:
        nonlocal n_seen
        n_seen += len(inputs)
        if n_seen in (FIRST, LAST):
            resident[n_seen] = resident_bytes()
        delete_sealed(tmp_path / "store")
        values = noise.repeat(len(inputs), 1, 1, 1)
        return Stack(values.mean(dim=(2, 3)), self.normalize, values, is_raw=True)

    monkeypatch.setattr(Explainer, "stack", make_stack)
    shard = write_shard(tmp_path / "many.tar", [(f"{i}", {"png": flat_png(100)}) for i in range(LAST)])
    ended = command("extract", write_config(shard), "method={name: gradient}", f"stack.map_size={map_size}")
    assert n_seen == ended.line["computed_by_rank_0"] == LAST
    growth = resident[LAST] - resident[FIRST]
    assert growth <= MAX_GROWTH
    figure(
        f"stacks of 512 x {map_size} x {map_size}: {growth / 1e6:+.1f} MB between picture {FIRST} and {LAST} "
        f"({resident[LAST] / 1e6:.0f} MB in all)"
    )
