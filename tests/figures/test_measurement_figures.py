"""The figures of measurements: means as curves or bars, one standard deviation over seeds around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.container import BarContainer

from flgen.errors import UsageError
from flgen.figures.banded_curves import Curve
from flgen.figures.communication_curves import draw_communication
from flgen.figures.comparison_bars import BEST, CHOSEN, FINAL, Bars, draw_comparison
from flgen.figures.gradient_diversity import draw_gradient_diversity
from flgen.figures.marked_curves import draw_marked_curves


def curve(label: str, mean: Sequence[float], std: Sequence[float] = (), x: Sequence[float] = ()) -> Curve:
    places = np.array(x or range(1, len(mean) + 1), dtype=np.float64)
    return Curve(label, places, np.array(mean, dtype=np.float64), np.array(std or [np.nan] * len(mean)))


SCRATCH = curve("from scratch", [0.2, 0.4, 0.5])
GPTFL = curve("GPT-FL", [0.5, 0.6, 0.8], [0.1, 0.05, 0.0])
NO_POINTS = curve("GPT-FL", [])


def draw_all(output: Path) -> dict[str, tuple[Path, Path]]:
    bars = [
        Bars("final round", np.array([0.8, 0.5]), np.array([0.01, np.nan]), FINAL),
        Bars("best round", np.array([0.9, 0.5]), np.array([0.02, np.nan]), BEST),
    ]
    return {
        "diversity": draw_gradient_diversity([SCRATCH, GPTFL], [SCRATCH, GPTFL], output / "diversity"),
        "communication": draw_communication(
            [SCRATCH, GPTFL], output / "communication", ylabel="test accuracy", target=0.45, reached=[3, 1]
        ),
        "participants": draw_marked_curves(
            [SCRATCH, GPTFL], output / "participants", xlabel="clients per round", ylabel="test accuracy"
        ),
        "amount": draw_marked_curves(
            [SCRATCH, GPTFL], output / "amount", xlabel="samples", ylabel="test accuracy", from_zero=True
        ),
        "comparison": draw_comparison(
            ["GPT-FL", "from scratch"], bars, output / "bars", xlabel="test accuracy", numbers=["80", "50"]
        ),
    }


def bands(axes) -> list[FillBetweenPolyCollection]:
    return [drawn for drawn in axes.collections if isinstance(drawn, FillBetweenPolyCollection)]


def test_each_is_one_column_wide_and_names_its_runs(tmp_path, inches_of, words_of) -> None:
    for png, svg in draw_all(tmp_path).values():
        width, height = inches_of(png)
        assert width == pytest.approx(3.4, abs=0.01)
        assert 1 < height < 5.5
        assert {"GPT-FL", "from scratch"} <= set(words_of(svg))


def test_curves_hold_the_means_and_bands_one_deviation_around_them(tmp_path, figures) -> None:
    draw_marked_curves([SCRATCH, GPTFL], tmp_path / "a", xlabel="clients per round", ylabel="accuracy")
    axes = figures[0].axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[1, 0.2], [2, 0.4], [3, 0.5]],
        [[1, 0.5], [2, 0.6], [3, 0.8]],
    ]
    (band,) = bands(axes)  # a run without seeds has none
    corners = band.get_paths()[0].vertices
    for x, low, high in ((1, 0.4, 0.6), (2, 0.55, 0.65), (3, 0.8, 0.8)):
        heights = corners[corners[:, 0] == x, 1]
        assert (heights.min(), heights.max()) == pytest.approx((low, high))


def test_a_single_run_is_drawn_too(tmp_path, figures) -> None:
    draw_marked_curves([curve("one", [0.5])], tmp_path / "a", xlabel="samples", ylabel="accuracy", from_zero=True)
    (line,) = figures[0].axes[0].lines
    assert line.get_marker() == "o"
    assert bands(figures[0].axes[0]) == []


def test_every_amount_has_a_tick_while_they_are_few(tmp_path, figures) -> None:
    draw_marked_curves(
        [curve("a", [0.5] * 5, x=[1, 2, 3, 5, 10])], tmp_path / "a", xlabel="", ylabel="", from_zero=True
    )
    assert figures[0].axes[0].get_xticks().tolist() == [1, 2, 3, 5, 10]
    figures.clear()
    draw_marked_curves([curve("a", [0.5] * 30)], tmp_path / "a", xlabel="clients per round", ylabel="")
    assert len(figures[0].axes[0].get_xticks()) < 12


def test_the_target_is_a_line_and_a_diamond_where_it_was_reached(tmp_path, figures) -> None:
    draw_communication([SCRATCH, GPTFL], tmp_path / "a", ylabel="accuracy", target=0.55, reached=[np.inf, 2])
    axes = figures[0].axes[0]
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert [line.get_xydata().tolist() for line in diamonds] == [[[2, 0.55]]]
    assert any(line.get_ydata()[0] == 0.55 and len(line.get_ydata()) == 2 for line in axes.lines)
    assert "target 0.55" in [text.get_text() for text in axes.texts]
    assert axes.get_ylim()[1] >= 0.8


@pytest.mark.parametrize(("most", "scale"), [(30, "linear"), (90, "log")])
def test_traffic_of_different_magnitude_has_a_logarithmic_axis(tmp_path, figures, most: float, scale: str) -> None:
    runs = [curve("small", [0.1, 0.2], x=[1, 3]), curve("large", [0.1, 0.2], x=[10, most])]
    draw_communication(runs, tmp_path / "a", ylabel="accuracy", target=0.2, reached=[3, most])
    assert figures[0].axes[0].get_xscale() == scale


def test_diversity_has_its_cosine_below_and_lines_for_orthogonal_updates(tmp_path, figures) -> None:
    draw_gradient_diversity([SCRATCH, GPTFL], [SCRATCH, NO_POINTS], tmp_path / "a")
    upper, lower = figures[0].axes
    for axes, height in ((upper, 1.0), (lower, 0.0)):
        assert any(list(line.get_ydata()) == [height, height] for line in axes.lines)
    assert [len(line.get_xydata()) for line in lower.lines[:2]] == [3, 0]
    assert lower.get_xlabel() == "communication round"


def test_diversity_without_any_cosine_is_one_panel(tmp_path, figures) -> None:
    draw_gradient_diversity([GPTFL], [NO_POINTS], tmp_path / "a")
    assert len(figures[0].axes) == 1


def test_updates_that_cancel_leave_the_rest_to_be_seen(tmp_path, figures) -> None:
    draw_gradient_diversity([curve("a", [0.2, np.inf, 90.0, np.nan])], [NO_POINTS], tmp_path / "a")
    axes = figures[0].axes[0]
    assert axes.get_yscale() == "log"
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False, True]
    assert np.isfinite(axes.get_ylim()).all()


def test_bars_are_final_dark_and_best_light_with_whiskers_over_seeds(tmp_path, figures) -> None:
    draw_all(tmp_path)
    axes = figures[-1].axes[0]
    final, best = (drawn for drawn in axes.containers if isinstance(drawn, BarContainer))
    assert [bar.get_width() for bar in final] == [0.8, 0.5]
    assert [bar.get_width() for bar in best] == [0.9, 0.5]
    assert [text.get_text() for text in axes.texts] == ["80", "50"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["GPT-FL", "from scratch"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first run on top
    whiskers = [line for line in axes.collections if len(line.get_segments()) == 1]
    ends = [line.get_segments()[0][:, 0].tolist() for line in whiskers]
    assert ends == [pytest.approx([0.79, 0.81]), pytest.approx([0.88, 0.92])]


def test_three_readings_of_a_run_stand_around_its_row(tmp_path, figures) -> None:
    none = np.array([np.nan, np.nan])
    readings = {"last": [0.8, 0.5], "chosen on validation": [0.7, np.nan], "best on test (flatters)": [0.9, 0.6]}
    colours = (FINAL, CHOSEN, BEST)
    bars = [Bars(name, np.array(mean), none, hue) for (name, mean), hue in zip(readings.items(), colours, strict=True)]
    draw_comparison(["a", "b"], bars, tmp_path / "a", xlabel="", numbers=["80", "50"])
    drawn = [one for one in figures[0].axes[0].containers if isinstance(one, BarContainer)]
    assert [[bar.get_width() for bar in one] for one in drawn] == [[0.8, 0.5], [0.7, 0], [0.9, 0.6]]
    centres = [one[0].get_y() + one[0].get_height() / 2 for one in drawn]
    assert centres == pytest.approx([-0.68 / 3, 0, 0.68 / 3])
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == list(readings)


def test_numbers_beside_bars_and_long_names_stay_inside(tmp_path, figures) -> None:
    values = np.array([1.0, 0.99])
    names = ["a name that is so long that it would leave no room for bars", "$x_1$ & _b"]
    numbers = ["100.00 ± 0.46", "99.00 ± 10.46"]
    bars = [
        Bars(name, values, values / 50, FINAL) for name in ("last", "chosen on validation", "best on test (flatters)")
    ]
    draw_comparison(names, bars, tmp_path / "a", xlabel="accuracy", numbers=numbers)
    figures[0].draw_without_rendering()
    axes = figures[0].axes[0]
    (legend,) = figures[0].legends
    for text in (*axes.texts, *axes.get_yticklabels(), legend):
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figures[0].bbox.width + 1
    assert axes.get_window_extent().width > 1.2 * figures[0].dpi
    assert axes.get_yticklabels()[1].get_text() == "$x_1$ & _b"


def test_what_is_not_a_number_has_no_bar(tmp_path, figures) -> None:
    values, none = np.array([np.nan, 0.5]), np.array([np.nan, np.nan])
    bars = [Bars("final round", values, none, FINAL), Bars("best round", values, none, BEST)]
    draw_comparison(["a", "b"], bars, tmp_path / "a", xlabel="", numbers=["nan", "50.00"])
    assert [bar.get_width() for bar in figures[0].axes[0].containers[0]] == [0, 0.5]


@pytest.mark.parametrize("count", [1, 7])
def test_the_legend_lies_below_the_axes(tmp_path, figures, count: int) -> None:
    runs = [curve(f"a folder's name that is rather long {number}", [0.5, 0.6]) for number in range(count)]
    draw_marked_curves(runs, tmp_path / "a", xlabel="clients per round", ylabel="accuracy")
    figures[0].draw_without_rendering()
    (legend,) = figures[0].legends
    assert 0 <= legend.get_window_extent().y0 < legend.get_window_extent().y1 <= figures[0].axes[0].get_tightbbox().y0
    assert figures[0].axes[0].get_window_extent().height > 1.3 * figures[0].dpi


def test_another_format_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--output .*a.pdf"):
        draw_marked_curves([GPTFL], tmp_path / "a.pdf", xlabel="clients per round", ylabel="accuracy")
