from collections.abc import Callable
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from mapstack.charts import Bar, cascade_lines, curve_panels, grouped_bars, interval_bars, matrices
from mapstack.errors import InputError
from mapstack.metrics.bootstrap import Interval
from tests.figures.charted import BARS, curves, interval, square


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: interval_bars([], title="t", unit="u"), "chart of 0 bars cannot be drawn; it takes at least one;"),
        (
            lambda: interval_bars([Bar("a", Interval(0.5, 0.6, 0.7))], title="t", unit="u"),
            "interval of 'a' has low 0.6, mean 0.5 and high 0.7; they must be finite and in this order; leave out",
        ),
        (
            lambda: interval_bars([Bar("a", Interval(nan, 0.1, 0.7))], title="t", unit="u"),
            "interval of 'a' has low 0.1, mean nan and high 0.7; they must be finite and in this order; leave out",
        ),
        (
            lambda: interval_bars(BARS, title="t", unit="u", limits=(0.1, 1.0)),
            "limits (0.1, 1.0) do not fit the intervals, which lie between 0 and 0.75; an axis rises and holds every",
        ),
        (
            lambda: interval_bars(BARS, title="t", unit="u", limits=(0, inf)),
            "limits (0, inf) do not fit the intervals, which lie between 0 and 0.75; an axis rises and holds every",
        ),
        (
            lambda: grouped_bars(["A"], {"a": [None, None]}, title="t", unit="u"),
            "'a' has 2 intervals for 1 places; the numbers must agree; complete the list.",
        ),
        (
            lambda: grouped_bars(["A"], {"a": [None]}, title="t", unit="u"),
            "chart without an interval cannot be drawn; it takes at least one; leave the chart out.",
        ),
        (
            lambda: grouped_bars(["A"], {str(n): [interval(0.5)] for n in range(9)}, title="t", unit="u"),
            "chart of 9 names cannot be drawn; there must be 1 to 8, which colours tell apart; draw several charts.",
        ),
        (
            lambda: cascade_lines(["trained"], {"a": [Interval(1.0, 1.0, inf)]}, title="t", unit="u"),
            "interval of 'a' has low 1, mean 1 and high inf; they must be finite and in this order; leave out",
        ),
        (
            lambda: cascade_lines([], {}, title="t", unit="u"),
            "chart without an interval cannot be drawn; it takes at least one; leave the chart out.",
        ),
        (
            lambda: matrices({}, ["A", "B"], title="t", unit="u"),
            "chart of 0 matrices with 2 labels cannot be drawn; it takes at least one matrix and two labels; give",
        ),
        (
            lambda: matrices({"a": square(1)}, ["A"], title="t", unit="u"),
            "chart of 1 matrices with 1 labels cannot be drawn; it takes at least one matrix and two labels; give",
        ),
        (
            lambda: matrices({"a": square(3)}, ["A", "B"], title="t", unit="u"),
            "matrix 'a' of shape (3, 3) does not fit 2 labels; it must have as many rows and columns as there are",
        ),
        (
            lambda: matrices({"a": square(2, nan)}, ["A", "B"], title="t", unit="u"),
            "matrix 'a' has values outside [-1, 1] or not finite; the colours end there; draw similarities only.",
        ),
        (
            lambda: matrices({"a": square(2, -1.1)}, ["A", "B"], title="t", unit="u"),
            "matrix 'a' has values outside [-1, 1] or not finite; the colours end there; draw similarities only.",
        ),
    ],
)
def test_chart_of_what_cannot_be_drawn_is_refused(draw: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        draw()
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mean": np.zeros(4)}, "curve 'a' has arrays of shapes {'fractions': (3,), 'mean': (4,), 'low': (3,), 'high'"),
        ({"mean": np.full(3, 9.0)}, "curve 'a' has points that are not finite, or whose mean is not between low and"),
        ({"high": np.full(3, inf)}, "curve 'a' has points that are not finite, or whose mean is not between low and"),
        ({"fractions": np.full(3, nan)}, "curve 'a' has points that are not finite, or whose mean is not between low"),
        ({"fractions": np.array([0, 1, 1.0])}, "curve 'a' has fractions that do not rise; each is above the last;"),
    ],
)
@pytest.mark.usefixtures("plain_types")
def test_curve_that_is_none_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        curve_panels({"Deletion": [curves("a", **changes)]}, title="t", x_label="x", y_label="y")
    assert str(caught.value).startswith(sentence)
    with pytest.raises(InputError, match=r"^chart without a curve cannot be drawn; it takes at least one; leave the"):
        curve_panels({"Deletion": []}, title="t", x_label="x", y_label="y")
