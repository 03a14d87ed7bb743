from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from matplotlib.transforms import Affine2D

from mapstack.chart_axes import NumberAxis, styles
from mapstack.charts import Bar, cascade_lines, curve_panels, grouped_bars, interval_bars, matrices
from mapstack.figures import save
from mapstack.metrics.bootstrap import Interval
from tests.figures.charted import BARS, LONG, curves, interval, square
from tests.figures.drawn import SENTENCE, bars, drawn, texts, tick_labels

METHODS = [LONG, "occlusion [stack, normalised]", "gradient", "W" * 60, "random", "saliency", "a", "input_x_gradient"]
FINDINGS = ["Enlarged Cardiomediastinum", "Edema", "Fracture", "Pleural Effusion", "lung_opacity_" * 4, "A", "B", "C"]
STAGES = ["trained", *(f"vision_model.model.encoder.layers.{number}.blocks.1.attention" for number in (3, 2, 1, 0))]


GROUPED: dict[str, Any] = {
    "groups": ["Edema", "Lung Lesion", "Fracture"],
    "bars": {"occlusion": [interval(0.3), None, interval(0.9)], "random": [interval(0.2), interval(0.1), None]},
}
PANELS = {"Deletion": [curves("occlusion"), curves("random", 3)], "Insertion": [curves("random", -6), curves("other")]}
CASCADE: dict[str, Any] = {
    "stages": STAGES,
    "series": {
        "occlusion": [interval(mean) for mean in (1.0, 0.5, 0.2, 0.1, -0.1)],
        "saliency": [interval(mean) for mean in (1.0, 0.9, 0.9, 0.8, 0.8)],
    },
}

Chart = Callable[..., Figure]
CHARTS: dict[str, Chart] = {
    "rows": lambda **words: interval_bars(BARS, unit="hit rate", **words),
    "one row": lambda **words: interval_bars(BARS[:1], unit="hit rate " * 20, **words),
    "groups": lambda **words: grouped_bars(
        FINDINGS, {method: [interval(0.5)] * len(FINDINGS) for method in METHODS}, unit="hit rate", **words
    ),
    "one group": lambda **words: grouped_bars(["Edema"], {"a": [Interval(-3e-5, -4e-5, 0.0)]}, unit="u", **words),
    "panels": lambda **words: curve_panels(
        {"Deletion": [curves(method) for method in METHODS], f"Insertion {SENTENCE}": [curves("a")], "C": []},
        x_label="share of the pixels changed " * 9,
        y_label="logit",
        **words,
    ),
    "matrices": lambda **words: matrices(
        {LONG: square(6), "b": square(6, -1.0), "c": square(6), "d": square(6), "e": square(6)},
        [SENTENCE, *FINDINGS[:5]],
        unit="correlation",
        **words,
    ),
    "small matrix": lambda **words: matrices({LONG: square(2)}, [SENTENCE, "Edema"], unit="SSIM " * 20, **words),
    "large matrix": lambda **words: matrices({"a": square(14, -0.4)}, [SENTENCE] * 14, unit="u", **words),
    "cascade": lambda **words: cascade_lines(
        STAGES, {method: [interval(0.5)] * len(STAGES) for method in METHODS}, unit="correlation " * 9, **words
    ),
    "long first stage": lambda **words: cascade_lines(STAGES[::-1], {"a": [interval(0.5)] * 5}, unit="u", **words),
}


# What a chart holds


def plot(figure: Figure) -> Any:
    (axes,) = bars(figure)
    return axes


def dots(axes: Any) -> list[tuple[float, float]]:
    """The (x, y) of each mean; only intervals are drawn over the edge of the axes."""
    return [(*line.get_xydata()[0],) for line in axes.lines if not line.get_clip_on() and line.get_marker() != "None"]


def whiskers(axes: Any) -> list[list[list[float]]]:
    lines = [line for line in axes.lines if not line.get_clip_on() and line.get_marker() == "None"]
    return [line.get_xydata().tolist() for line in lines]


def dashed(axes: Any) -> list[list[list[float]]]:
    """The lines that run across the whole axes."""
    lines = [line for line in axes.lines if line.is_dashed() and line.get_transform() != axes.transData]
    return [line.get_xydata().tolist() for line in lines]


def dot_colours(axes: Any) -> list[str]:
    return [line.get_markeredgecolor() for line in axes.lines if not line.get_clip_on() and line.get_marker() != "None"]


def middle(figure: Figure, words: str) -> tuple[float, float]:
    """The middle of a text [px]."""
    drawn(figure)
    (text,) = [text for text in figure.texts if text.get_text() == words]
    box = text.get_window_extent()
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def test_row_has_its_dot_at_the_mean_and_its_whisker_from_end_to_end() -> None:
    figure = interval_bars(BARS, title="t", unit="hit rate")
    axes = plot(figure)
    assert [x for x, _ in dots(axes)] == [0.7, 0.4, 0.5, 0.1]
    for bar, ((low, at), (high, there)), (_, y) in zip(BARS, whiskers(axes), dots(axes), strict=True):
        assert (low, high) == (bar.interval.low, bar.interval.high)
        assert at == there == y


def test_rows_stand_in_order_between_their_names_and_their_means() -> None:
    figure = interval_bars(BARS, title="t", unit="hit rate")
    axes = plot(figure)
    heights = [axes.transData.transform(dot)[1] for dot in dots(axes)]
    assert heights == sorted(heights, reverse=True)
    box = axes.get_window_extent()
    # The long name has three lines: its second one stands beside the dot.
    second = next(line for line in texts(figure) if line.startswith("reference pictures"))
    for words, number, height in zip(
        ("occlusion", second, "centre prior", "random"), ("0.70", "0.40", "0.50", "0.10"), heights, strict=True
    ):
        assert middle(figure, words)[1] == pytest.approx(height, abs=4)
        assert middle(figure, words)[0] < box.x0
        assert middle(figure, number)[1] == pytest.approx(height, abs=4)
        assert middle(figure, number)[0] > box.x1


def test_reference_methods_are_grey_and_the_best_of_them_is_a_dashed_line() -> None:
    figure = interval_bars(BARS, title="t", unit="u")
    axes = plot(figure)
    method, _, reference, other = dot_colours(axes)
    red, green, blue = (int(reference[place : place + 2], 16) for place in (1, 3, 5))
    assert red == green == blue
    assert other == reference != method
    assert dashed(axes) == [[[0.5, 0], [0.5, 1]]]
    assert {"method", "reference method: looks at no model", "best reference method"} <= set(texts(figure))
    bare = interval_bars(BARS[:2], title="t", unit="u")
    assert "method" not in texts(bare)
    assert not dashed(plot(bare))


def test_axis_of_rows_begins_at_zero_or_where_the_limits_say() -> None:
    assert plot(interval_bars(BARS, title="t", unit="u")).get_xlim()[0] == 0
    assert plot(interval_bars(BARS, title="t", unit="u", limits=(-1, 1))).get_xlim() == (-1, 1)
    below = interval_bars([Bar("a", Interval(-2.0, -3.0, -1.0))], title="t", unit="u")
    assert plot(below).get_xlim()[1] == 0
    assert "−2.00" in texts(below)


def test_group_has_its_methods_side_by_side_and_what_was_not_measured_is_left_out() -> None:
    figure = grouped_bars(**GROUPED, title="t", unit="hit rate")
    axes = plot(figure)
    first, last, other, alone = dots(axes)
    assert [y for _, y in (first, last, other, alone)] == [0.3, 0.9, 0.2, 0.1]
    assert [int(x) for x, _ in (first, last, other, alone)] == [0, 2, 0, 1]
    assert first[0] < 0.5 < other[0]  # the first method stands left
    assert other[0] + 1 == pytest.approx(alone[0])
    expected = [interval(mean) for mean in (0.3, 0.9, 0.2, 0.1)]
    assert [(low[1], high[1]) for low, high in whiskers(axes)] == [(each.low, each.high) for each in expected]
    assert axes.transData.transform((1.5, 0))[0] == pytest.approx(middle(figure, "Lung Lesion")[0], abs=2)
    legend = {name: look.colour for name, look in styles(GROUPED["bars"]).items()}
    assert dot_colours(axes) == [legend["occlusion"]] * 2 + [legend["random"]] * 2


def test_panels_share_their_axis_and_a_method_looks_alike_in_each() -> None:
    figure = curve_panels(PANELS, title="t", x_label="share", y_label="logit")
    left, right = bars(figure)
    assert left.get_ylim() == right.get_ylim()
    assert left.get_position().y0 == right.get_position().y0
    assert left.get_position().x1 < right.get_position().x0
    assert left.get_xlim() == (0, 1)
    assert not tick_labels(right)
    for axes, panel in zip((left, right), PANELS.values(), strict=True):
        for line, band, curve in zip(axes.lines, axes.collections, panel, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), np.stack([curve.fractions, curve.mean], axis=1))
            edge = {(*vertex,) for vertex in band.get_paths()[0].vertices}
            assert edge == {
                *zip(curve.fractions, curve.low, strict=True),
                *zip(curve.fractions, curve.high, strict=True),
            }
    assert left.lines[1].get_color() == right.lines[0].get_color()
    assert left.lines[0].get_color() != right.lines[1].get_color()
    assert {"occlusion", "random", "other", "share", "logit", "Deletion", "Insertion"} <= set(texts(figure))


def test_looks_differ_in_colour_marker_and_dashes() -> None:
    looks = styles("abcdefgh").values()
    for field in ("colour", "marker", "dashes"):
        assert len({getattr(look, field) for look in looks}) == 8


def test_matrix_stands_upright_with_its_values_and_its_mean_off_the_diagonal() -> None:
    matrix = np.array([[1.0, -0.126, 0.5], [0.2, 1.0, -0.001], [0.3, 0.4, 1.0]])
    figure = matrices({"first": matrix, "second": square(3)}, ["A", "B", "C"], title="t", unit="correlation")
    cells = [axes for axes in figure.axes if axes.collections]
    mesh = cells[0].collections[0]
    np.testing.assert_array_equal(mesh.get_array(), matrix)
    assert mesh.get_clim() == (-1, 1)
    written = {(*text.get_position(),): text.get_text() for text in cells[0].texts}
    assert written[1.5, 0.5] == "−0.13"  # (column, row)
    assert written[0.5, 1.5] == "0.20"
    assert written[2.5, 1.5] == "0.00"
    upper, lower = (cells[0].transData.transform((0, row))[1] for row in (0.5, 2.5))
    assert upper > lower
    letters = [text for text in figure.texts if text.get_text() == "A"]
    beside, *below = [text for text in letters if not text.get_rotation()] + [t for t in letters if t.get_rotation()]
    assert beside.get_window_extent().y0 < upper < beside.get_window_extent().y1
    for axes, text in zip(cells, below, strict=True):
        box = text.get_window_extent()
        assert box.x0 < axes.transData.transform((0.5, 0))[0] < box.x1
        assert box.y1 < axes.get_window_extent().y0
    assert {"mean off the diagonal 0.21", "mean off the diagonal 0.25", "first", "second"} <= set(texts(figure))


def test_matrices_share_one_colour_bar_with_one_at_the_top() -> None:
    figure = CHARTS["matrices"](title="t")
    bar = plot(figure)
    assert tick_labels(bar) == ["−1.0", "−0.5", "0.0", "0.5", "1.0"]
    seen = drawn(figure)
    box = bar.get_window_extent()
    column = seen[:, round((box.x0 + box.x1) / 2)]
    top, bottom = column[len(seen) - round(box.y1) + 3], column[len(seen) - round(box.y0) - 3]
    assert top[0] > top[2]
    assert bottom[2] > bottom[0]
    cells = [axes for axes in figure.axes if axes.collections]
    assert len({axes.get_position().x0 for axes in cells}) == 3
    assert [round(axes.get_position().y0, 6) for axes in cells] == sorted(
        (round(axes.get_position().y0, 6) for axes in cells), reverse=True
    )
    # The fifth stands below the second: the third column has its labels higher up.
    below = [text for text in figure.texts if text.get_text() == "Edema" and text.get_rotation()]
    assert len(below) == 3
    large = next(axes for axes in CHARTS["large matrix"](title="t").axes if axes.collections)
    assert {text.get_text() for text in large.texts} == {"1.0", "−0.4"}


def test_cascade_goes_left_to_right_with_names_at_their_ticks() -> None:
    figure = cascade_lines(**CASCADE, title="t", unit="correlation")
    axes = plot(figure)
    assert [round(x) for x, _ in dots(axes)] == [*range(5)] * 2
    means = [each.mean for intervals in CASCADE["series"].values() for each in intervals]
    assert [y for _, y in dots(axes)] == means
    assert [(low[1], high[1]) for low, high in whiskers(axes)] == [(mean - 0.1, mean + 0.05) for mean in means]
    joined = [line for line in axes.lines if len(line.get_xydata()) == 5 and line.get_transform() == axes.transData]
    assert [line.get_ydata().tolist() for line in joined] == [means[:5], means[5:]]
    assert dashed(axes) == [[[0, 0], [1, 0]]]
    for number, stage in enumerate(STAGES):
        (text,) = [text for text in figure.texts if text.get_text() == stage]
        end = text.get_transform().transform(text.get_position())
        assert end[0] == pytest.approx(axes.transData.transform((number, 0))[0])
        assert end[1] < axes.get_window_extent().y0


# The page


def outline(text: Text) -> Outline:
    """The box of a text, turned as the text is, less what letters leave free."""
    angle = text.get_rotation()
    text.set_rotation(0)
    box = text.get_window_extent()
    text.set_rotation(angle)
    x, y = text.get_transform().transform(text.get_position())
    turn = Affine2D().rotate_deg_around(x, y, angle)
    corners = [(box.x0 + 1, box.y0 + 2), (box.x1 - 1, box.y0 + 2), (box.x1 - 1, box.y1 - 2), (box.x0 + 1, box.y1 - 2)]
    return Outline(turn.transform([*corners, corners[0]]), closed=True)


def frame(box: Any) -> Outline:
    return Outline([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1), (box.x0, box.y0)])


def assert_tidy(figure: Figure) -> None:
    """No text leaves the page, or lies on another, on a plot or on a sample of the legend."""
    drawn(figure)
    panels = [axes for axes in figure.axes if axes.axison or axes.collections]
    outside = list(figure.texts)
    for axes in bars(figure):
        outside += [label for label in (*axes.get_xticklabels(), *axes.get_yticklabels()) if label.get_text()]
    boxes = [(text.get_text(), outline(text)) for text in outside]
    cells = [(text.get_text(), outline(text)) for axes in panels for text in axes.texts]
    for words, box in boxes:
        assert (box.vertices >= 0).all(), words
        assert (box.vertices <= (figure.bbox.x1, figure.bbox.y1)).all(), words
    for (words, box), (other, other_box) in (*combinations(boxes, 2), *combinations(cells, 2)):
        assert not box.intersects_path(other_box), (words, other)
    samples = [line for axes in figure.axes if axes not in panels for line in axes.lines]
    for drawing in (*panels, *samples):
        edge = frame(drawing.get_window_extent())
        for words, box in boxes:
            assert not box.intersects_path(edge), words


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
@pytest.mark.parametrize("words", ["Edema", "W" * 500], ids=["short", "one word"])
def test_no_text_of_a_chart_overlaps(chart: Chart, words: str) -> None:
    assert_tidy(chart(title=words, caption=SENTENCE * 2 if words == "Edema" else None))


@pytest.mark.parametrize("chart", ["rows", "groups", "panels", "cascade"])
def test_no_long_name_is_cut(chart: str) -> None:
    shown = "".join(texts(CHARTS[chart](title="t"))).replace(" ", "")
    names = {"rows": [LONG], "groups": METHODS + FINDINGS, "panels": METHODS, "cascade": METHODS + STAGES}[chart]
    for name in names:
        assert name.replace(" ", "") in shown


@pytest.mark.parametrize("chart", ["rows", "groups", "panels", "matrices", "cascade"])
def test_saved_chart_has_the_same_bytes_each_time(tmp_path: Path, chart: str) -> None:
    for name in ("one.png", "two.png"):
        save(CHARTS[chart](title="t", caption="n = 20"), tmp_path / name, dpi=50)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@given(st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 6)), min_size=1, max_size=5))
def test_axis_holds_all_values_and_its_ticks_say_where_they_are(values: list[float]) -> None:
    axis = NumberAxis.around(values)
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert 2 <= len(axis.ticks) <= 8
    for tick, label in zip(axis.ticks, axis.labels, strict=True):
        assert float(label.replace("−", "-")) == pytest.approx(tick, rel=1e-9, abs=1e-12)
    assert len(set(axis.labels)) == len(axis.labels)
