"""Measure, in a process of its own, how far the resident set grows: `memory_trial.py flgen|bare`, prints JSON.

Everything is imported and a tiny run has been made before the count begins, so that only what belongs to the 100
clients, the model and its training is counted.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import torch
from fedavg_workload import BATCH_SIZE, CLIENTS, BareLoop, Setting, fit

from flgen import FedAvg

SETTING = Setting(samples_per_client=600, cohort=10, rounds=1)  # as many images as MNIST has
TINY = Setting(samples_per_client=1, cohort=2, rounds=1)


def resident_mb(field: str) -> float:
    """Return VmRSS (now) or VmHWM (peak) of this process in MB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def run(kind: str, setting: Setting) -> None:
    """Make the data and run one round; most of the clients' steps are left out, they need no other memory."""
    data = setting.data()
    if kind == "bare":
        bare = BareLoop(setting, data)
        bare.round(bare.cohort(1))
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        fit(FedAvg(batch_size=BATCH_SIZE), setting, data, Path(folder) / "run", callbacks=[])


def main(kind: str) -> None:
    torch.set_num_threads(1)
    run(kind, TINY)
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    run(kind, SETTING)
    print(json.dumps({"grown_mb": resident_mb("VmHWM") - before, "clients": CLIENTS, "process": os.getpid()}))


if __name__ == "__main__":
    main(sys.argv[1])
