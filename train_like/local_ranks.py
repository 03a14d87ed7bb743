"""The ranks that one process has started on its machine: they end together, however one of them ends."""

import os
import signal
import subprocess
import threading
import time
from typing import Any

_STARTER = "MAPSTACK_STARTED_BY"
_WATCH_S = 0.5
_PATIENCE_S = 30.0


class LocalRanks:
    """The ranks on this machine that hang on this process: those it has started, or the one that has started it.

    There are some under Lightning's own launcher only; torchrun and SLURM look after their ranks themselves.
    """

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[Any]] = []
        self._is_named = False

    def begin(self) -> None:
        """Name this process to the ranks that it will start; a rank that was started begins to watch for its end.

        A rank whose starter is gone is sent SIGTERM: nothing else would tell it before the end of its share, and until
        then it would keep the store from the run that goes on.
        """
        starter = os.environ.get(_STARTER)
        if starter is None:
            os.environ[_STARTER] = str(os.getpid())
            self._is_named = True
        else:
            threading.Thread(target=_end_with, args=(int(starter),), daemon=True).start()

    def take_over(self, launcher: Any) -> None:
        """Take the processes that a launcher has started; again takes those that have come since.

        Lightning watches them in a thread that sends this process SIGKILL within 5 s of the end of any, also where
        that rank has ended in good order and this one is about to. What is taken out of its list it does not see.

        Args:
            launcher: Lightning's; None where there is none.
        """
        if launcher is not None:
            self._started += [process for process in launcher.procs if isinstance(process, subprocess.Popen)]
            launcher.procs.clear()

    def send(self, number: int) -> None:
        """Send a signal to the started ranks that still live."""
        for process in self._started:
            process.send_signal(number)

    @property
    def is_one_gone(self) -> bool:
        """Whether a started rank has ended; in good order none does before this one has come to its last barrier."""
        return any(process.poll() is not None for process in self._started)

    def end(self) -> None:
        """Wait for the started ranks to end, which have been told to or have nothing left to do; again does nothing.

        One that takes too long is killed: what it has committed is safe.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while self._started:
            process = self._started.pop()
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._is_named:
            os.environ.pop(_STARTER, None)
            self._is_named = False


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(_WATCH_S)
    os.kill(os.getpid(), signal.SIGTERM)
