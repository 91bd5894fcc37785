"""From the command to the end of the first round, as a user waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from clocks import Seconds
from report import Report

pytestmark = pytest.mark.benchmark

TURNS = 3

COMMAND = [
    *("-m", "flgen.cli", "fit", "--method", "FedAvg", "--model", "SmallCNN", "--data", "Digits"),
    *("--partition", "IID", "--partition.clients", "10", "--evaluation.extractors", "[]"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.threads_per_rank", "1"),
    *("--trainer.rounds", "2", "--run_dir", "run"),
]


def time_until(arguments: list[str], line_start: str, folder: Path) -> Seconds:
    """Run Python and return the time until a line on stderr began so; the process must succeed."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    reached, said = None, []
    for line in process.stderr:
        said.append(line)
        if reached is None and line.startswith(line_start):
            reached = Seconds(time.perf_counter() - began, processor_time(process.pid))
    assert process.wait() == 0, "".join(said)
    assert reached is not None, "".join(said)
    return reached


def processor_time(process: int) -> float:
    """Return the processor time that a process has taken so far, seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def time_of_import(module: str, folder: Path) -> Seconds:
    return time_until(["-c", f"import sys, {module}; print('done', file=sys.stderr)"], "done", folder)


def test_command_to_end_of_first_round(report: Report, tmp_path: Path) -> None:
    time_of_import("flgen.cli, lightning.pytorch, sklearn", tmp_path)  # from the disk into memory
    command, torch, lightning = [], [], []
    for turn in range(TURNS):
        folder = tmp_path / str(turn)
        folder.mkdir()
        command.append(time_until(COMMAND, "round 1/", folder))
        torch.append(time_of_import("torch", folder))
        lightning.append(time_of_import("lightning.pytorch", folder))

    def cpu(measured: list[Seconds]) -> float:
        return median(seconds.cpu for seconds in measured)

    report.add(
        "Command to end of first round",
        cpu(command),
        7,
        "s",
        f"flgen fit, FedAvg, SmallCNN, Digits, 10 clients, 1 rank; processor time, median of {TURNS}; of it the "
        f"import of Lightning {cpu(lightning):.1f} s, torch's {cpu(torch):.1f} s included; by the wall clock "
        f"{median(seconds.wall for seconds in command):.1f} s",
    )
