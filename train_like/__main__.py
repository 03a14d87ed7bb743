"""`python -m train_like COMMAND ...`."""

import sys
from pathlib import Path

if not __package__:
    # `fabric run` takes a script's path, not a module: make the checkout's root importable instead of this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from train_like.cli import main

if __name__ == "__main__":
    sys.exit(main())
