"""The figure of class pictures: rows of rounds, columns of classes, empty cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from flgen.figures.class_pictures import draw_class_pictures


def flat(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, dtype=np.uint8)


def test_every_picture_stands_under_its_class_in_its_round(tmp_path: Path, figures) -> None:
    rows = {1: {5: flat(10)}, 9: {2: flat(20), 5: flat(30)}}
    draw_class_pictures(rows, {5: "five", 2: "two"}, tmp_path / "a", note="two of ten")
    (axes,) = figures[0].axes
    found = {
        (round(np.mean(image.get_extent()[:2])), round(np.mean(image.get_extent()[2:]))): image.get_array()[0, 0, 0]
        for image in axes.images
    }
    assert found == {(0, 0): 10, (1, 1): 20, (0, 1): 30}
    empty = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [np.round(patch.get_center()).tolist() for patch in empty] == [[1, 0]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["five", "two"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "9"]
    assert axes.get_xlabel() == "two of ten"
    assert axes.yaxis_inverted()


@pytest.mark.parametrize(("classes", "rounds"), [(1, 1), (10, 8), (20, 8)])
def test_it_is_between_one_column_and_two_wide(tmp_path: Path, inches_of, words_of, classes: int, rounds: int) -> None:
    names = {label: f"class ${label}" for label in range(classes)}
    png, svg = draw_class_pictures({t: {0: flat(9)} for t in range(rounds)}, names, tmp_path / "a")
    width, height = inches_of(png)
    assert 3.39 < width < 7.01
    assert 0.7 < height < 6
    assert set(names.values()) <= set(words_of(svg))
