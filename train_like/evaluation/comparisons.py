"""What differs from what, picture by picture: settings from references, stacks from conventional maps, A from B."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.metrics.similarity import mean_off_diagonal
from train_like.evaluation.choice import ByPicture, Choice, labels_of
from train_like.evaluation.intervals import Summary, interval, mean, shares, table_of
from train_like.evaluation.pairs import KINDS
from train_like.evaluation.references import REFERENCES
from train_like.evaluation.settings import REFERENCE, Setting

COMPARED = ("hit", "iou", "iou_otsu", "mass", "rank")
"""The metrics in which a setting is compared with a reference."""

CLAIMED = ("hit", "mass", "rank", "iou_otsu")
"""The metrics in which a stack is compared with the conventional map."""


def against_references(scores: ByPicture, choice: Choice) -> list[Summary]:
    """Compare each chosen setting with each reference in each metric, over all findings and for each of them."""
    return [
        {"setting": setting.name, "reference": name, "metric": metric, **found}
        | {"by_finding": {label: interval(table[:, [column]]) for column, label in enumerate(labels)}}
        for setting in choice.thresholds
        for name in REFERENCES
        for metric in COMPARED
        for table, labels in [_difference(scores, setting, Setting(name, REFERENCE), metric, choice)]
        if (found := interval(table)) is not None
    ]


def _difference(
    scores: ByPicture, first: Setting, second: Setting, metric: str, choice: Choice
) -> tuple[Float[Tensor, "n_pictures n_findings"], list[str]]:
    """Return the difference of a metric by picture and finding, and the findings; NaN where one of the two has none."""
    labels = [label for label in labels_of(scores, first) if label in labels_of(scores, second)]
    tables = []
    for setting in (first, second):
        columns = [labels_of(scores, setting).index(label) for label in labels]
        tables.append(table_of(scores, setting, metric, choice)[:, columns])
    return tables[0] - tables[1], labels


def between_findings(pairs: Sequence[Mapping[str, Any]], choice: Choice) -> list[Summary]:
    """Say where the maps of A, with and without contrast, peak on pictures of two findings, A and B."""
    found = []
    for setting in choice.thresholds:
        pictures = [each[setting.key] for each in pairs if each.get(setting.key)]
        if pictures:
            found.append(
                {
                    "setting": setting.name,
                    "n": len(pictures),
                    "n_pairs": sum(map(len, pictures)),
                    "kinds": {
                        kind: {
                            side: interval([[mean([pair[row][column] for pair in each])] for each in pictures])
                            for column, side in enumerate(("in_a", "in_b"))
                        }
                        for row, kind in enumerate(KINDS)
                    },
                }
            )
    return found


def claims_of(
    ways: Mapping[str, tuple[list[Any], list[Any]]],
    keys: Mapping[str, Sequence[str]],
    randomised: Mapping[str, Mapping[str, float]],
) -> list[Summary]:
    """Compare the stack with the conventional map of the same method and sign, picture by picture.

    Args:
        ways: For each way, the texts' scores and the localisation scores of its pictures.
        keys: The pictures of each way, in the same order.
        randomised: How alike maps of different texts are with every weight of the image tower random, by picture.
    """
    claims = []
    for key, (texts, settings) in ways.items():
        way = Setting.parse(key)
        conventional = Setting(way.method, "conventional", way.sign)
        if way.route == "conventional" or conventional.key not in ways:
            continue
        rows = [keys[conventional.key].index(picture) for picture in keys[key]]
        base_texts, base_settings = ([side[row] for row in rows] for side in ways[conventional.key])
        claims.append(
            {
                "method": way.method,
                "route": way.route,
                "sign": way.sign,
                "between_texts": interval(
                    [[off(a, "ensemble") - off(b, "ensemble")] for a, b in zip(texts, base_texts, strict=True)]
                ),
                **{
                    metric: interval(shares(settings, way, metric) - shares(base_settings, conventional, metric))
                    for metric in CLAIMED
                },
                "between_texts_randomised": interval(
                    [
                        [each[way.key] - each[conventional.key]]
                        for each in randomised.values()
                        if way.key in each and conventional.key in each
                    ]
                ),
            }
        )
    return claims


def off(texts: Mapping[str, Any], form: str) -> float:
    """Return how alike the maps of the different texts of a form are."""
    return mean_off_diagonal(torch.tensor(texts["correlation"][form], dtype=torch.float64))
