"""Runs behind the tables of docs/results: started if they are missing, continued if they were cut off."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flgen.experiment.records import read_events

CONFIGS = Path(__file__).parents[2] / "configs"
BASELINES = CONFIGS / "baselines"


def train(config: str, overlay: str | None, run_dir: Path, options: Sequence[str], seeds: Sequence[int] = ()) -> None:
    """Run an experiment, or go on with it, unless it is finished; with seeds they share who holds which samples.

    Args:
        config: Name of a file in configs/.
        overlay: Name of a file in configs/baselines/ that is laid over it.
        run_dir: The run folder; of several seeds, that of their run folders.
        options: More options of `flgen fit`.
        seeds: Seeds of the run; none takes the configuration's.
    """
    if finished([run_dir / f"seed-{seed}" for seed in seeds] or [run_dir]):
        return
    command = [sys.executable, "-m", "flgen.cli", "fit", "--config", str(CONFIGS / f"{config}.yaml")]
    if overlay is not None:
        command += ["--config", str(BASELINES / f"{overlay}.yaml")]
    command += [f"--run_dir={run_dir}", "--trainer.devices=1", *options]
    if seeds:
        command += [f"--seeds={list(seeds)}"]
    elif any((run_dir / "checkpoints").glob("round-*")):
        command += ["--ckpt_path=last"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)


def finished(runs: Sequence[Path]) -> bool:
    return all(any(event["event"] == "end" for event in read_events(run / "events.jsonl")) for run in runs)
