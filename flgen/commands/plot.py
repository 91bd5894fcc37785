"""`flgen plot`: the figures of finished runs, and of a configuration's graphs, as PNG and SVG."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flgen.commands.sections import federated_sections, parse_command
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from flgen.experiment.config import Configuration
    from flgen.topology.peers import PeerTopology

HELP = """\
usage: flgen plot KIND [options]

Draw a figure and save it as PNG and SVG.

kinds:
  accuracy    local test accuracy over the rounds of some runs, after aggregation and after training
  masks       label similarity beside mask distance of the clients of one run
  topology    the graphs that a configuration draws in its first rounds

`flgen plot KIND --help` lists the options of each.
"""

AGGREGATED = "test/accuracy_aggregated"
TRAINED = "test/accuracy_trained"

KINDS = ("accuracy", "masks", "topology")
MOST_ROUNDS = 60

TOPOLOGY_OPTIONS: dict[str, dict[str, Any]] = {
    "rounds": {"type": int, "default": 3, "help": "Number of rounds to draw, from round 1."},
    "output": {"type": str, "default": "topology.png", "help": "The PNG; an SVG of the same name lies beside it."},
}


def run(arguments: list[str]) -> int:
    """Draw the graphs of a configuration's first rounds, or figures of finished runs.

    Args:
        arguments: The kind and its options.

    Raises:
        UsageError: The request is wrong.
        FlgenError: A run lacks what the figure shows, or a file cannot be read or written.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    kind, rest = arguments[0], arguments[1:]
    if kind == "accuracy":
        files: Iterable[Path] = plot_accuracy(rest)
    elif kind == "masks":
        files = plot_masks(rest)
    elif kind == "topology":
        configuration = parse_command("plot topology", run.__doc__ or "", rest, federated_sections(), TOPOLOGY_OPTIONS)
        files = plot_topology(configuration)
    else:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KINDS)}"
        raise UsageError(f"flgen plot {kind}: there is no such figure; {hint}")
    for file in files:
        print(f"{file.suffix[1:]}: {file}")
    return 0


def plot_accuracy(arguments: list[str]) -> tuple[Path, ...]:
    """Draw the local test accuracy of some runs over their rounds; return the files."""
    parser = _Parser("accuracy", "Draw the mean accuracy on the clients' own test data over the rounds of some runs.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="Run folders.")
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="Names in the legend; the folders' own by default."
    )
    parser.add_output("accuracy.png")
    options = parser.parse(arguments)
    labels = options.labels or [Path(run).resolve().name for run in options.runs]
    if len(labels) != len(options.runs):
        raise UsageError(
            f"--labels has {len(labels)} of the {len(options.runs)} names that are needed: give one per RUN"
        )

    from flgen.figures.accuracy_curves import draw_accuracy_curves
    from flgen.figures.paper import figure_files

    figure_files(options.output)  # a wrong name is told before runs are read
    curves = [_curves(Path(run), label) for run, label in zip(options.runs, labels, strict=True)]
    return draw_accuracy_curves(curves, options.output)


def plot_masks(arguments: list[str]) -> tuple[Path, ...]:
    """Draw how alike the clients' labels and their final masks are; return the files."""
    parser = _Parser("masks", "Draw how alike the labels of a run's clients are, beside the distances of their masks.")
    parser.add_argument("run", metavar="RUN", help="The run folder.")
    parser.add_argument("--ckpt_path", default="last", help="A checkpoint of it; the newest good one by default.")
    parser.add_output("masks.png")
    options = parser.parse(arguments)

    from flgen.figures.mask_maps import draw_mask_maps
    from flgen.figures.paper import figure_files

    png, _ = figure_files(options.output)
    run = _run_folder(options.run)
    found = _read_masks(run, options.ckpt_path)

    from flgen.metrics.mask_distance import aligned_similarity, hamming_distances, label_cosine, spearman

    distances = hamming_distances(found.masks)
    similarity = aligned_similarity(distances)
    cosine = label_cosine(found.label_counts)
    correlation = spearman(cosine, distances)
    share = distances.double() / found.parameters
    independent = _mean_over_pairs(_independent(found)) / found.parameters
    figures = draw_mask_maps(
        cosine.numpy(),
        similarity.numpy(),
        share.numpy(),
        options.output,
        correlation=correlation,
        independent=independent,
        clients=found.clients,
    )
    tables = {
        png.with_name(f"{png.stem}-distance.csv"): distances,
        png.with_name(f"{png.stem}-similarity.csv"): similarity,
    }
    for path, table in tables.items():
        _write_table(path, table)
    print(
        "Spearman correlation of label cosine and mask closeness (-D) "
        + ("undefined" if math.isnan(correlation) else f"{correlation:.4f}")
    )
    print(f"mean D/d {_mean_over_pairs(share):.6f}")
    print(f"independent masks D/d {independent:.6f}")
    return (*figures, *tables)


def plot_topology(configuration: Configuration) -> tuple[Path, ...]:
    """Draw the graphs of a configuration's first rounds; return the files."""
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


class _Parser(argparse.ArgumentParser):
    """A parser of one kind's options whose mistakes are one line."""

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(prog=f"flgen plot {kind}", description=description, allow_abbrev=False)

    def add_output(self, default: str) -> None:
        self.add_argument(
            "--output",
            default=default,
            help=f"The PNG ({default} by default); an SVG of the same name lies beside it.",
        )

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        values, unknown = self.parse_known_intermixed_args(arguments)  # options may stand between runs
        if unknown:
            option = unknown[0].partition("=")[0]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            if not option.startswith("-"):
                self.error(f"{option}: there is one RUN for this figure")
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            self.error(f"{option}: there is no such option; {hint}")
        return values

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _run_folder(path: str | Path) -> Path:
    """Return a run's folder, after making sure that it is one."""
    run = Path(path)
    if not run.is_dir():
        raise FlgenError(f"{run}: there is no such folder; give a run folder, such as runs/default")
    if not (run / "config.yaml").is_file() and not (run / "metrics.csv").is_file():
        raise FlgenError(
            f"{run} is no run folder (it has neither config.yaml nor metrics.csv): give one, such as runs/default"
        )
    return run


def _curves(path: Path, label: str) -> Any:
    from flgen.experiment.records import read_metrics
    from flgen.figures.accuracy_curves import AccuracyCurves

    run = _run_folder(path)
    rows = read_metrics(run / "metrics.csv")
    columns = [{int(row["round"]): row[name] for row in rows if name in row} for name in (AGGREGATED, TRAINED)]
    if not any(columns):
        raise FlgenError(
            f"{run / 'metrics.csv'} has no {AGGREGATED} and no {TRAINED}: choose a run whose method tests its clients, "
            "with --evaluation.every 1"
        )
    return AccuracyCurves(label, *columns)


@dataclass(frozen=True)
class _Masks:
    """The masks of a run: ids of the clients, bool (K, P), int (K, C), (name, size) of each layer, weights in all."""

    clients: list[int]
    masks: Tensor
    label_counts: Tensor
    layers: list[tuple[str, int]]
    parameters: int


def _read_masks(run: Path, ckpt_path: str) -> _Masks:
    import torch

    from flgen.experiment.checkpoints import find_checkpoint
    from flgen.experiment.records import read_partition

    checkpoint = find_checkpoint(ckpt_path, run)
    if not checkpoint.path.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"--ckpt_path {ckpt_path} is of another run than {run}: name that run instead")
    held = {client: state["mask"] for client, state in sorted(checkpoint.client_states().items()) if "mask" in state}
    if not held:
        raise FlgenError(f"{checkpoint.path} holds no masks: choose a run of a method that has some, such as DisPFL")
    if len(held) < 2:
        raise FlgenError(f"{checkpoint.path} holds the mask of one client: distances need two")
    masks = torch.stack(list(held.values()))
    if masks.shape[1] == 0:
        raise FlgenError(f"the masks of {checkpoint.path} are empty, as every layer is dense: choose a sparser run")
    _, counts = read_partition(run / "partition.csv")
    if max(held) >= len(counts):
        raise FlgenError(f"{run / 'partition.csv'} lacks client {max(held)} of {checkpoint.path}: it is of another run")
    method: Mapping[str, Any] = checkpoint.server_state().get("method") or {}
    layers = method.get("layers") or [("all", masks.shape[1])]
    if sum(size for _, size in layers) != masks.shape[1]:
        raise FlgenError(f"the masks of {checkpoint.path} do not fit its layers: repeat the run")
    label_counts = torch.from_numpy(counts[list(held)])
    return _Masks(list(held), masks, label_counts, layers, method.get("parameters", masks.shape[1]))


def _independent(found: _Masks) -> Tensor:
    """Return the mean distances of masks of the clients' own densities, drawn independently (K, K)."""
    import torch

    from flgen.metrics.mask_distance import independent_distances

    sizes = [size for _, size in found.layers]
    active = torch.stack([part.sum(1) for part in found.masks.split(sizes, dim=1)], dim=1)
    return independent_distances(active, sizes)


def _mean_over_pairs(table: Tensor) -> float:
    return float(table.double().triu(1).sum()) / (len(table) * (len(table) - 1) / 2)


def _write_table(path: Path, table: Tensor) -> None:
    """Write a matrix as plain CSV: integers as they are, floats so that reading gives the same bits."""
    from flgen.figures.paper import writing

    with writing(path) as temporary:
        temporary.write_text("".join(",".join(map(repr, row)) + "\n" for row in table.tolist()))


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
