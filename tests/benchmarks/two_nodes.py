"""Two nodes of two ranks beside one node of four: rounds per second, and where the time goes.

    sudo .venv/bin/python tests/benchmarks/two_nodes.py [--repeats 3] [--rounds 12] [--rate 1gbit]

Nodes are network namespaces of this machine, joined by a cable; both arrangements are started by torchrun and take
turns. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from two_hosts import TwoHosts  # noqa: E402

from flgen.experiment.records import read_metrics  # noqa: E402

CONFIGS = REPOSITORY / "configs"
WORKLOADS = {
    "PRISM": [f"--config={CONFIGS / 'prism_digits.yaml'}", "--evaluation.extractors=[]"],
    "FedAvg, small CNN": [
        f"--config={CONFIGS / 'dispfl_digits.yaml'}",
        f"--config={CONFIGS / 'baselines' / 'fedavg.yaml'}",
        "--trainer.clients_per_round=null",
    ],
}
CLIENTS = 12
"""As many for each of four ranks."""
WARM_UP_ROUNDS = 2
COLUMNS = (
    "method",
    "rounds/s, 1 node",
    "rounds/s, 2 nodes",
    "2 nodes over 1",
    "communication, 1 node",
    "communication, 2 nodes",
    "waiting, 1 node",
    "waiting, 2 nodes",
    "bytes between processes",
)


@dataclass(frozen=True)
class Rounds:
    """What one arrangement took, by its median round.

    Args:
        round_s: Seconds of a round.
        communication: Share of it in which payloads moved.
        waiting: Share of it in which the first rank waited for the others.
        wire_bytes: Bytes that moved between processes.
    """

    round_s: float
    communication: float
    waiting: float
    wire_bytes: float


def summary(rows: Iterable[dict[str, float]]) -> Rounds:
    """Return the medians over rounds, each a row of metrics.csv."""
    kept = list(rows)
    return Rounds(
        median(row["time/round_s"] for row in kept),
        median(row["time/communication_s"] / row["time/round_s"] for row in kept),
        median(row["time/waiting_s"] / row["time/round_s"] for row in kept),
        median(row["comm/wire_bytes"] for row in kept),
    )


def table(measured: dict[str, tuple[Rounds, Rounds]]) -> str:
    """Return the table: per method, its rounds on one node and on two."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for method, (one, two) in measured.items():
        cells = (
            method,
            f"{1 / one.round_s:.2f}",
            f"{1 / two.round_s:.2f}",
            f"{one.round_s / two.round_s:.2f}",
            *(f"{100 * share:.1f} %" for share in (one.communication, two.communication, one.waiting, two.waiting)),
            f"{two.wire_bytes:,.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(hosts: TwoHosts, options: Sequence[str], nodes: int, rounds: int, folder: Path) -> list[dict[str, float]]:
    """Run a fit on so many nodes and return the metrics of its rounds, those of the warm-up left out."""
    arguments = [
        "fit", *options, f"--run_dir={folder}", f"--trainer.num_nodes={nodes}", f"--trainer.devices={4 // nodes}",
        f"--trainer.rounds={rounds + WARM_UP_ROUNDS}", "--trainer.checkpoint_every=100000",
        f"--partition.clients={CLIENTS}", "--evaluation.every=100000", "--evaluation.images=32",
    ]  # fmt: skip
    for command in hosts.torchrun(arguments, [folder.parent] * nodes, per_node=4 // nodes, nodes=nodes):
        ended = command.wait(1800)
        if ended.status:
            raise SystemExit(ended.output)
    return read_metrics(folder / "metrics.csv")[WARM_UP_ROUNDS:]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="fits per method and arrangement, in turns")
    parser.add_argument("--rounds", type=int, default=12, help="measured rounds of a fit")
    parser.add_argument("--rate", help="limit of the cable, such as 1gbit; none by default")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root: sudo .venv/bin/python tests/benchmarks/two_nodes.py")
    collected: dict[str, tuple[list[dict[str, float]], list[dict[str, float]]]] = {
        method: ([], []) for method in WORKLOADS
    }
    loads = []
    with tempfile.TemporaryDirectory() as place, TwoHosts(Path(place)) as hosts:
        if options.rate:
            hosts.limit(options.rate)
        for repeat in range(options.repeats):
            for method, workload in WORKLOADS.items():
                for nodes in (1, 2):
                    folder = Path(place) / f"{method.split(',')[0].lower()}-{nodes}-{repeat}"
                    collected[method][nodes - 1].extend(measure(hosts, workload, nodes, options.rounds, folder))
                    loads.append(os.getloadavg()[0])
                    print(f"{method}, {nodes} node(s), {repeat + 1} of {options.repeats}", file=sys.stderr, flush=True)
    print(table({method: (summary(one), summary(two)) for method, (one, two) in collected.items()}))
    print(
        f"\n{date.today()}; {os.cpu_count()} cores, mean load {sum(loads) / len(loads):.1f} (4 ranks want a core); "
        f"medians of {options.repeats * options.rounds} rounds each, in turns; cable: {options.rate or 'no limit'}."
    )


if __name__ == "__main__":
    main()
