"""Waiting until a server has nothing left to do: TorchServe itself drops what is in flight when it is ended."""

import fcntl
import time
from pathlib import Path

from serve.client import Client
from serve.errors import AnswerError, ServerError

_POLL_S = 0.1
_N_QUIET = 3
_GIVE_BACK_S = 0.5  # an answer is still on its way out when the worker is free again


def wait_until_idle(client: Client, busy: Path, timeout_s: float) -> bool:
    """Wait until no request waits and no worker answers one; say whether that came within the time.

    Args:
        client: Of the management API.
        busy: The file that workers hold a lock on while they answer.
        timeout_s: How long to wait [s].
    """
    deadline = time.monotonic() + timeout_s
    n_quiet = 0
    while time.monotonic() < deadline:
        # Several looks: between the queue and the worker a request is in neither.
        n_quiet = n_quiet + 1 if _is_idle(client, busy) else 0
        if n_quiet == _N_QUIET:
            time.sleep(_GIVE_BACK_S)
            return True
        time.sleep(_POLL_S)
    return False


def _is_idle(client: Client, busy: Path) -> bool:
    try:
        pending = client.describe_model()[0]["jobQueueStatus"]["pendingRequests"]
    except (ServerError, AnswerError, KeyError, IndexError, ValueError):
        pending = 0  # a server that does not tell is judged by its workers alone
    return not pending and _is_free(busy)


def _is_free(busy: Path) -> bool:
    with busy.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
