"""Who reads from whom, round by round, and who took part where there is a server.

A run folder holds no graphs: they are drawn again from the configuration and the seed, as `flgen plot topology` does,
and compared with the number of edges that the run has measured. Only the graphs of flgen itself are drawn; a
configuration cannot make the page import anything.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError
from flgen.federation.streams import RandomStreams
from flgen.figures.report.films import MOST_FRAMES, evenly
from flgen.figures.report.plots import Plot, inside_script, new_figure
from flgen.figures.report.runs import ReportedExperiment, ReportedRun, all_runs, class_name, option
from flgen.figures.report.section import Section
from flgen.figures.topology_rounds import describe_graph
from flgen.topology import peers
from flgen.topology.peers import PeerTopology, Sources

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup
    from plotly import graph_objects
else:
    np = deferred_module("numpy")
    graph_objects = deferred_module("plotly.graph_objects")

GRAPHS = {
    name: kind
    for name, kind in vars(peers).items()
    if inspect.isclass(kind) and issubclass(kind, PeerTopology) and kind is not PeerTopology
}
MOST_CLIENTS = 1000
MOST_EDGES = 6000  # of one graph
ROOM = 60_000  # edges of all graphs of the page
LARGEST_FILE = 5_000_000  # bytes of the edges of a graph
MOST_CELLS = 400_000  # of a chart of who took part


@dataclass(frozen=True)
class Graphs:
    """The graphs of one run.

    Args:
        label: The run.
        title: What graphs they are.
        clients: Number of nodes.
        rounds: Which, in ascending order.
        edges: By round, from whom and to whom, flat.
        facts: By round.
        note: What a reader should know.
    """

    label: str
    title: str
    clients: int
    rounds: Sequence[int]
    edges: Sequence[Sequence[int]]
    facts: Sequence[str]
    note: str

    @property
    def content(self) -> Markup:
        """All of it as JSON that may stand inside a script element."""
        return inside_script(
            json.dumps(
                {"clients": self.clients, "rounds": self.rounds, "edges": self.edges, "facts": self.facts},
                separators=(",", ":"),
            )
        )


def topology(experiments: Sequence[ReportedExperiment]) -> Section | None:
    """Return the section on graphs and on who took part; None if there is neither."""
    runs = all_runs(experiments)
    drawn = [run for run in runs if _chosen(run) is not None or "graph/edges" in run.columns]
    graphs, notes = [], []
    for run in drawn:
        try:
            graphs.append(_graphs(run, ROOM // len(drawn)))
        except FlgenError as error:
            notes.append((run.label, f"Its graphs are not drawn: {error}"))
    parts = [(run.label, plot) for run in runs if (plot := _participation(run)) is not None]
    if not (graphs or notes or parts):
        return None
    content = {"graphs": graphs, "notes": notes, "participation": parts, "several": len(runs) > 1}
    return Section("topology", "Topology" if drawn else "Who took part", "topology.html", content)


def _chosen(run: ReportedRun) -> Any:
    """Return what the configuration says of a graph of clients, None if it says nothing of one."""
    given = option(run.config, "method", "init_args", "topology")
    return given if class_name(given) in GRAPHS else None


def _graphs(run: ReportedRun, room: int) -> Graphs:
    """Draw the graphs of a run again.

    Raises:
        FlgenError: It is not known how they were drawn, or they are too large.
    """
    from flgen.topology.graph_facts import graph_facts

    graph, clients = _built(run)
    seed = run.config.get("seed_everything")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise FlgenError("its configuration has no seed")
    streams = RandomStreams(seed)
    last = run.last_round
    places = evenly(last, MOST_FRAMES)
    if not places:
        raise FlgenError("it has not finished a round")
    edges = sum(map(len, _draw(graph, 1, clients, streams)))
    if edges > MOST_EDGES:
        raise FlgenError(f"each has about {edges:,} edges")
    places = [places[place] for place in evenly(len(places), max(1, room // max(1, edges)))]
    sources = {place + 1: _draw(graph, place + 1, clients, streams) for place in places}
    facts = {t: graph_facts(one) for t, one in sources.items()}
    notes = [_check(run, {t: int(one["graph/edges"]) for t, one in facts.items()})]
    if len({tuple(one) for one in sources.values()}) == 1:
        sources = dict(list(sources.items())[-1:])
        notes.insert(0, "the same in every round")
    elif len(sources) < last:
        notes.insert(0, f"{len(sources)} of {last} rounds, evenly chosen")
    return Graphs(
        run.label,
        f"{type(graph).__name__}, {clients} clients; arrows lead to the reader",
        clients,
        list(sources),
        [[end for k, row in enumerate(one) for j in row for end in (j, k)] for one in sources.values()],
        [", ".join(describe_graph(facts[t]).splitlines()) for t in sources],
        "; ".join(note for note in notes if note),
    )


def _built(run: ReportedRun) -> tuple[PeerTopology, int]:
    given, clients = _chosen(run), run.client_count
    if given is None:
        raise FlgenError("they are of a class that is not flgen's, or of a method's default; see the curves of graph/*")
    if clients is None or clients > MOST_CLIENTS:
        raise FlgenError("the number of clients is not known" if clients is None else f"{clients:,} clients")
    kind = GRAPHS[str(class_name(given))]
    options = option(given, "init_args") or {}
    if kind is peers.FixedGraph:
        _check_file(options)
    try:
        graph = kind(**options)
        graph.check(clients)
    except Exception as error:  # options that are anything: whatever goes wrong is theirs
        raise _impossible(error) from error
    return graph, clients


def _draw(graph: PeerTopology, t: int, clients: int, streams: RandomStreams) -> Sources:
    try:
        return graph.sources(t, clients, streams)
    except Exception as error:
        raise _impossible(error) from error


def _impossible(error: Exception) -> FlgenError:
    return FlgenError(f"the configuration's topology cannot be made ({' '.join(str(error).split())})")


def _check_file(options: Mapping[str, Any]) -> None:
    file = options.get("graph") if isinstance(options, Mapping) else None
    if not isinstance(file, str) or not Path(file).is_file():
        raise FlgenError(f"the file of its edges is not there ({file})")
    if Path(file).stat().st_size > LARGEST_FILE:
        raise FlgenError(f"the file of its edges has more than {LARGEST_FILE:,} bytes")


def _check(run: ReportedRun, edges: Mapping[int, int]) -> str:
    """Return what to say about the edges that the run has measured."""
    measured = {t: int(count) for t, count in zip(*run.columns.get("graph/edges", ([], [])), strict=True)}
    common = [t for t in edges if t in measured]
    other = [t for t in common if edges[t] != measured[t]]
    if other:
        return f"drawn from the configuration; the run has measured other numbers of edges (first in round {other[0]})"
    return "drawn from the configuration; as many edges as the run has measured" if common else ""


def _participation(run: ReportedRun) -> Plot | None:
    """Return a chart of who took part when; None if all did in every round, or nobody knows."""
    clients = run.client_count
    rounds = sorted({row["round"] for row in run.clients})
    if clients is None or not rounds or "graph/edges" in run.columns or clients * len(rounds) > MOST_CELLS:
        return None
    present = np.zeros((clients, len(rounds)), dtype=np.uint8)
    place = {t: column for column, t in enumerate(rounds)}
    for row in run.clients:
        if row["client"] < clients:
            present[row["client"], place[row["round"]]] = 1
    if present.all():
        return None
    figure = new_figure("round", "client", hovermode="closest")
    figure.add_trace(
        graph_objects.Heatmap(
            x=np.asarray(rounds, dtype=np.int32),
            z=present,
            zmin=0,
            zmax=1,
            colorscale=["rgba(128,128,128,0.12)", "#3182ce"],
            showscale=False,
            hovertemplate="round %{x}, client %{y}<extra></extra>",
        )
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    counts = present.sum(axis=0)
    said = f"{int(counts.min())} to {int(counts.max())} of {clients} clients report in a round"
    return Plot(f"who took part: {said}", said, figure, height=int(np.clip(90 + 14 * clients, 200, 560)))
