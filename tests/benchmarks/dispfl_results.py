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

from flgen.experiment.records import read_events, read_metrics

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
    if any(event["event"] == "end" for event in read_events(run_dir / "events.jsonl")):
        return
    command = [sys.executable, "-m", "flgen.cli", "fit", "--config", str(CONFIGS / "dispfl_digits.yaml")]
    if overlay is not None:
        command += ["--config", str(BASELINES / f"{overlay}.yaml")]
    command += [f"--run_dir={run_dir}", f"--seed_everything={seed}", "--trainer.devices=1"]
    if any((run_dir / "checkpoints").glob("round-*")):
        command += ["--ckpt_path=last"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)


def late(run_dir: Path, rounds: int) -> dict[str, float]:
    """Return the mean of each metric over the last rounds of a run in which it was measured."""
    rows = read_metrics(run_dir / "metrics.csv")
    rows = [row for row in rows if row["round"] > rows[-1]["round"] - rounds]
    names = {name for row in rows for name in row}
    return {name: mean(row[name] for row in rows if name in row) for name in names}


def share(values: list[float]) -> str:
    """Return the mean in percent, and the standard deviation over seeds if there are several."""
    spread = f" ± {100 * pstdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def table(runs: dict[str, list[Path]], rounds: int) -> str:
    """Return the comparison of methods, each with its runs of several seeds."""
    lines = [
        "| method | accuracy, trained | aggregated | std over clients | worst decile | MB a round | "
        "busiest MB | GFLOP, counted | GFLOP, dense |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, folders in runs.items():
        found = [late(folder, rounds) for folder in folders]
        own = next((metric for metric in (FINE_TUNED, TRAINED) if metric in found[0]), None)
        headline = own or AGGREGATED
        spread = headline.replace("test/", "test/std/"), headline.replace("test/", "test/worst_decile/")
        cells = [
            name,
            share([row[own] for row in found]) if own else "",
            share([row[AGGREGATED] for row in found]) if AGGREGATED in found[0] else "",
            *(f"{100 * mean(row[metric] for row in found):.1f}" for metric in spread),
            f"{mean(row['comm/bytes'] for row in found) / 1e6:.2f}",
            f"{mean(row['comm/busiest_node_bytes'] for row in found) / 1e6:.2f}",
            f"{mean(row['flops/client_round'] for row in found) / 1e9:.2f}",
            f"{mean(row['flops/client_round_torch'] for row in found) / 1e9:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def digits(folder: Path, seeds: list[int], rounds: int) -> str:
    """Train every method with every seed and return the table."""
    runs = {name: [folder / f"{overlay or 'dispfl'}-{seed}" for seed in seeds] for name, overlay in METHODS.items()}
    for name, overlay in METHODS.items():
        for seed, run_dir in zip(seeds, runs[name], strict=True):
            train(overlay, seed, run_dir)
    return table(runs, rounds)


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
    of_runs = {name: commands.add_parser(name) for name in ("table", "course")}
    for command in of_runs.values():
        command.add_argument("runs", type=Path, nargs="+")
    of_runs["course"].add_argument("--every", type=int, default=10)
    for command in (of_digits, of_runs["table"]):
        command.add_argument("--rounds", type=int, default=5, help="last rounds to take the mean of")
    given = parser.parse_args()
    if given.command == "digits":
        print(digits(given.runs, given.seeds, given.rounds))
    elif given.command == "table":
        print(table({run.name: [run] for run in given.runs}, given.rounds))
    else:
        print(course(given.runs, given.every))


if __name__ == "__main__":
    main()
