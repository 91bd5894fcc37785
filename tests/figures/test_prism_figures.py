"""The figures of generators: FID over bytes, mask distance over rounds, density per layer, samples side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from flgen.errors import FlgenError, UsageError
from flgen.figures.banded_curves import Curve
from flgen.figures.fid_bytes import Spending, draw_fid_bytes
from flgen.figures.layer_density import draw_layer_density
from flgen.figures.mask_drift import draw_mask_drift
from flgen.figures.paper import HUES
from flgen.figures.point_labels import label_points
from flgen.figures.samples_side_by_side import SampleSheet, draw_samples_side_by_side
from flgen.metrics.over_seeds import Spread

NAN = float("nan")


def curve(label: str, mean: Sequence[float], std: Sequence[float] = (), x: Sequence[float] = ()) -> Curve:
    places = np.array(x or range(1, len(mean) + 1), dtype=np.float64)
    return Curve(label, places, np.array(mean, dtype=np.float64), np.array(std or [np.nan] * len(mean)))


def spending(label: str, megabytes: float, fid: float, std: float = NAN, **counts: float) -> Spending:
    path = curve(label, [4 * fid, fid], [NAN, std], x=[megabytes / 10, megabytes])
    return Spending(label, path, {name.replace("_", " "): value for name, value in counts.items()})


def points_of(figure: Figure) -> list[tuple[float, float]]:
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def sheet(path: Path, level: int, size: tuple[int, int] = (40, 40)) -> Path:
    Image.new("L", size, level).save(path)
    return path


def test_all_are_saved_twice_at_the_widths_of_a_paper(tmp_path, inches_of, words_of) -> None:
    a, b = sheet(tmp_path / "a-samples.png", 20), sheet(tmp_path / "b-samples.png", 200)
    one = Spread(0.4, NAN, 1)
    drawn = {
        "bytes": (
            draw_fid_bytes([spending("Prism", 3, 9), spending("FedAvg", 90, 7)], tmp_path / "a", ylabel="F"),
            3.4,
        ),
        "drift": (draw_mask_drift([curve("Prism", [0.4])], [curve("Prism", [9])], tmp_path / "b", ylabel="F"), 3.4),
        "density": (draw_layer_density({"Prism": {"first": one, "last": one}}, tmp_path / "c"), 3.4),
        "samples": (
            draw_samples_side_by_side([SampleSheet("Prism", a), SampleSheet("x", b)], tmp_path / "d"),
            7 * 2 / 3,
        ),
    }
    for (png, svg), width in drawn.values():
        assert inches_of(png)[0] == pytest.approx(width, abs=0.01)
        assert "Prism" in words_of(svg)


def test_a_run_is_a_point_at_its_last_bytes_with_a_whisker_over_seeds(tmp_path, figures) -> None:
    draw_fid_bytes([spending("Prism", 3, 9, std=2.0), spending("FedAvg", 90, 7)], tmp_path / "a", ylabel="FID")
    (axes,) = figures[0].axes
    assert points_of(figures[0]) == [(3, 9), (90, 7)]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] < 3 < 90 < axes.get_xlim()[1]
    whiskers = [segment[:, 1].tolist() for drawn in axes.collections for segment in drawn.get_segments()]
    assert whiskers == [[7, 11]]
    assert [text.get_text() for text in axes.texts] == ["Prism", "FedAvg"]
    assert figures[0].legends == []


def test_the_way_to_a_point_is_drawn_on_demand(tmp_path, figures) -> None:
    for paths in (False, True):
        draw_fid_bytes([spending("Prism", 3, 9)], tmp_path / "a", ylabel="FID", paths=paths)
    without, with_path = (
        [line.get_xydata().tolist() for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
        for figure in figures
    )
    assert without == []
    assert with_path == [[[pytest.approx(0.3), 36], [3, 9]]]
    assert figures[1].axes[0].get_xlim()[0] < 0.3


def test_other_counts_stand_on_the_level_of_the_point_and_in_the_legend(tmp_path, figures) -> None:
    runs = [spending("Prism", 3, 9, one_bit=3.1, authors=4.0), spending("FedAvg", 90, 7)]
    draw_fid_bytes(runs, tmp_path / "a", ylabel="FID")
    shown = [line for line in figures[0].axes[0].lines if len(line.get_xdata()) == 1]
    marks = {line.get_marker(): line.get_xydata().tolist() for line in shown}
    assert marks["s"] == [[3.1, 9]]
    assert marks["v"] == [[4, 9]]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["bytes sent", "one bit", "authors"]


def test_a_run_keeps_its_hue_and_a_seventh_has_another_mark(tmp_path, figures) -> None:
    draw_fid_bytes([spending(f"run {n}", 1 + n, 9) for n in range(7)], tmp_path / "a", ylabel="FID")
    points = [line for line in figures[0].axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_color() for line in points] == [*HUES, HUES[0]]
    assert [line.get_marker() for line in points] == ["o"] * 6 + ["D"]


@pytest.mark.parametrize(("fids", "scale"), [((5, 90), "linear"), ((5, 200), "log")])
def test_fids_of_different_magnitude_have_a_logarithmic_axis(tmp_path, figures, fids, scale) -> None:
    draw_fid_bytes([spending(str(fid), 3, fid) for fid in fids], tmp_path / "a", ylabel="FID")
    assert figures[0].axes[0].get_yscale() == scale


def test_an_axis_of_bytes_that_are_all_the_same_has_ticks(tmp_path, figures) -> None:
    draw_fid_bytes([spending("a", 0.35, 7), spending("b", 0.35, 4)], tmp_path / "a", ylabel="FID")
    figures[0].draw_without_rendering()
    (axes,) = figures[0].axes
    low, high = axes.get_xlim()
    labelled = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    ticks = [(float(x), text.get_text()) for x, text in labelled if low <= x <= high]
    assert ticks == [(0.2, "0.2"), (0.5, "0.5"), (1.0, "1")]


@pytest.mark.parametrize("paths", [False, True])
def test_names_cover_neither_each_other_nor_points_and_stay_inside(tmp_path, figures, paths) -> None:
    runs = [spending(f"prism with option {n}", 3 + 0.02 * n, 9 + 0.1 * n, std=0.2) for n in range(8)]
    runs += [spending("FedAvg of the generator", 90, 6), spending("$x_1$ & _b", 91, 6.05)]
    draw_fid_bytes(runs, tmp_path / "a", ylabel="FID", paths=paths)
    figures[0].draw_without_rendering()
    (axes,) = figures[0].axes
    extents = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to the points
    assert len(extents) == 10
    for first, second in itertools.combinations(extents, 2):
        assert not first.overlaps(second)
    places = axes.transData.transform([(run.path.x[-1], run.path.mean[-1]) for run in runs])
    inside = axes.get_window_extent()
    for extent in extents:
        assert not any(extent.contains(*place) for place in places)
        assert inside.x0 <= extent.x0 < extent.x1 <= inside.x1
        assert inside.y0 <= extent.y0 < extent.y1 <= inside.y1
    assert axes.texts[-1].get_text() == "$x_1$ & _b"


def test_a_name_far_from_its_point_has_a_line_to_it() -> None:
    figure = Figure(figsize=(3, 3))
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    crowd = [(0.5 + 0.03 * x, 0.5 + 0.03 * y) for x in range(-3, 4) for y in range(-3, 4)]
    label_points(axes, [(0.5, 0.5), (0.1, 0.9)], ["in the crowd", "alone"], ["#000000"] * 2, crowd)
    crowded, alone = axes.texts
    assert crowded.arrow_patch is not None
    assert alone.arrow_patch is None


def test_distance_is_above_and_the_measure_below_it(tmp_path, figures) -> None:
    drifts = [curve("MADA", [0.4, 0.2], [0.01, 0.02]), curve("no MADA", [0.4, 0.4])]
    draw_mask_drift(drifts, [curve("MADA", [20, 9]), curve("no MADA", [])], tmp_path / "a", ylabel="FID (digits)")
    upper, lower = figures[0].axes
    assert [line.get_ydata().tolist() for line in upper.lines[:2]] == [[0.4, 0.2], [0.4, 0.4]]
    assert [line.get_ydata().tolist() for line in lower.lines] == [[20, 9], []]
    assert any(list(line.get_ydata()) == [0.5, 0.5] for line in upper.lines)
    assert [len(axes.collections) for axes in (upper, lower)] == [1, 0]  # one run has seeds
    assert lower.get_ylabel() == "FID (digits)"
    assert upper.get_ylim()[0] == lower.get_ylim()[0] == 0


def test_without_any_measure_the_distance_is_one_panel(tmp_path, figures) -> None:
    draw_mask_drift([curve("a", [0.4, 0.2])], [curve("a", [])], tmp_path / "a", ylabel="FID")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "communication round"


def test_the_name_of_the_line_of_coin_tosses_is_inside(tmp_path, figures) -> None:
    draw_mask_drift([curve("a", [0.4, 0.2])], [curve("a", [])], tmp_path / "a", ylabel="FID")
    figures[0].draw_without_rendering()
    (axes,) = figures[0].axes
    assert axes.texts[0].get_window_extent().y1 <= axes.get_window_extent().y1


def test_layers_stand_from_input_to_output_and_one_that_a_run_lacks_is_empty(tmp_path, figures) -> None:
    wide = {"first": Spread(0.4, 0.01, 3), "blocks.0.conv1": Spread(0.45, 0.02, 3), "last": Spread(0.5, 0.0, 3)}
    narrow = {"first": Spread(0.3, NAN, 1), "last": Spread(0.35, NAN, 1)}
    draw_layer_density({"wide": wide, "narrow": narrow}, tmp_path / "a")
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["first", "blocks.0.conv1", "last"]
    first, second = (line.get_ydata().tolist() for line in axes.lines)
    assert first == [0.4, 0.45, 0.5]
    assert second == [0.3, pytest.approx(NAN, nan_ok=True), 0.35]
    assert axes.get_ylim()[0] < 0.3 < 0.5 < axes.get_ylim()[1]


@pytest.mark.parametrize(("layers", "rotation"), [(16, 45), (40, 90)])
def test_names_of_many_layers_stand_upright_and_inside_the_figure(tmp_path, figures, layers, rotation) -> None:
    draw_layer_density({"a": {f"blocks.{n}.shortcut": Spread(0.5, NAN, 1) for n in range(layers)}}, tmp_path / "a")
    figures[0].draw_without_rendering()
    (axes,) = figures[0].axes
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {rotation}
    (legend,) = figures[0].legends
    for text in axes.get_xticklabels():
        assert text.get_window_extent().y0 >= legend.get_window_extent().y1 - 1
        assert text.get_window_extent().y1 <= axes.get_window_extent().y0
    assert axes.get_window_extent().height > 1.2 * figures[0].dpi


def test_differences_of_a_thousandth_are_not_blown_up(tmp_path, figures) -> None:
    draw_layer_density({"a": {"first": Spread(0.5, NAN, 1), "last": Spread(0.501, NAN, 1)}}, tmp_path / "a")
    low, high = figures[0].axes[0].get_ylim()
    assert high - low >= 0.1


def test_grids_stand_three_in_a_row_with_their_names_and_notes(tmp_path, figures) -> None:
    sheets = [
        SampleSheet(f"run_{n}", sheet(tmp_path / f"{n}.png", 50 * n, size=(40, 20)), f"round {n}") for n in range(4)
    ]
    draw_samples_side_by_side(sheets, tmp_path / "a")
    axes = figures[0].axes
    assert [one.get_title() for one in axes] == ["run_0", "run_1", "run_2", "run_3"]
    assert [one.get_xlabel() for one in axes] == ["round 0", "round 1", "round 2", "round 3"]
    lefts, bottoms = zip(*(one.get_position(original=True).p0 for one in axes), strict=True)
    assert lefts[0] == lefts[3] < lefts[1] < lefts[2]
    assert bottoms[0] == bottoms[1] == bottoms[2] > bottoms[3]
    for n, one in enumerate(axes):
        pixels = np.asarray(one.images[0].get_array())
        assert (pixels == 50 * n).all()
        assert pixels.shape[1] == 2 * pixels.shape[0] == pytest.approx(300 * (7 / 3 - 0.1), abs=1)


def test_a_grid_of_print_size_is_in_the_png_pixel_by_pixel(tmp_path) -> None:
    side = round(300 * (3.4 - 0.1))
    stripes = np.zeros((side, side), dtype=np.uint8)
    stripes[::2] = 255
    Image.fromarray(stripes).save(tmp_path / "grid.png")
    png, _ = draw_samples_side_by_side([SampleSheet("a", tmp_path / "grid.png")], tmp_path / "figure")
    with Image.open(png) as image:
        column = np.asarray(image.convert("L"))[:, image.width // 4].astype(int)  # the words stand in the middle
    black = np.flatnonzero(column == 0)
    inside = column[black[0] : black[-1]]
    assert set(inside) == {0, 255}
    assert (np.abs(np.diff(inside)) == 255).mean() > 0.99


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_grid_that_cannot_be_read_is_one_line(tmp_path, content) -> None:
    path = tmp_path / "grid.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FlgenError, match=r"grid.png cannot be read \(.*\): remove it, an older round is then shown$"):
        draw_samples_side_by_side([SampleSheet("a", path)], tmp_path / "figure")


def test_another_format_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--output .*a.pdf"):
        draw_fid_bytes([spending("a", 1, 2)], tmp_path / "a.pdf", ylabel="FID")
