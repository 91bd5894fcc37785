"""Three maps of clients by clients: label cosine, the published scaling, and the plain distance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flgen.figures.mask_maps import draw_mask_maps


def symmetric(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(0.3, 0.5, (count, count))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 0)
    return values


def draw(tmp_path, distance: np.ndarray, correlation: float = 0.5, **options):
    return draw_mask_maps(
        1 - distance,
        np.eye(len(distance)),
        distance,
        tmp_path / "masks.png",
        correlation=correlation,
        independent=0.4074,
        **options,
    )


def test_a_page_wide_with_titles_axes_and_numbers(tmp_path, inches_of, words_of) -> None:
    distance = symmetric(20)
    png, svg = draw(tmp_path, distance)
    width, height = inches_of(png)
    assert width == pytest.approx(7, abs=0.01)
    assert height < 3
    words = words_of(svg)
    assert words.count("Client ID") == 6
    titles = ["(a) cosine of label counts", "(b) mask similarity, scaled by row", "(c) mask distance D/d"]
    assert [text for text in words if text.startswith("(")] == titles
    mean = distance.sum() / (20 * 19)
    assert (
        f"rank correlation 0.50 of label cosine and mask closeness, mean D/d {mean:.3f} (independent masks 0.407)"
        in words
    )


def test_maps_are_viridis_from_the_lower_left_and_bright_is_alike(tmp_path, figures) -> None:
    distance = symmetric(20)
    draw(tmp_path, distance)
    pictures = [axes.images[0] for axes in figures[0].axes if axes.images]
    assert [picture.get_cmap().name for picture in pictures] == ["viridis", "viridis", "viridis_r"]
    assert {picture.origin for picture in pictures} == {"lower"}
    assert [picture.get_clim() for picture in pictures[:2]] == [(0, 1), (0, 1)]
    apart = distance[~np.eye(20, dtype=bool)]
    assert pictures[2].get_clim() == pytest.approx((apart.min(), apart.max()))
    np.testing.assert_array_equal(pictures[0].get_array(), 1 - distance)
    shown = pictures[2].get_array()
    assert shown.mask.tolist() == np.eye(20, dtype=bool).tolist()
    np.testing.assert_array_equal(shown.data, distance)
    assert len(figures[0].axes) == 6  # each with its colour bar


@pytest.mark.parametrize(
    ("count", "ticks"),
    [
        (2, [0, 1]),
        (4, [0, 1, 2, 3]),
        (10, [0, 3, 6, 9]),
        (20, [0, 5, 10, 15, 19]),
        (100, [0, 25, 50, 75, 99]),
        (101, [0, 26, 52, 78, 100]),
    ],
)
def test_ticks_go_from_the_first_client_to_the_last(tmp_path, figures, count: int, ticks: list[int]) -> None:
    draw(tmp_path, symmetric(count))
    axes = figures[0].axes[0]
    assert axes.get_xticks().tolist() == axes.get_yticks().tolist() == ticks


def test_clients_have_their_own_numbers(tmp_path, figures) -> None:
    draw(tmp_path, symmetric(3), clients=[2, 5, 11])
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == ["2", "5", "11"]


@pytest.mark.parametrize(("value", "limits"), [(0.0, (0, 1)), (0.3, (0, 0.3))])
def test_equal_distances_are_drawn_without_a_correlation(tmp_path, figures, value: float, limits) -> None:
    draw(tmp_path, value * (1 - np.eye(4)), correlation=math.nan)
    assert figures[0].axes[4].images[0].get_clim() == limits
    title = f"no rank correlation of label cosine and mask closeness, mean D/d {value:.3f} (independent masks 0.407)"
    assert figures[0].get_suptitle() == title
