"""How a job ends before its work is done, and the exit code of each way."""

from mapstack.errors import MapstackError, StoreDiskError, StoreError

DONE, SOME_FAILED, WRONG_USE, WRONG_STORE, STOPPED, TERMINATED = 0, 1, 2, 3, 4, 143


class StoppedError(MapstackError, RuntimeError):
    """The job stopped early: too many bad samples, a reader that hangs, a lost rank."""


class TerminatedError(MapstackError):
    """SIGTERM ended the job after a commit."""


def exit_code(error: MapstackError) -> int:
    """Return the exit code that an error stands for."""
    if isinstance(error, TerminatedError):
        return TERMINATED
    if isinstance(error, StoppedError | StoreDiskError):
        return STOPPED
    return WRONG_STORE if isinstance(error, StoreError) else WRONG_USE


def status(code: int) -> str:
    """Return the word for an exit code, for the JSON line: torchrun turns every failure into 1.

    Example:
        >>> status(143)
        'terminated'
    """
    words = {DONE: "done", SOME_FAILED: "some_failed", WRONG_USE: "wrong_use", WRONG_STORE: "wrong_store"}
    return words.get(code) or {STOPPED: "stopped", TERMINATED: "terminated"}[code]
