"""A figure for a paper is saved as PNG and SVG, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from flgen.errors import FlgenError, UsageError
from flgen.figures.paper import figure_files, paper_style, save_figure


def simple_figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, "words that can be found")
    return figure


@pytest.mark.parametrize("output", ["a/fig.png", "a/fig.svg", "a/fig", "a/fig.PNG"])
def test_an_output_names_both_files(output: str) -> None:
    assert figure_files(output) == (Path("a/fig.png"), Path("a/fig.svg"))


@pytest.mark.parametrize("output", ["fig.pdf", "fig.v2", "", "."])
def test_other_formats_are_refused(output: str) -> None:
    with pytest.raises(UsageError, match=r"^--output .*: a figure is saved as PNG and SVG; give .* figure.png$"):
        figure_files(output)


def test_both_files_are_written_and_nothing_else(tmp_path, inches_of, words_of) -> None:
    with paper_style():
        png, svg = save_figure(simple_figure(), tmp_path / "new" / "folder" / "fig.svg")
    assert sorted(path.name for path in png.parent.iterdir()) == ["fig.png", "fig.svg"]
    assert inches_of(png) == (2, 1)
    assert words_of(svg) == ["words that can be found"]


def test_the_same_figure_is_the_same_file(tmp_path) -> None:
    for name in ("a", "b"):
        with paper_style():
            save_figure(simple_figure(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_style_ends_with_its_block() -> None:
    before = dict(matplotlib.rcParams)
    with paper_style():
        assert matplotlib.rcParams["font.size"] == 7
        assert matplotlib.rcParams["axes.labelsize"] == 8
    assert dict(matplotlib.rcParams) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlgenError, match=r"file cannot be made \(.*\): choose another --output$"):
        save_figure(simple_figure(), tmp_path / "file" / "fig.png")


def test_a_file_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "fig.png").mkdir()
    with pytest.raises(FlgenError, match=r"fig.png cannot be written \(Is a directory\): choose another --output$"):
        save_figure(simple_figure(), tmp_path / "fig.png")
    assert [path.name for path in tmp_path.iterdir()] == ["fig.png"]
