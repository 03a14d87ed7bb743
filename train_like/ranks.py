"""What the ranks of a job tell each other: what rank 0 found, and how each one's share ended."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mapstack.errors import MapstackError
from train_like.errors import StoppedError

_PATIENCE = timedelta(days=7)
LOST_RANK = (
    "another rank ended before its share was done; what every rank committed is kept; see that rank's messages, and "
    "run the same command to go on."
)


class Ranks:
    """The ranks of a job; in a job of one process nobody is asked.

    They talk in a group of their own. The sockets of gloo break at once where a rank dies, while NCCL would wait; and
    the group's patience lets a rank whose share was easy wait for the others, which Lightning's half an hour would not.

    Args:
        is_first: Whether this process is rank 0.
    """

    def __init__(self, *, is_first: bool) -> None:
        self._is_first = is_first
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.is_initialized() else None

    def from_first(self, action: Callable[[], Any]) -> Any:
        """Run an action on rank 0 and give its result, or its error, to every rank.

        Raises:
            MapstackError: What the action raised.
            StoppedError: A rank was lost.
        """
        outcome: tuple[Any, MapstackError | None] = (None, None)
        if self._is_first:
            try:
                outcome = (action(), None)
            except MapstackError as error:
                outcome = (None, error)
        result, refusal = self._talk(lambda: self._broadcast(outcome))
        if refusal is not None:
            raise refusal
        return result

    def is_any(self, flag: bool) -> bool:
        """Say whether the flag is set on any rank; every rank waits for the others here.

        Raises:
            StoppedError: A rank was lost.
        """
        return any(self._talk(lambda: self._gather(flag)))

    def leave(self) -> None:
        """Leave the group, so that the others do not wait for this rank."""
        self._group = None

    def _talk(self, exchange: Callable[[], Any]) -> Any:
        try:
            return exchange()
        except RuntimeError as error:
            raise StoppedError(LOST_RANK) from error

    def _broadcast(self, value: Any) -> Any:
        values = [value]
        if self._group is not None:
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def _gather(self, value: Any) -> list[Any]:
        values = [value]
        if self._group is not None:
            values *= dist.get_world_size(self._group)
            dist.all_gather_object(values, value, group=self._group)
        return values
