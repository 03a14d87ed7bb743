"""SIGTERM, which SLURM and Kubernetes send before they kill: noted, and acted on between two batches."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class TerminationFlag:
    """Set once SIGTERM has come.

    Lightning's own handler notes the signal and goes on, so this one takes its place while the loop runs.

    Args:
        pass_on: Sends a signal to the ranks that this process has started.
    """

    def __init__(self, pass_on: Callable[[int], None]) -> None:
        self.is_set = False
        self._previous: Any = None
        self._pass_on = pass_on

    def listen(self) -> None:
        """Take the signal over, from whoever has it now; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGTERM, self._note)
            if self._previous is None:
                self._previous = previous

    def ignore(self) -> None:
        """Put back the handler that was there first; again does nothing."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
        self._pass_on(number)
