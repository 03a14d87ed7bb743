"""Giving up on what makes no progress: a read that hangs tells nobody."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

_N_LOOKS = 4  # within a time limit

Answer = TypeVar("Answer")


def watch(action: Callable[[], Answer], progress: Callable[[], object], timeout_s: float) -> Answer:
    """Run an action in a thread, for as long as it goes on.

    A thread cannot be ended: one that hangs is left to itself, and keeps no process from ending.

    Args:
        action: What to run.
        progress: Says how far it is, in any form that changes while it goes on.
        timeout_s: How long it may stay where it is [s]; that it does is noticed within 1.25 times as long.

    Returns:
        What the action answers, or raises.

    Raises:
        TimeoutError: It makes no progress.

    Example:
        >>> watch(lambda: 7, lambda: 0, timeout_s=60)
        7
    """
    outcome: Future[Answer] = Future()
    threading.Thread(target=_run, args=(action, outcome), name="watched", daemon=True).start()
    last, n_still = progress(), 0
    while not wait([outcome], timeout_s / _N_LOOKS).done:
        now = progress()
        n_still = n_still + 1 if now == last else 0
        last = now
        if n_still == _N_LOOKS:
            raise TimeoutError(f"no progress for {timeout_s:g} s")
    return outcome.result()


def _run(action: Callable[[], Answer], outcome: Future[Answer]) -> None:
    try:
        outcome.set_result(action())
    except BaseException as error:
        outcome.set_exception(error)
