"""SIGTERM, which SLURM and Kubernetes send before they kill: noted, and acted on between two batches."""

import signal
import threading
from types import FrameType
from typing import Any


class TerminationFlag:
    """Set once SIGTERM has come.

    Lightning's own handler notes the signal and goes on, so this one takes its place while the loop runs.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._previous: Any = None

    def listen(self) -> None:
        """Take the signal over; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)

    def ignore(self) -> None:
        """Put the previous handler back; again does nothing."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
