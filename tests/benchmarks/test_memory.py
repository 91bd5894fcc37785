"""Memory of a rank that hosts 100 clients, against model, optimiser, data and local training alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from fedavg_workload import CLIENTS, initial_model
from report import Report

pytestmark = pytest.mark.benchmark

TURNS = 3


def grown_mb(kind: str, samples: int) -> float:
    """Return how far the resident set of a fresh process grew."""
    command = [sys.executable, str(Path(__file__).with_name("memory_trial.py")), kind, str(samples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("samples", [600, 2000])
def test_memory_over_the_bare_loop(samples: int, report: Report) -> None:
    ours, bare = [], []
    for _ in range(TURNS):
        ours.append(grown_mb("flgen", samples))
        bare.append(grown_mb("bare", samples))
    data_mb = CLIENTS * samples * 28 * 28 / 1e6
    model_mb = sum(parameter.nbytes for parameter in initial_model().parameters()) / 1e6
    assert median(bare) > data_mb
    report.add(
        f"Peak memory, {CLIENTS} clients with {data_mb:.0f} MB of data, over the bare loop",
        median(ours) / median(bare),
        1.10,
        "x",
        f"growth of the resident set (VmHWM, in a process of its own after a tiny run), median of {TURNS}: "
        f"{median(ours):.0f} MB over {median(bare):.0f} MB, which are data, model ({model_mb:.1f} MB), gradients and "
        "activations (SGD keeps nothing)",
    )
