import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from mapstack.errors import InputError
from mapstack.figures import figure_1, figure_2, grid_figure, overlay_figure, overlay_png, save
from mapstack.overlay import blend, scale_of
from mapstack.page import short_number, wrapped
from tests.figures.drawn import (
    HEIGHT,
    SENTENCE,
    WIDTH,
    assert_tidy,
    bars,
    drawn,
    image_axes,
    pixels,
    raster,
    region,
    texts,
    tick_labels,
)


def test_figure_shows_the_map_upright_in_its_colours(picture: np.ndarray, attribution: np.ndarray) -> None:
    figure = overlay_figure(np.full_like(picture, 90), attribution, title="Edema", unit="logit per pixel")
    (axes,) = image_axes(figure)
    seen = region(figure, axes)
    third, half = seen.shape[1] // 3, seen.shape[0] // 2
    upper_left, lower_left = seen[: half - 9, : third - 9], seen[half + 9 :, : third - 9]
    upper_right, lower_right = seen[: half - 9, 2 * third + 9 :], seen[half + 9 :, 2 * third + 9 :]
    assert (upper_left[..., 0] > upper_left[..., 2] + 90).all()
    assert (lower_right[..., 2] > lower_right[..., 0] + 90).all()
    assert (lower_left == 90).all()
    assert (upper_right == 90).all()


def test_figure_keeps_the_shape_of_the_picture(picture: np.ndarray, attribution: np.ndarray) -> None:
    for part in (np.s_[:, :], np.s_[:4], np.s_[:, :3]):
        figure = overlay_figure(picture[part], attribution[part], title="t", unit="u")
        box = image_axes(figure)[0].get_window_extent()
        height, width = picture[part].shape
        assert box.width / box.height == pytest.approx(width / height, rel=1e-6)


def test_colour_bar_runs_from_blue_to_red_with_symmetric_numbers(picture: np.ndarray, attribution: np.ndarray) -> None:
    figure = overlay_figure(picture, attribution, title="t", unit="logit per pixel")
    (bar,) = bars(figure)
    assert tick_labels(bar) == ["−2", "−1", "0", "1", "2"]
    assert "logit per pixel ×10⁻⁵" in texts(figure)
    assert "Colours end at ±2×10⁻⁵, the 99.5th percentile of |attribution|." in texts(figure)
    seen = region(figure, bar)
    assert (seen[5, :, 0] > seen[5, :, 2] + 90).all()  # the top
    assert (seen[-5, :, 2] > seen[-5, :, 0] + 90).all()
    assert (abs(seen[len(seen) // 2] - 128) < 12).all()


def test_colour_bar_says_what_is_clipped_and_what_limit_was_given(picture: np.ndarray, attribution: np.ndarray) -> None:
    figure = overlay_figure(picture, attribution, title="t", unit="u", limit=1e-5)
    assert tick_labels(bars(figure)[0]) == ["≤−1", "−0.5", "0", "0.5", "≥1"]
    assert "Colours end at ±1×10⁻⁵, as given." in texts(figure)


def test_colour_bar_of_a_map_without_sign_begins_at_zero(picture: np.ndarray, attribution: np.ndarray) -> None:
    figure = overlay_figure(picture, np.abs(attribution) * 1e5, title="t", unit="u", signed=False)
    assert tick_labels(bars(figure)[0]) == ["0", "0.5", "1", "1.5", "2"]
    assert "Colours end at 2, the 99.5th percentile of |attribution|." in texts(figure)


def test_blank_map_shows_the_bare_picture_and_says_so(picture: np.ndarray) -> None:
    blank = np.zeros(picture.shape, np.float32)
    figure = overlay_figure(picture, blank, title="t", unit="u", peak=True)
    assert "No attribution: the map is zero everywhere." in texts(figure)
    assert not bars(figure)
    (axes,) = image_axes(figure)
    assert not axes.lines
    np.testing.assert_array_equal(raster(axes), np.stack([picture] * 3, axis=-1))
    np.testing.assert_array_equal(pixels(overlay_png(picture, blank)), np.stack([picture] * 3, axis=-1))


def test_box_encloses_exactly_its_pixels(picture: np.ndarray, attribution: np.ndarray) -> None:
    figure = overlay_figure(picture, attribution, title="t", unit="u", boxes=[(3, 10, 9, 28)])
    outlines = [patch for patch in image_axes(figure)[0].patches if isinstance(patch, Rectangle)]
    corners = {(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in outlines}
    assert corners == {(9.5, 2.5, 18, 6)}
    # The centre of a pixel is at a whole number, so its edges are half a pixel beyond.
    assert image_axes(figure)[0].get_xlim() == (-0.5, WIDTH - 0.5)
    assert image_axes(figure)[0].get_ylim() == (HEIGHT - 0.5, -0.5)


def test_peak_is_the_first_highest_score_not_the_strongest(picture: np.ndarray) -> None:
    scores = np.zeros((HEIGHT, WIDTH))
    scores[5, 7] = scores[20, 2] = 1.0
    scores[10, 10] = -9.0
    axes = image_axes(overlay_figure(picture, scores, title="t", unit="u", peak=True))[0]
    assert {(*line.get_xydata()[0],) for line in axes.lines} == {(7, 5)}
    assert axes.get_xlim() == (-0.5, WIDTH - 0.5)
    assert not image_axes(overlay_figure(picture, scores, title="t", unit="u"))[0].lines


@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[:2], np.s_[:, :2]], ids=["usual", "wide", "tall"])
@pytest.mark.parametrize("title", ["Edema", f"{SENTENCE} " * 20, "W" * 500], ids=["short", "long", "one word"])
def test_no_text_of_a_figure_overlaps(picture: np.ndarray, attribution: np.ndarray, part: Any, title: str) -> None:
    figure = overlay_figure(
        picture[part],
        attribution[part] * 0.605,
        title=title,
        unit="logit per unit of normalised brightness",
        caption=SENTENCE * 2,
    )
    assert_tidy(figure)


# Text


def test_text_is_wrapped_to_a_width_and_cut_with_an_ellipsis() -> None:
    whole = wrapped(SENTENCE, 8.0, 1.9, 10)
    assert " ".join(whole.lines) == SENTENCE
    assert len(whole.lines) > 2
    cut = wrapped(SENTENCE, 8.0, 1.9, 2)
    assert cut.lines[0] == whole.lines[0]
    assert cut.lines[1].endswith("…")
    word = wrapped("a" * 100, 8.0, 1.9, 50)
    assert "".join(word.lines) == "a" * 100
    assert len(word.lines) > 2
    assert wrapped("", 8.0, 1.9, 3).lines == ()
    assert wrapped("one line", 8.0, 9.0, 1).lines == ("one line",)


def test_characters_that_the_font_lacks_and_dollars_are_drawn_without_a_warning(
    picture: np.ndarray, attribution: np.ndarray
) -> None:
    title = "肺炎 costs $5\nor $\\no_{$\x00"
    figure = overlay_figure(picture, attribution, title=title, unit="$u$", caption="$\\no_{$")
    drawn(figure)  # warnings are errors
    assert "\ufffd\ufffd costs $5 or $\\no_{$\ufffd" in texts(figure)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.25"),
        (999.0, "999"),
        (0.0123, "0.0123"),
        (1234.0, "1.23×10³"),
        (9.999e-6, "1×10⁻⁵"),
        (5e-324, "4.94×10⁻³²⁴"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


# Tables


def test_table_puts_each_map_in_its_row_and_column(picture: np.ndarray, maps: list[list[np.ndarray]]) -> None:
    figure = grid_figure(picture, ["occlusion", "gradient"], ["A", "B", "C"], maps, title="t", unit="u")
    bare, *cells = image_axes(figure)
    np.testing.assert_array_equal(raster(bare), picture)
    assert bare.get_position().x1 < min(axes.get_position().x0 for axes in cells)
    places = {(round(axes.get_position().y0, 6), round(axes.get_position().x0, 6)): axes for axes in cells}
    bottoms = sorted({bottom for bottom, _ in places}, reverse=True)
    lefts = sorted({left for _, left in places})
    for row, bottom in enumerate(bottoms):
        for column, left in enumerate(lefts):
            expected = blend(picture, maps[row][column], scale_of([maps[row][column]], signed=True))
            np.testing.assert_array_equal(raster(places[bottom, left]), expected)
    for name, axes in zip("ABC", cells, strict=False):
        (heading,) = [text for text in figure.texts if text.get_text() == name]
        assert heading.get_position()[0] == pytest.approx(axes.get_position().x0)
        assert heading.get_position()[1] > axes.get_position().y1
    assert_tidy(figure)


def test_maps_with_scales_of_their_own_state_them(picture: np.ndarray, maps: list[list[np.ndarray]]) -> None:
    figure = grid_figure(picture, ["a", "b"], ["A", "B", "C"], maps, title="t", unit=["logit", "slope"])
    limits = [scale_of([scores], signed=True).limit for row in maps for scores in row]
    notes = [text for text in texts(figure) if text.startswith("L = ") or text == "no attribution"]
    assert notes == [f"L = {short_number(limit)}" if limit else "no attribution" for limit in limits]
    assert [tick_labels(bar) for bar in bars(figure)] == [["−L", "0", "L"]] * 2
    assert {"logit", "slope"} <= set(texts(figure))


def test_maps_of_a_row_can_share_their_scale(picture: np.ndarray, maps: list[list[np.ndarray]]) -> None:
    maps[1] = [scores * 0 for scores in maps[1]]
    figure = grid_figure(picture, ["a", "b"], ["A", "B", "C"], maps, title="t", unit="u", shared_scale="row")
    scale = scale_of(maps[0], signed=True)
    for axes, scores in zip(image_axes(figure)[1:4], maps[0], strict=True):
        np.testing.assert_array_equal(raster(axes), blend(picture, scores, scale))
    (bar,) = bars(figure)  # the lower row has nothing to show
    assert tick_labels(bar)[-1] == f"≥{short_number(scale.limit)}"
    assert "no attribution" in texts(figure)
    assert not [text for text in texts(figure) if text.startswith("L = ")]


def test_figure_1_has_a_method_per_row_each_with_its_unit_and_sign(
    picture: np.ndarray, maps: list[list[np.ndarray]]
) -> None:
    absolute = [np.abs(scores) for scores in maps[0]]
    figure = figure_1(
        picture,
        ["saliency", "occlusion"],
        ["Edema", "Fracture", "No Finding"],
        [absolute, maps[1]],
        unit=["slope", "logit"],
        signed=[False, True],
        boxes=[(1, 2, 3, 4)],
        caption="random weights",
    )
    assert [tick_labels(bar) for bar in bars(figure)] == [["0", "L/2", "L"], ["−L", "0", "L"]]
    assert {"saliency", "occlusion", "Edema", "Fracture", "No Finding", "random weights"} <= set(texts(figure))
    assert all(len(axes.patches) == 2 for axes in image_axes(figure))
    assert_tidy(figure)


@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[:2], np.s_[:, :2]], ids=["usual", "wide", "tall"])
@pytest.mark.parametrize("sharing", ["cell", "row"])
def test_figure_2_writes_the_sentences_above_and_the_labels_below(
    picture: np.ndarray, maps: list[list[np.ndarray]], part: Any, sharing: Any
) -> None:
    rows = [[scores[part] for scores in row] for row in maps]
    prompts, labels = [SENTENCE, "Mild edema.", SENTENCE * 9], ["Cardiomegaly", "Edema", "Enlarged Cardiomediastinum"]
    figure = figure_2(
        picture[part], prompts, rows[0], labels, rows[1], method="occlusion", unit="logit", shared_scale=sharing
    )
    assert_tidy(figure)
    upper, lower = image_axes(figure)[1:4], image_axes(figure)[4:]
    heights = {text.get_text(): text.get_position()[1] for text in figure.texts}
    assert heights["Mild edema."] > upper[1].get_position().y1
    assert upper[1].get_position().y0 > heights["Edema"] > lower[1].get_position().y1
    assert [text for text in texts(figure) if text.endswith("…")]  # the endless sentence is cut


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"rows": ["a"]},
            "a table of 1 rows was given 2 rows of maps, 1 units and 1 signs; each row has one, and there",
        ),
        (
            {"unit": ["u"]},
            "a table of 2 rows was given 2 rows of maps, 1 units and 2 signs; each row has one, and there",
        ),
        ({"signed": [True] * 3}, "a table of 2 rows was given 2 rows of maps, 2 units and 3 signs; each row has one"),
        ({"columns": ["A"]}, "row 1 of a table has 3 maps for 1 headings, and row 1 has 1; the numbers must agree"),
        ({"rows": [], "attributions": []}, "a table of 0 rows was given 0 rows of maps"),
        ({"columns": [], "attributions": [[], []]}, "row 1 of a table has 0 maps for 0 headings, and row 1 has 0; the"),
        ({"shared_scale": "rows"}, "shared_scale 'rows' is unknown; choose one of cell, row. Did you mean 'row'?"),
    ],
)
@pytest.mark.usefixtures("plain_types")
def test_table_whose_parts_do_not_agree_is_refused(
    picture: np.ndarray, maps: list[list[np.ndarray]], changes: dict[str, Any], sentence: str
) -> None:
    wanted = {"rows": ["a", "b"], "columns": ["A", "B", "C"], "attributions": maps, "title": "t", "unit": "u"}
    with pytest.raises(InputError) as caught:
        grid_figure(picture, **{**wanted, **changes})
    assert str(caught.value).startswith(sentence)


# Files


def test_saved_figure_has_the_same_bytes_each_time_and_no_metadata(
    tmp_path: Path, picture: np.ndarray, attribution: np.ndarray
) -> None:
    for name in ("one.png", "two.png"):
        save(overlay_figure(picture, attribution, title="t", unit="u", boxes=[(0, 0, 4, 4)]), tmp_path / name, dpi=60)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert set(image.info) <= {"dpi"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_dpi_scales_the_file(tmp_path: Path, picture: np.ndarray, attribution: np.ndarray) -> None:
    figure = overlay_figure(picture, attribution, title="t", unit="u")
    for dpi in (50, 100):
        save(figure, tmp_path / f"{dpi}.png", dpi=dpi)
    with Image.open(tmp_path / "50.png") as small, Image.open(tmp_path / "100.png") as large:
        assert abs(large.width - 2 * small.width) <= 1
        assert abs(large.height - 2 * small.height) <= 1


def test_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, picture: np.ndarray, attribution: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(b"old")

    def torn(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(OSError, match="No space left"):
        save(overlay_figure(picture, attribution, title="t", unit="u"), path, dpi=50)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_figure_is_saved_as_png_only(tmp_path: Path, picture: np.ndarray, attribution: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^picture path with suffix '\.jpg' is wrong; a figure is saved as \.png; "):
        save(overlay_figure(picture, attribution, title="t", unit="u"), tmp_path / "Mrs Canary.jpg")


def test_pictures_need_no_pyplot_and_the_raster_no_matplotlib() -> None:
    code = (
        "import sys, mapstack.overlay; assert 'matplotlib' not in sys.modules; "
        "import mapstack.figures; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
