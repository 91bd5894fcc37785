"""Measure, in a process of its own, how far the resident set grows: `memory_trial.py flgen|bare SAMPLES`, in MB.

Everything is imported and a tiny run has been made before the count begins, so that only what belongs to the 100
clients (SAMPLES of each), the model and its training is counted.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

import torch
from fedavg_workload import BATCH_SIZE, BareLoop, Setting, fit

from flgen import FedAvg, LocalTraining

TINY = Setting(samples_per_client=1, cohort=2, rounds=1)


def resident_mb(field: str) -> float:
    """Return VmRSS (now) or VmHWM (peak) of this process in MB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def run(kind: str, setting: Setting) -> None:
    """Make the data and run one round."""
    data = setting.data()
    if kind == "bare":
        bare = BareLoop(setting, data)
        bare.round(bare.cohort(1))
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        fit(FedAvg(LocalTraining(batch_size=BATCH_SIZE)), setting, data, Path(folder) / "run", callbacks=[])


def main(kind: str, samples: str) -> None:
    torch.set_num_threads(1)
    run(kind, TINY)
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    run(kind, Setting(int(samples), cohort=3, rounds=1))  # one client after another: more take longer, not more room
    print(resident_mb("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
