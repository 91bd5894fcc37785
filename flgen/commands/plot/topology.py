"""`flgen plot topology`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flgen.commands.sections import federated_sections, parse_command
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    from flgen.experiment.config import Configuration
    from flgen.topology.peers import PeerTopology

MOST_ROUNDS = 60

OPTIONS: dict[str, dict[str, Any]] = {
    "rounds": {"type": int, "default": 3, "help": "Number of rounds to draw, from round 1."},
    "output": {"type": str, "default": "topology.png", "help": "The PNG; an SVG of the same name lies beside it."},
}


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw the graphs of a configuration's first rounds; return the files."""
    description = "Draw the graphs of a configuration's first rounds."
    configuration = parse_command("plot topology", description, arguments, federated_sections(), OPTIONS)
    options = configuration.values
    if not 1 <= options.rounds <= MOST_ROUNDS:
        raise UsageError(f"--rounds is {options.rounds}: give 1 to {MOST_ROUNDS}")

    from flgen.figures.paper import figure_files
    from flgen.figures.topology_rounds import draw_topology_rounds

    figure_files(options.output)
    topology, clients = _topology(configuration)

    from flgen.federation.streams import RandomStreams
    from flgen.topology.graph_facts import graph_facts

    streams = RandomStreams(options.seed_everything)
    graphs = {t: topology.sources(t, clients, streams) for t in range(1, options.rounds + 1)}
    facts = {t: graph_facts(sources) for t, sources in graphs.items()}
    return draw_topology_rounds(
        graphs, facts, options.output, f"{type(topology).__name__}, {clients} clients; arrows lead to the reader"
    )


def _topology(configuration: Configuration) -> tuple[PeerTopology, int]:
    """Build the method and the partition of a configuration, without model and data; return the graph and K."""
    from jsonargparse import Namespace

    from flgen.topology.peers import PeerTopology

    options = configuration.values
    try:
        built = configuration.parser.instantiate(Namespace(method=options.method, partition=options.partition))
    except ValueError as error:
        raise _refusal(error) from None
    name, topology, clients = type(built.method).__name__, built.method.topology, built.partition.clients
    if not isinstance(topology, PeerTopology):
        raise UsageError(f"--method {name} has a server: there is no graph of clients to draw")
    if clients < 1:
        raise UsageError(
            f"--partition {type(built.partition).__name__} takes its clients from stored data: give another partition, "
            "with the --partition.clients to draw"
        )
    topology.check(clients)
    return topology, clients


def _refusal(error: BaseException) -> BaseException:
    """Return what a constructor raised, which the parser wraps once per level of nesting."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FlgenError):
        cause = cause.__cause__
    return cause or error
