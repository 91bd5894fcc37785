"""The client-by-class chart is a PNG of a sensible size whatever the table."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from flgen.errors import FlgenError
from flgen.figures.partition_chart import draw_partition_chart


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (10, 10), (100, 10), (30, 60)])
def test_a_chart_is_drawn_for_few_and_for_many(tmp_path, clients, classes):
    table = np.random.default_rng(0).integers(0, 500, (clients, classes)) * (np.arange(classes) % 2 == 0)
    path = tmp_path / "figures" / "partition.png"
    draw_partition_chart(table, [f"class {label}" for label in range(classes)], path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 700 <= image.width <= 2000
        assert 450 <= image.height <= 1800
        assert len(np.unique(np.asarray(image.convert("L")))) > 20  # something is on it


def drawn(monkeypatch, tmp_path, table: np.ndarray, names: list[str]) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw_partition_chart(table, names, tmp_path / "chart.png")
    return figures[0]


def test_small_tables_carry_their_numbers_and_names(monkeypatch, tmp_path):
    table = np.array([[5, 0], [1200, 7], [0, 30]])
    cells, totals = drawn(monkeypatch, tmp_path, table, ["cat", "dog"]).axes[:2]
    assert sorted(text.get_text() for text in cells.texts) == ["1,200", "30", "5", "7"]
    assert [label.get_text() for label in cells.get_yticklabels()] == ["cat", "dog"]
    assert [bar.get_height() for bar in totals.patches] == [5, 1207, 30]
    assert totals.get_title() == "3 clients, 1,242 samples\n5 to 1,207 samples and 1 to 2 classes per client"


def test_large_tables_leave_the_numbers_to_the_colours(monkeypatch, tmp_path):
    cells = drawn(monkeypatch, tmp_path, np.ones((100, 10), dtype=int), [str(label) for label in range(10)]).axes[0]
    assert len(cells.texts) == 0
    assert len(cells.get_xticks()) <= 30


def test_an_unwritable_path_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FlgenError, match=r"chart .*chart.png cannot be written"):
        draw_partition_chart(np.ones((2, 2), dtype=int), ["a", "b"], tmp_path / "file" / "chart.png")
