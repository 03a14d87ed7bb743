"""Two findings of one picture: does the map of "A rather than B" point to A and not to B?"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from mapstack.metrics.chexlocalize import hit
from train_like.evaluation.cases import Case, Region
from train_like.evaluation.maps import AggregateMaps, TextMaps
from train_like.evaluation.settings import Setting
from train_like.evaluation.texts import Texts

KINDS = ("A", "A rather than a normal picture", "A rather than B")
"""What is explained, in the order in which `pair_scores` scores it."""


def pair_scores(
    case: Case, regions: Sequence[Region], maps: TextMaps | AggregateMaps, setting: Setting, texts: Texts
) -> list[list[list[float]]]:
    """Say where the maps of each ordered pair of findings peak.

    Pixels that lie in both findings count for neither; a pair of which one lies inside the other is left out. An
    absolute map of "A rather than B" is that of "B rather than A": ask signed settings.

    Returns:
        For each pair and each of `KINDS`: whether the peak lies in A only, and whether it lies in B only, as 0 or 1.
    """
    plain, contrast = replace(setting, is_contrast=False), replace(setting, is_contrast=True)
    scores = []
    for this, other in permutations(regions, 2):
        only = this.mask & ~other.mask, other.mask & ~this.mask
        if all(mask.any() for mask in only):
            made = (
                maps.setting_map(plain, this.label, texts),
                maps.setting_map(contrast, this.label, texts),
                maps.setting_map(plain, this.label, texts, rather_than=other.label),
            )
            scores.append([[hit(case.on_picture(each), mask) for mask in only] for each in made])
    return scores
