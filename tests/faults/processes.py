"""Children of a light process, each with a socket to its parent."""

import os
from collections.abc import Callable
from socket import socket, socketpair


def fork(work: Callable[[socket], None]) -> tuple[int, socket]:
    """Run `work` in a child; give its process id and what it is reached by."""
    ours, theirs = socketpair()
    process = os.fork()
    if process:
        theirs.close()
        return process, ours
    ours.close()  # so that the child learns when the parent is gone
    status = 1
    try:
        work(theirs)
        status = 0
    finally:
        os._exit(status)
