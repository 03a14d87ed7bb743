"""What a job says of its texts before it begins."""

import sys
from collections.abc import Sequence

from mapstack.models import TextTower
from mapstack.prompts import TextGroup
from mapstack.readouts import truncated_groups


def tell_truncated(groups: Sequence[TextGroup], text: TextTower) -> None:
    """Say on standard error which prompts the model does not read to their end: by number, since texts are not told."""
    truncated = set(truncated_groups(groups, text))
    if not truncated:
        return
    numbers = ", ".join(str(number) for number, group in enumerate(groups, 1) if group in truncated)
    print(
        f"prompts: of number {numbers} (of {len(groups)}) the model reads the beginning only; it cuts a text at its "
        "limit of tokens, so that texts of one beginning have one map; shorten them.",
        file=sys.stderr,
    )
