"""The tables of docs/results/dispfl.md: train DisPFL and its baselines on the same clients, several seeds, and compare.

dispfl_results.py digits --runs runs/results     trains what is missing, prints the table
dispfl_results.py course RUN [RUN ...]           prints accuracy over the rounds of finished runs
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, pstdev

from flgen.experiment.records import read_metrics

CONFIGS = Path(__file__).parents[2] / "configs"
BASELINES = CONFIGS / "baselines"
METHODS = {
    "Local": "local",
    "FedAvg": "fedavg",
    "FedAvg, fine-tuned": "fedavg_fine_tuned",
    "D-PSGD": "dpsgd",
    "Ditto": "ditto",
    "FedFOMO": "fedfomo",
    "Sub-FedAvg": "subfedavg",
    "DisPFL, random": None,
    "DisPFL, gradient": "dispfl_gradient",
    "My-1": "my1",
    "My-2": "my2",
}
TRAINED, AGGREGATED, FINE_TUNED = (f"test/accuracy_{point}" for point in ("trained", "aggregated", "fine_tuned"))


def train(overlay: str | None, seed: int, run_dir: Path) -> None:
    """Run one method with one seed, or go on with it, unless it is finished."""
    command = [sys.executable, "-m", "flgen.cli", "fit", "--config", str(CONFIGS / "dispfl_digits.yaml")]
    if overlay is not None:
        command += ["--config", str(BASELINES / f"{overlay}.yaml")]
    command += [f"--run_dir={run_dir}", f"--seed_everything={seed}", "--trainer.devices=1"]
    if any((run_dir / "checkpoints").glob("round-*")):
        command += ["--ckpt_path=last"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)


def last(run_dir: Path) -> dict[str, float]:
    """Return the newest value of every metric of a run."""
    newest: dict[str, float] = {}
    for row in read_metrics(run_dir / "metrics.csv"):
        newest.update(row)
    return newest


def share(values: list[float]) -> str:
    """Return mean and standard deviation over seeds, in percent."""
    return f"{100 * mean(values):.1f} ± {100 * pstdev(values):.1f}"


def digits(runs: Path, seeds: list[int]) -> str:
    """Train every method with every seed and return the table."""
    lines = [
        "| method | accuracy, trained | aggregated | std over clients | worst client | MB a round | "
        "busiest MB | MFLOP, counted | MFLOP, dense |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, overlay in METHODS.items():
        folders = [runs / f"{overlay or 'dispfl'}-{seed}" for seed in seeds]
        for seed, folder in zip(seeds, folders, strict=True):
            train(overlay, seed, folder)
        found = [last(folder) for folder in folders]
        headline = next(metric for metric in (FINE_TUNED, TRAINED, AGGREGATED) if metric in found[0])
        own = headline if headline != AGGREGATED else None
        spread = headline.replace("test/", "test/std/"), headline.replace("test/", "test/worst_decile/")
        cells = [
            name,
            share([row[own] for row in found]) if own else "",
            share([row[AGGREGATED] for row in found]) if AGGREGATED in found[0] else "",
            *(f"{100 * mean(row[metric] for row in found):.1f}" for metric in spread),
            f"{mean(row['comm/bytes'] for row in found) / 1e6:.2f}",
            f"{mean(row['comm/busiest_node_bytes'] for row in found) / 1e6:.2f}",
            f"{mean(row['flops/client_round'] for row in found) / 1e6:.0f}",
            f"{mean(row['flops/client_round_torch'] for row in found) / 1e6:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def course(runs: list[Path], every: int) -> str:
    """Return accuracy in percent, trained / aggregated, over the rounds of finished runs."""
    tables = [{int(row["round"]): row for row in read_metrics(run / "metrics.csv")} for run in runs]
    lines = ["| round | " + " | ".join(run.name for run in runs) + " |", "|---|" + "---|" * len(runs)]
    tested = sorted({t for table in tables for t, row in table.items() if AGGREGATED in row or TRAINED in row})
    for t in [t for t in tested if t == 1 or t % every == 0 or t == tested[-1]]:
        cells = []
        for table in tables:
            row = table.get(t, {})
            values = [f"{100 * row[metric]:.2f}" if metric in row else "-" for metric in (TRAINED, AGGREGATED)]
            cells.append(" / ".join(values))
        lines.append(f"| {t} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_digits = commands.add_parser("digits")
    of_digits.add_argument("--runs", type=Path, required=True)
    of_digits.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_runs = commands.add_parser("course")
    of_runs.add_argument("runs", type=Path, nargs="+")
    of_runs.add_argument("--every", type=int, default=10)
    given = parser.parse_args()
    print(digits(given.runs, given.seeds) if given.command == "digits" else course(given.runs, given.every))


if __name__ == "__main__":
    main()
