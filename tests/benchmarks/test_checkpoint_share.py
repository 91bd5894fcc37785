"""What checkpoints cost when there is one after every round of the digits configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from report import Report

pytestmark = pytest.mark.benchmark

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "prism_digits.yaml"


def test_a_checkpoint_at_every_round(report: Report, tmp_path: Path) -> None:
    times = tmp_path / "times.jsonl"
    clock = {"class_path": "checkpoint_clock.CheckpointClock", "init_args": {"file": str(times)}}
    command = [
        *(sys.executable, "-m", "flgen.cli", "fit", "--config", str(CONFIG), "--run_dir", str(tmp_path / "run")),
        *("--trainer.rounds", "7", "--trainer.checkpoint_every", "1", "--trainer.callbacks", json.dumps([clock])),
        *("--evaluation.every", "1000", "--evaluation.extractors", "[]"),
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True)

    rounds = [json.loads(line) for line in times.read_text().splitlines()]
    assert [line["round"] for line in rounds] == list(range(1, 8))
    ordinary = rounds[1:-1]  # the first and the last round are evaluated
    report.add(
        "Checkpoint at every round, share of the round",
        median(100 * line["checkpoint_s"] / line["round_s"] for line in ordinary),
        5,
        "%",
        f"configs/prism_digits.yaml (2 ranks), without evaluation; wall clock, median of {len(ordinary)} rounds: "
        f"{1e3 * median(line['checkpoint_s'] for line in ordinary):.0f} ms of "
        f"{median(line['round_s'] for line in ordinary):.2f} s, {ordinary[-1]['bytes'] / 1e6:.0f} MB on disk",
    )
