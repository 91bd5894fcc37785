"""The table of docs/results/prism.md: train PRISM and its rivals on the same clients, and compare images and bytes.

prism_results.py mnist --root DATA --runs runs/results     trains what is missing, prints the table
prism_results.py table RUN [RUN ...]                       prints it for finished runs; the seed-* of a folder are a row
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from result_runs import train

from flgen.commands.plot.runs import Experiment, find_experiments, short_class
from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_metrics
from flgen.experiment.runs import RunFolder
from flgen.masks.ticket import write_ticket
from flgen.methods.finished_prism import CheckpointGenerator
from flgen.metrics.over_seeds import over_seeds


class Row(NamedTuple):
    """A row of the table: folder, what is laid over the experiment, options, and whether several seeds are run."""

    folder: str
    overlay: str | None = None
    options: tuple[str, ...] = ()
    seeds: bool = False


GAN = ("--model.discriminator_width=16", "--trainer.rounds=1000", "--evaluation.every=125")
ROWS = {
    "PRISM": Row("prism", seeds=True),
    "PRISM without MADA (dagger)": Row("dagger", "prism_without_mada", seeds=True),
    "PRISM-alpha, 80 % of the layers": Row("alpha", options=("--method.alpha=0.8",)),
    "PRISM, private: statistics (A)": Row("private", options=("--method.privacy=StatisticsGaussian",)),
    "PRISM, private: noisy theta (B)": Row("theta", options=("--method.privacy=ThetaGaussian",)),
    'PRISM, the authors\' "private" code': Row("bug", options=("--method.privacy=ReferenceBug",)),
    "FedAvg of the dense generator": Row("dense", "dense_generator"),
    "MD-GAN": Row("mdgan", "mdgan", GAN),
    "UA-GAN": Row("uagan", "uagan", GAN),
}
HEADER = (
    "method",
    "FID",
    "best FID on test (flatters)",
    "precision / recall",
    "density / coverage",
    "bits up per weight",
    "MB up, as sent",
    "packed",
    "authors' convention",
    "MB down",
    "stored bytes",
    "epsilon",
)


def mnist(root: str, folder: Path, seeds: Sequence[int], names: Sequence[str], rounds: int | None = None) -> str:
    """Train the rows that are asked for and return the table."""
    length = [] if rounds is None else [f"--trainer.rounds={rounds}"]
    for name in names:
        row = ROWS[name]
        options = [f"--data.root={root}", *row.options, *length]
        train("prism_mnist_reduced", row.overlay, folder / row.folder, options, seeds if row.seeds else ())
    return table({name: _experiment(name, folder / ROWS[name].folder, seeds) for name in names})


def _experiment(name: str, folder: Path, seeds: Sequence[int]) -> Experiment:
    return Experiment(name, tuple(folder / f"seed-{seed}" for seed in seeds) if ROWS[name].seeds else (folder,))


def table(experiments: Mapping[str, Experiment]) -> str:
    """Return images' quality in the last round, bytes of all rounds and clients, and what is stored at the end."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for name, experiment in experiments.items():
        courses = [read_metrics(run / "metrics.csv") for run in experiment.runs]
        lasts = [last_values(rows) for rows in courses]
        (fid,) = (key for key in lasts[0] if key.startswith("fid/"))
        extractor = fid.removeprefix("fid/")
        pairs = [
            " / ".join(number([last[f"prdc/{kind}/{extractor}"] for last in lasts], 2) for kind in kinds)
            for kinds in (("precision", "recall"), ("density", "coverage"))
        ]
        best = [min(row[fid] for row in rows if fid in row) for rows in courses]
        sent = [[megabytes(rows, f"comm/{way}") for rows in courses] for way in WAYS]
        weighed = lasts[0].keys() & {"comm/up_scalars/mask", "comm/up_scalars/weights"}  # images are no weights
        bits = [last["comm/up_bits_per_scalar"] if weighed else math.nan for last in lasts]
        epsilon = lasts[0].get("privacy/epsilon")
        cells = [name, number([last[fid] for last in lasts], 2), number(best, 2), *pairs, number(bits, 3)]
        cells += [number(values, 2) for values in sent]
        cells += [f"{stored_bytes(experiment.runs[0]):,}", "" if epsilon is None else f"{epsilon:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


WAYS = ("up_bytes", "up_bytes_packed", "up_bytes_authors", "down_bytes")


def last_values(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the newest value of every metric."""
    newest: dict[str, float] = {}
    for row in rows:
        newest.update(row)
    return newest


def megabytes(rows: Sequence[Mapping[str, float]], metric: str) -> float:
    """Return the sum over rounds, MB; NaN if the run does not have it."""
    return sum(row[metric] for row in rows) / 1e6 if all(metric in row for row in rows) else math.nan


def stored_bytes(run: Path) -> int:
    """Return what the finished generator takes: a ticket, or its weights and BatchNorm's statistics as float32."""
    place = run / "checkpoints" / "last"
    if short_class(run, "method") == "Prism":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ticket"
            write_ticket(file, CheckpointGenerator("--ckpt_path", str(place), recalibration_batches=1).ticket())
            return file.stat().st_size
    state: dict[str, Any] = find_checkpoint(place).server_state()["method"]
    weights = next(state[name] for name in ("weights", "generator") if name in state)
    options = RunFolder(run).read_config()["model"]["init_args"]
    return 4 * len(weights) + 8 * batch_norm_channels(options["image_size"], options["width"])


def batch_norm_channels(image_size: int, width: int) -> int:
    """Return how many channels the residual generator normalises: both widths of a block, and the last (section 2)."""
    widths = [width << level for level in range(image_size.bit_length() - 2)]
    return sum(wide + narrow for narrow, wide in pairwise(widths)) + width


def number(values: Sequence[float], places: int) -> str:
    """Return the mean, and the sample standard deviation if there are several; nothing for NaN."""
    spread = over_seeds(values)
    if math.isnan(spread.mean):
        return ""
    return f"{spread.mean:.{places}f}" + (f" ± {spread.std:.{places}f}" if spread.n > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    of_mnist = commands.add_parser("mnist")
    of_mnist.add_argument("--root", required=True, help="folder of MNIST's IDX files")
    of_mnist.add_argument("--runs", type=Path, required=True)
    of_mnist.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_mnist.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    of_mnist.add_argument("--rounds", type=int, help="fewer than the configuration's, for a try")
    of_mnist.set_defaults(do=lambda given: mnist(given.root, given.runs, given.seeds, given.rows, given.rounds))
    of_runs = commands.add_parser("table")
    of_runs.add_argument("runs", nargs="+")
    of_runs.set_defaults(do=lambda given: table({one.label: one for one in find_experiments(given.runs)}))
    given = parser.parse_args()
    do: Callable[[argparse.Namespace], str] = given.do
    print(do(given))


if __name__ == "__main__":
    main()
