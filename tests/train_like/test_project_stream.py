"""`project` on a store larger than memory: in order, a few records ahead, and no further."""

import os
import threading
import time

import pytest
import torch

from mapstack.geometry import Geometry
from train_like import project
from train_like.project import Projection

KEYS = [f"k{i}" for i in range(20)]


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> int:
    """However many cores this machine has."""
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    return 3


def projection(key: str) -> Projection:
    return Projection(key, torch.zeros(1, 4, 4), 1.0, Geometry((4, 4), 4, (0.0, 0.0, 4.0, 4.0)), {})


def test_projections_come_in_the_order_of_the_keys() -> None:
    def make(key: str) -> Projection:
        time.sleep(0.002 * (int(key[1:]) * 7 % 5))
        return projection(key)

    assert [each.key for each in project._work_ahead(KEYS, make)] == KEYS


def test_no_more_is_begun_than_the_threads_take(threads: int) -> None:
    begun: list[str] = []

    def make(key: str) -> Projection:
        begun.append(key)
        return projection(key)

    for n_taken, _ in enumerate(project._work_ahead(KEYS, make), start=1):
        time.sleep(0.005)  # as long as a thread would need to run away
        assert len(begun) <= n_taken + threads
    assert begun == KEYS


def test_threads_work_at_the_same_time(threads: int) -> None:
    together = threading.Barrier(threads, timeout=20)  # breaks unless that many are in it

    def make(key: str) -> Projection:
        together.wait()
        return projection(key)

    assert len(list(project._work_ahead(KEYS[: 2 * threads], make))) == 2 * threads


def test_an_error_comes_out_where_its_record_stands() -> None:
    def make(key: str) -> Projection:
        if key == "k3":
            raise ValueError("record 'k3' is damaged")
        return projection(key)

    taken = project._work_ahead(KEYS, make)
    assert [next(taken).key for _ in range(3)] == ["k0", "k1", "k2"]
    with pytest.raises(ValueError, match="record 'k3' is damaged"):
        next(taken)
