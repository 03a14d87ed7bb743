"""`python -m tests.datasets.killed CONFIG OUTPUT N`: the command `shards`, which SIGKILL ends before its N-th change.

A change is a file opened for writing, or a file that gets its name, below OUTPUT: before, between and after these a
conversion can be torn.
"""

import os
import signal
import sys

from train_like.cli import main


def end_before_change(folder: str, number: int) -> None:
    """End this process with SIGKILL before so many changes below a folder."""
    left = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        is_change = event == "os.rename" or (event == "open" and _is_for_writing(arguments[2]))
        if is_change and str(arguments[0]).startswith(folder):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _is_for_writing(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


if __name__ == "__main__":
    config, output, number = sys.argv[1:]
    end_before_change(output, int(number))
    sys.exit(main(["shards", config]))
