"""The accuracy of several runs in one column of a paper: a hue per run, dark and light, nothing hidden."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from flgen.errors import UsageError
from flgen.figures.accuracy_curves import AccuracyCurves, draw_accuracy_curves

DISPFL = AccuracyCurves("DisPFL", {1: 0.1, 2: 0.3, 5: 0.6}, {1: 0.4, 2: 0.5, 5: 0.7})
FEDAVG = AccuracyCurves("FedAvg", {1: 0.2, 2: 0.4})


def test_one_column_with_axes_runs_and_what_dark_and_light_mean(tmp_path, inches_of, words_of) -> None:
    png, svg = draw_accuracy_curves([DISPFL, FEDAVG], tmp_path / "accuracy.png")
    width, height = inches_of(png)
    assert width == pytest.approx(3.4, abs=0.01)
    assert 2 < height < 3.4
    words = words_of(svg)
    for text in ("communication round", "Accuracy (on local data)", "DisPFL", "FedAvg"):
        assert words.count(text) == 1
    assert "dark: after aggregation, light: after training" in words


def test_curves_hold_the_numbers_of_the_runs(tmp_path, figures) -> None:
    draw_accuracy_curves([DISPFL, FEDAVG], tmp_path / "accuracy.png")
    drawn = [line.get_xydata().tolist() for line in figures[0].axes[0].lines]
    assert drawn == [
        [[1, 0.1], [2, 0.3], [5, 0.6]],
        [[1, 0.4], [2, 0.5], [5, 0.7]],
        [[1, 0.2], [2, 0.4]],
    ]


def lightness(colour) -> float:
    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def test_dark_is_after_aggregation_and_hues_differ(tmp_path, figures) -> None:
    runs = [AccuracyCurves(str(number), {1: 0.5, 2: 0.6}, {1: 0.6, 2: 0.7}) for number in range(6)]
    draw_accuracy_curves(runs, tmp_path / "accuracy.png")
    lines = figures[0].axes[0].lines
    dark, light = lines[::2], lines[1::2]
    for one, other in zip(dark, light, strict=True):
        assert lightness(other.get_color()) > lightness(one.get_color()) + 0.2
        assert one.get_zorder() > other.get_zorder()
    colours = [np.array(to_rgb(line.get_color())) for line in lines]
    assert min(np.linalg.norm(first - second) for first, second in combinations(colours, 2)) > 0.14


def test_more_runs_than_hues_get_dashes(tmp_path, figures) -> None:
    draw_accuracy_curves([AccuracyCurves(str(number), {1: 0.5, 2: 0.6}) for number in range(14)], tmp_path / "a")
    lines = figures[0].axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 14


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("label", ["{}", "a folder's name that is rather long {}"])
def test_the_legend_hides_no_part_of_the_axes_and_is_not_cut_off(tmp_path, figures, count: int, label: str) -> None:
    draw_accuracy_curves([AccuracyCurves(label.format(n), {1: 0.5, 9: 0.6}) for n in range(count)], tmp_path / "a")
    figures[0].draw_without_rendering()
    (legend,) = figures[0].legends
    box, axes = legend.get_window_extent(), figures[0].axes[0].get_tightbbox()
    assert box.y1 <= axes.y0
    assert 0 <= box.x0 < box.x1 <= figures[0].bbox.width
    assert box.y0 >= 0
    assert figures[0].axes[0].get_window_extent().height > 1.4 * figures[0].dpi


def test_names_are_taken_as_they_are(tmp_path, words_of) -> None:
    labels = ["_underscore", "$x_1$ & <b>"]
    _, svg = draw_accuracy_curves([AccuracyCurves(label, {1: 0.5}) for label in labels], tmp_path / "accuracy")
    assert words_of(svg)[-2:] == labels


def test_the_title_speaks_of_what_is_drawn(tmp_path, words_of) -> None:
    _, svg = draw_accuracy_curves([AccuracyCurves("Local", {}, {1: 0.5, 2: 0.6})], tmp_path / "accuracy")
    assert "light: after training" in words_of(svg)
    assert not any("aggregation" in text for text in words_of(svg))


def test_points_are_marked_while_they_are_few(tmp_path, figures) -> None:
    many = {t: 0.5 for t in range(1, 100)}
    draw_accuracy_curves([AccuracyCurves("one", {7: 0.5}), AccuracyCurves("many", many)], tmp_path / "accuracy")
    assert [line.get_marker() for line in figures[0].axes[0].lines] == ["o", "None"]


def test_accuracy_starts_at_zero_and_ends_at_one_at_most(tmp_path, figures) -> None:
    for top, limit in ((0.5, 0.53), (1.0, 1.0), (0.0, 1.0), (float("nan"), 1.0)):
        figures.clear()
        draw_accuracy_curves([AccuracyCurves("run", {1: 0.0, 2: top})], tmp_path / "accuracy")
        assert figures[0].axes[0].get_ylim() == pytest.approx((0, limit))


def test_another_format_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--output .*accuracy.pdf"):
        draw_accuracy_curves([DISPFL], tmp_path / "accuracy.pdf")
