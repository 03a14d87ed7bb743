"""How many threads share a piece of work: for small ones, waiting for each other takes longer than the work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work in this thread alone.

    Two threads that share a matrix product of a few milliseconds meet at a barrier after each; where other processes
    want the cores, a barrier can take longer than the product. Measured on two busy cores: a short text and the map of
    a stack that is at hand, 11 ms by one thread, 19 to 230 by two.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
