"""Measure, in processes of its own, how far the resident set grows: `memory_trial.py METHOD LOOP SAMPLES`, in MB.

METHOD is fedavg or dispfl; LOOP is bare, or flgen with its number of ranks: flgen1, flgen2. Everything is imported and
a tiny run has been made before the count begins, so that only what belongs to the 100 clients (SAMPLES of each), the
model and its training is counted. Of several ranks, which are processes forked from this one, the growth since their
start is summed: images are in memory by then, once for all of them, and the module is, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import dispfl_workload
import fedavg_workload
import torch
from cnn_workload import Setting, fit

from flgen import Callback, FederatedTrainer

WORKLOADS = {"fedavg": fedavg_workload, "dispfl": dispfl_workload}
TINY = {
    "fedavg": Setting(samples_per_client=1, cohort=2, rounds=1),
    "dispfl": Setting(samples_per_client=1, rounds=1, clients=dispfl_workload.DEGREE + 1),
}
# FedAvg's clients go one after another: more take longer, not more room. Between peers all have a state of their own,
# and it is in the second round that the new states stand beside old ones.
COHORT = {"fedavg": 3, "dispfl": None}
ROUNDS = {"fedavg": 1, "dispfl": 2}


def resident_mb(field: str) -> float:
    """Return VmRSS (now) or VmHWM (peak) of this process in MB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def restart_peak() -> float:
    """Give back what is free, let the peak start again from now, and return what is resident now, in MB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mb("VmRSS")


class RankGrowth(Callback):
    """Every rank writes how far its resident set grew during the rounds to a file of its own.

    Args:
        folder: Where the files go, one per process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self._before = restart_peak()

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: object) -> None:
        (self.folder / f"grown-{os.getpid()}.txt").write_text(str(resident_mb("VmHWM") - self._before))

    def total(self) -> float:
        """Return the sum over ranks, in MB."""
        return sum(float(path.read_text()) for path in self.folder.glob("grown-*.txt"))


def run(workload: ModuleType, loop: str, setting: Setting) -> float:
    """Make the data, run the rounds, and return what several ranks grew by."""
    data = setting.data()
    if loop == "bare":
        bare = workload.BareLoop(setting, data)
        for t in range(1, setting.rounds + 1):
            bare.round(bare.plan(t))
        return 0.0
    ranks = int(loop.removeprefix("flgen"))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        growth = RankGrowth(Path(folder))
        watching: list[Callback] = [growth] if ranks > 1 else []
        fit(workload.make_method(), setting, data, Path(folder) / "run", callbacks=watching, devices=ranks)
        return growth.total()


def main(method: str, loop: str, samples: str) -> None:
    torch.set_num_threads(1)
    run(WORKLOADS[method], loop, TINY[method])
    before = restart_peak()
    of_ranks = run(WORKLOADS[method], loop, Setting(int(samples), rounds=ROUNDS[method], cohort=COHORT[method]))
    print(of_ranks or resident_mb("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
