"""The runs of a sweep on this machine: so many child processes at once, and what each of them has reached."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal

from flgen.commands.finished_runs import is_finished
from flgen.commands.seeds import config_of_run
from flgen.commands.sweep_run import SweepRuns
from flgen.errors import FlgenError
from flgen.experiment.records import read_metrics
from flgen.experiment.runs import RunFolder
from flgen.experiment.sweep import Metric
from flgen.federation.interruption import STOP_SIGNALS, die_with_parent
from flgen.metrics.over_rounds import FinalAndBest, Row, falls, final_and_best, headline

State = Literal["waiting", "running", "done", "failed", "stopped"]

PROGRAM = (sys.executable, "-m", "flgen.cli")

LOOK_EVERY_S = 0.25
READ_EVERY_S = 2.0  # a metrics.csv is read as a whole
_TAIL_BYTES = 4096


@dataclass
class Job:
    """One run of a sweep.

    Args:
        index: Its number.
        folder: Its run folder.
        parameters: What it differs in from the others.
        rounds: How many rounds it is to have.
        devices: How many processes it computes with, as far as the configuration says.
        state: Where it is.
        exit_status: Of its process, 0 before it has ended.
        started: When this command started it, on the monotonic clock; None if it has not.
        ended: When it ended.
        rows: Of metrics.csv, as last read.
    """

    index: int
    folder: RunFolder
    parameters: str
    rounds: int
    devices: int
    state: State = "waiting"
    exit_status: int = 0
    started: float | None = None
    ended: float | None = None
    rows: Sequence[Row] = ()
    _read: float = field(default=-READ_EVERY_S, repr=False)

    @property
    def round(self) -> int:
        """The last round that it has logged."""
        return int(self.rows[-1]["round"]) if self.rows else 0

    @property
    def seconds(self) -> float:
        """How long its process has been running, seconds."""
        if self.started is None:
            return 0.0
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def computing_s(self) -> float:
        """What its rounds and evaluations took, seconds, over all processes that have worked at it."""
        return sum(row.get("time/round_s", 0) + row.get("time/evaluation_s", 0) for row in self.rows)

    def newest(self, metric: str) -> float | None:
        """Return the newest value of a metric, None if no round has it."""
        return next((row[metric] for row in reversed(self.rows) if metric in row), None)

    def reached(self, metric: Metric | None) -> FinalAndBest | None:
        """Return the metric's value at the last round that has it, and the best one by the metric's goal."""
        if metric is None or not any(metric.name in row for row in self.rows):
            return None
        found = final_and_best(self.rows, metric.name)
        if falls(metric.name) == (metric.goal == "minimize"):
            return found
        best = (min if metric.goal == "minimize" else max)(
            (row for row in self.rows if metric.name in row), key=lambda row: row[metric.name]
        )
        return found._replace(best=best[metric.name], best_round=int(best["round"]))

    def read(self, *, at_once: bool = False) -> None:
        """Read metrics.csv again, if the last time is a while ago."""
        if at_once or time.monotonic() >= self._read + READ_EVERY_S:
            self._read = time.monotonic()
            with suppress(FlgenError):  # the run itself says what is wrong with its file
                self.rows = read_metrics(self.folder.metrics)


def plan(runs: SweepRuns) -> list[Job]:
    """Return all runs of a sweep, after parsing the configuration of each; those that have ended before are done.

    Raises:
        UsageError: A configuration is wrong; the message begins with its number and its parameters.
        FlgenError: A folder has another run.
    """
    jobs = []
    for index in range(len(runs)):
        try:
            configuration = runs.configuration(index)
            values = configuration.values
            folder = RunFolder(Path(values.run_dir))
            done = is_finished(config_of_run(configuration), folder.path)
        except FlgenError as error:
            raise type(error)(f"index {index} ({runs.described(index)}): {error}") from error
        devices = values.trainer.devices if isinstance(values.trainer.devices, int) else 1
        job = Job(index, folder, runs.sweep.label(runs.values(index)), values.trainer.rounds, devices)
        if done:
            job.state = "done"
            job.read(at_once=True)
        jobs.append(job)
    return jobs


def common_metric(metric: Metric | None, jobs: Sequence[Job]) -> Metric | None:
    """Return what runs are compared by: the sweep's metric, or else the one that the first of them is judged by.

    Args:
        metric: The sweep's.
        jobs: Its runs.
    """
    if metric is not None:
        return metric
    name = next((found for job in jobs if (found := headline(job.rows)) is not None), None)
    return None if name is None else Metric(name, "minimize" if falls(name) else "maximize")


def run_jobs(runs: SweepRuns, jobs: Sequence[Job], at_once: int, look: Callable[[], None]) -> int:
    """Run all that wait, so many at once, and return the number of the signal that stopped them, 0 if none did.

    A stop signal is passed on to every child, each of which writes a checkpoint; no further one is started. A run that
    fails stops no other.

    Args:
        runs: The sweep.
        jobs: Its runs; their states change in place.
        at_once: The most processes.
        look: Called again and again, to show how far they are.
    """
    children: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}  # by slot
    stop = 0
    (runs.folder / "logs").mkdir(parents=True, exist_ok=True)
    with _stop_signals() as received:
        while True:
            while received:
                number = received.pop(0)
                stop = stop or number
                for _, child in children.values():
                    child.send_signal(number)
            for slot in range(at_once):
                job = next((job for job in jobs if job.state == "waiting"), None)
                if slot not in children and job is not None and not stop:
                    children[slot] = job, _start(runs, job, slot, at_once)
            for slot, (job, child) in list(children.items()):
                job.read()
                status = child.poll()
                if status is not None:
                    del children[slot]
                    _end(job, 128 - status if status < 0 else status)
            look()
            if not children and not received and (stop or all(job.state != "waiting" for job in jobs)):
                return stop
            time.sleep(LOOK_EVERY_S)


def last_words(log: Path) -> str:
    """Return the last line that a run has printed, empty if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _start(runs: SweepRuns, job: Job, slot: int, at_once: int) -> subprocess.Popen[bytes]:
    command = [*PROGRAM, *runs.alone(job.index)]
    with open(runs.log(job.index), "ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_share(slot, at_once, job.devices)},
            preexec_fn=partial(die_with_parent, os.getpid()),
            process_group=0,  # Ctrl-C is passed on like any other stop signal, once
        )
    job.state, job.started = "running", time.monotonic()
    return child


def _end(job: Job, status: int) -> None:
    job.ended, job.exit_status = time.monotonic(), status
    stopped = status in [128 + number for number in STOP_SIGNALS]
    job.state = "done" if status == 0 else "stopped" if stopped else "failed"
    job.read(at_once=True)


def _share(slot: int, at_once: int, devices: int) -> dict[str, str]:
    """Return the environment that gives a child its part of the cores, and of the GPUs that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // (at_once * devices)))}
    if at_once > 1 and len(gpus := os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) > 1:
        share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot::at_once] or [gpus[slot % len(gpus)]])
    return share


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect the stop signals that arrive inside the block."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {number: signal.signal(number, receive) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
