"""Graphs round by round: arrows from who is read to who reads, loners in grey, facts below."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.quiver import Quiver

from flgen.figures.topology_rounds import describe_graph, draw_topology_rounds
from flgen.topology.graph_facts import graph_facts

# Client 0 reads from 1, client 2 from 0 and 1; client 3 is alone.
GRAPH = [(1,), (), (0, 1), ()]
RING = [((k - 1) % 5, (k + 1) % 5) for k in range(5)]


def draw(tmp_path, *graphs, title: str = ""):
    rounds = dict(enumerate(graphs, start=1))
    return draw_topology_rounds(
        rounds, {t: graph_facts(graph) for t, graph in rounds.items()}, tmp_path / "topology.png", title
    )


@pytest.mark.parametrize(("rounds", "width", "rows"), [(1, 3.4, 1), (2, 14 / 3, 1), (3, 7, 1), (4, 7, 2)])
def test_rounds_stand_three_in_a_row(tmp_path, inches_of, words_of, rounds: int, width: float, rows: int) -> None:
    png, svg = draw(tmp_path, *[RING] * rounds)
    assert inches_of(png)[0] == pytest.approx(width, abs=0.01)
    assert inches_of(png)[1] == pytest.approx(rows * (min(width, 7) / min(rounds, 3) + 0.6), abs=0.01)
    assert [text for text in words_of(svg) if text.startswith("round")] == [f"round {t + 1}" for t in range(rounds)]


def test_an_arrow_points_to_the_client_that_reads(tmp_path, figures) -> None:
    draw(tmp_path, GRAPH)
    (axes,) = figures[0].axes
    (arrows,) = [part for part in axes.collections if isinstance(part, Quiver)]
    # Node 0 is above, then clockwise: 1 on the right, 2 below, 3 on the left.
    place = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)], dtype=float)
    start = np.stack([arrows.X, arrows.Y], 1)
    end = start + np.stack([arrows.U, arrows.V], 1)

    def nearest(points: np.ndarray) -> list[int]:
        return np.linalg.norm(points[:, None] - place[None], axis=2).argmin(1).tolist()

    assert list(zip(nearest(start), nearest(end), strict=True)) == [(1, 0), (0, 2), (1, 2)]


def test_clients_without_edges_are_grey(tmp_path, figures) -> None:
    draw(tmp_path, GRAPH)
    (axes,) = figures[0].axes
    busy, alone = [part for part in axes.collections if not isinstance(part, Quiver)]
    assert len(busy.get_offsets()) == 3
    np.testing.assert_allclose(alone.get_offsets(), [[-1, 0]], atol=1e-12)
    red, green, blue = to_rgb(alone.get_facecolor()[0])
    assert red == green == blue
    assert len(set(to_rgb(busy.get_facecolor()[0]))) == 3


def test_a_round_without_edges_is_drawn(tmp_path, words_of) -> None:
    _, svg = draw(tmp_path, [()] * 3)
    assert [text for text in words_of(svg) if text.isdecimal()] == ["0", "1", "2"]
    assert "0 edges, 0 sources on average" in words_of(svg)


def test_many_clients_are_points_without_numbers(tmp_path, figures) -> None:
    for count, numbered in ((30, True), (31, False)):
        figures.clear()
        draw(tmp_path, [((k + 1) % count,) for k in range(count)])
        texts = [text.get_text() for text in figures[0].axes[0].texts]
        assert texts == ([str(k) for k in range(count)] if numbered else [])


def test_a_full_graph_of_a_hundred_is_drawn_thin(tmp_path, figures) -> None:
    draw(tmp_path, RING, [tuple(j for j in range(100) if j != k) for k in range(100)])
    few, many = [next(part for part in axes.collections if isinstance(part, Quiver)) for axes in figures[0].axes]
    assert (len(few.U), len(many.U)) == (10, 9900)
    assert few.get_alpha() == 1
    assert many.get_alpha() == pytest.approx(0.1005, abs=1e-4)
    assert many.width < few.width


def test_facts_of_a_graph() -> None:
    assert describe_graph(graph_facts(RING)) == (
        "10 edges, 2 sources on average\nat most 2 readers, diameter 2\nspectral gap 0.46"
    )
    assert describe_graph(graph_facts(GRAPH)) == (
        "3 edges, 0.8 sources on average\nat most 2 readers, not connected\nspectral gap 0.00"
    )
    assert describe_graph(graph_facts([(1,), ()])) == (
        "1 edge, 0.5 sources on average\nat most 1 reader, not connected\nspectral gap 0.50"
    )


def test_facts_do_not_touch_the_next_panel(tmp_path, figures) -> None:
    long = {**graph_facts(RING), "graph/edges": 9900, "graph/in_degree_mean": 98.7, "graph/out_degree_max": 99}
    del long["graph/diameter"]
    draw_topology_rounds({t: RING for t in (1, 2, 3)}, {t: long for t in (1, 2, 3)}, tmp_path / "topology.png")
    figures[0].draw_without_rendering()
    boxes = [axes.xaxis.label.get_window_extent() for axes in figures[0].axes]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[1].x1 < boxes[2].x0
    assert boxes[0].x0 >= 0
    assert all(box.y0 >= 0 for box in boxes)


def test_the_title_is_taken_as_it_is(tmp_path, words_of) -> None:
    _, svg = draw(tmp_path, RING, title="$Ring_1$, 5 clients")
    assert "$Ring_1$, 5 clients" in words_of(svg)
