"""Graphs drawn again from a run's configuration: the same as the run's own, and never at the cost of an import."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_runs import CLIENTS, config_of, write_run

from flgen.federation.streams import RandomStreams
from flgen.figures.report.runs import read_experiments
from flgen.figures.report.section import Section
from flgen.figures.report.topology import topology
from flgen.topology.peers import RandomGraph


def section_of(run: Path) -> Section | None:
    return topology(read_experiments({"run": [run]}))


def peer_run(folder: Path, topology: Any, edges: Sequence[float] = (8, 8, 8)) -> Path:
    return write_run(folder, {"graph/edges": edges}, config=config_of("DisPFL", seed=7, topology=topology))


def random_graph(**options: Any) -> dict[str, Any]:
    return {"class_path": "flgen.RandomGraph", "init_args": {"degree": 2, **options}}


def test_the_graphs_are_those_of_the_run(tmp_path: Path) -> None:
    section = section_of(peer_run(tmp_path / "run", random_graph()))
    assert section is not None
    (graphs,) = section.content["graphs"]
    stored = json.loads(graphs.content)
    expected = [RandomGraph(degree=2).sources(t, CLIENTS, RandomStreams(7)) for t in (1, 2, 3)]
    assert stored["rounds"] == [1, 2, 3]
    assert stored["edges"] == [[end for k, row in enumerate(one) for j in row for end in (j, k)] for one in expected]
    assert stored["facts"][0].startswith("8 edges, 2 sources on average, ")
    assert graphs.note == "drawn from the configuration; as many edges as the run has measured"


def test_other_edges_than_the_run_has_measured_are_told(tmp_path: Path) -> None:
    section = section_of(peer_run(tmp_path / "run", random_graph(), edges=(8, 7, 8)))
    assert section is not None
    assert section.content["graphs"][0].note.endswith("other numbers of edges (first in round 2)")


def test_a_graph_that_never_changes_is_drawn_once(tmp_path: Path) -> None:
    section = section_of(peer_run(tmp_path / "run", {"class_path": "flgen.Ring"}))
    assert section is not None
    (graphs,) = section.content["graphs"]
    assert len(graphs.edges) == 1
    assert graphs.note.startswith("the same in every round; ")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (random_graph(degree="2"), "cannot be made"),
        (random_graph(degree=2.5), "cannot be made"),
        (random_graph(degree=40), "--method.topology.degree is 40"),
        (random_graph(strange=1), "cannot be made"),
        ({"class_path": "flgen.FixedGraph", "init_args": {"graph": "/nowhere/edges.txt"}}, "is not there"),
        ({"class_path": "flgen.FixedGraph", "init_args": {"graph": "/dev/zero"}}, "is not there"),
        ({"class_path": "canary_of_reports.Graph", "init_args": {}}, "a class that is not flgen's"),
        (None, "a class that is not flgen's"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path: Path, options: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "canary_of_reports.py").write_text("Graph = object\n")
    monkeypatch.syspath_prepend(tmp_path)
    section = section_of(peer_run(tmp_path / "run", options))
    assert section is not None
    assert section.content["graphs"] == []
    ((label, note),) = section.content["notes"]
    assert label == "run"
    assert why in note
    assert "\n" not in note
    assert "canary_of_reports" not in sys.modules


def test_who_took_part_is_shown_where_not_everybody_did(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0, 1.0]})
    (run / "clients.csv").write_text("round,client,train/loss\n1,0,1\n1,2,1\n2,3,1\n")
    section = section_of(run)
    assert section is not None
    assert section.title == "Who took part"
    ((_, plot),) = section.content["participation"]
    np.testing.assert_array_equal(plot.figure.data[0].z, [[1, 0], [0, 0], [1, 0], [0, 1]])
    assert plot.title == "who took part: 1 to 2 of 4 clients report in a round"


def test_a_star_in_which_everybody_takes_part_has_no_section(tmp_path: Path) -> None:
    measured = {"train/loss": [[1.0] * CLIENTS] * 2}
    assert section_of(write_run(tmp_path / "run", {"train/loss": [1.0, 1.0]}, clients=measured)) is None
