"""`verify`: re-reads every record of a store. Needs no torch."""

import sys

from tqdm import tqdm

from mapstack.store import verify
from train_like.errors import DONE, SOME_FAILED, WRONG_STORE
from train_like.result import Result

_N_SHOWN = 20
_DELAY_S = 0.2  # what fails at once is told without a bar


def check_store(folder: str) -> Result:
    """Check every record against its checksum, and the account against what was expected.

    Raises:
        StoreError: The folder is no store.
    """
    with tqdm(desc="verify", unit="B", unit_scale=True, file=sys.stderr, delay=_DELAY_S) as bar:

        def show(n_read: int, n_total: int) -> None:
            bar.total = n_total
            bar.update(n_read - bar.n)

        found = verify(folder, show)
    for key, reason in found.damaged[:_N_SHOWN]:
        print(f"damaged: {ascii(key)}: {reason}", file=sys.stderr)
    summary = {
        "output": folder,
        "done": found.n_done,
        "failed": found.n_failed,
        "missing": found.n_missing,
        "damaged": found.n_damaged,
        "unsealed": list(found.unsealed),
    }
    if found.damaged:
        return Result(WRONG_STORE, summary)
    return Result(DONE if found.is_sound and not found.n_failed else SOME_FAILED, summary)
