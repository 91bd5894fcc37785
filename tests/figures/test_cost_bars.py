"""The figure of a round's costs: a bar per run and way, a diamond for the formula."""

from __future__ import annotations

from pathlib import Path

import pytest

from flgen.figures.cost_bars import Bar, draw_cost_bars

UP = [Bar(0.5, 0.4), Bar(0.002, None), Bar(0.0, 0.0)]
DOWN = [Bar(40.0, 30.0), Bar(0.002, None), Bar(0.0, 0.0)]


def test_bars_are_megabytes_and_diamonds_the_formula(tmp_path: Path, figures) -> None:
    draw_cost_bars(["a", "b", "c"], {"up": UP, "down": DOWN}, tmp_path / "a")
    (axes,) = figures[0].axes
    assert [[patch.get_width() for patch in bars] for bars in axes.containers] == [[0.5, 0.002, 0], [40, 0.002, 0]]
    (diamonds,) = axes.lines
    assert diamonds.get_xdata().tolist() == [0.4, 30.0]
    assert diamonds.get_ydata().tolist() == pytest.approx([-0.19, 0.19])
    low, high = axes.get_xlim()
    assert low < 0.002 < 40 < high


@pytest.mark.parametrize("bars", [UP[1:2], UP[2:]])
def test_runs_without_a_formula_or_that_send_nothing_are_drawn_too(tmp_path: Path, words_of, inches_of, bars) -> None:
    png, svg = draw_cost_bars(["a $run"], {"up": bars, "down": bars}, tmp_path / "a")
    assert inches_of(png)[0] == pytest.approx(3.4, abs=0.01)
    words = words_of(svg)
    assert "a $run" in words
    assert "formula" not in words
