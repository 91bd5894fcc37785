"""Memory of the ranks that host 100 clients, against what the bare loop takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from cnn_workload import CLIENTS, initial_model
from report import Report

pytestmark = pytest.mark.benchmark

TURNS = 3


def grown_mb(method: str, loop: str, samples: int) -> float:
    """Return how far the resident set of a fresh process grew."""
    command = [sys.executable, str(Path(__file__).with_name("memory_trial.py")), method, loop, str(samples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("samples", [600, 2000])
def test_memory_over_the_bare_loop(samples: int, report: Report) -> None:
    ours, bare = [], []
    for _ in range(TURNS):
        ours.append(grown_mb("fedavg", "flgen1", samples))
        bare.append(grown_mb("fedavg", "bare", samples))
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


def test_memory_of_peers_over_the_bare_loop(report: Report) -> None:
    samples = 10  # one local step: more take longer, not more room
    bare = grown_mb("dispfl", "bare", samples)
    ours = {ranks: grown_mb("dispfl", f"flgen{ranks}", samples) for ranks in (1, 2)}
    model_mb = sum(parameter.nbytes for parameter in initial_model().parameters()) / 1e6
    assert bare > 2 * CLIENTS * model_mb
    for ranks, grown in ours.items():
        of_ranks = "1 rank" if ranks == 1 else f"{ranks} ranks together"
        report.add(
            f"DisPFL peak memory, {of_ranks}, over the bare loop",
            grown / bare,
            1.10,
            "x",
            f"{CLIENTS} clients of SmallCNN ({model_mb:.1f} MB each), 2 rounds; growth of the resident set (VmHWM), in "
            f"processes of its own after a tiny run: {grown:.0f} MB over {bare:.0f} MB. The bare loop holds two stacks "
            "of weights and three of masks (bool). flgen holds two of each kind of state, old and new until the round "
            "is complete: two stacks of weights, four of masks. To these every rank adds what its clients hear: "
            "tensors decoded from messages (a stack of weights, one of masks), and the messages not decoded yet (half "
            "a stack of weights at density 0.5); on 2 ranks nearly all clients are heard on both: these count twice. "
            "The rest is what the allocator could not reuse in between",
        )
