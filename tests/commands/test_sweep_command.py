"""`flgen sweep`: what it lists, how it runs all of a sweep, and what it says in the end."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from flgen import cli
from flgen.cli import main
from flgen.commands import sweep_jobs
from flgen.commands.sweep_jobs import Job, common_metric, last_words
from flgen.commands.sweep_table import SweepDisplay, aligned, ranked, summary_lines
from flgen.errors import UsageError
from flgen.experiment.runs import RunFolder
from flgen.experiment.sweep import Metric

CONTENT: dict[str, Any] = {
    "name": "rates",
    "command": [
        "flgen",
        "fit",
        "--model=SmallCNN",
        "--method=FedProx",
        "--trainer.rounds=3",
        "--run_dir=all",
        "${args}",
    ],
    "method": "grid",
    "metric": {"name": "test/accuracy", "goal": "maximize"},
    "parameters": {"method.mu": {"values": [0.1, 0.2, 0.3]}},
}

STAND_IN = '''
"""Does what `flgen fit` would leave behind, in no time."""
import os, signal, sys, time
from pathlib import Path
from flgen.commands.finished_runs import is_finished
from flgen.commands.sweep_run import parse_fit
from flgen.experiment.config import to_yaml
from flgen.experiment.records import EventLog, MetricsTable

configuration = parse_fit(sys.argv[2:], "")
values, mu = configuration.values, configuration.values.method.init_args.mu
folder, rounds = Path(values.run_dir), values.trainer.rounds
folder.mkdir(parents=True, exist_ok=True)
print("threads", os.environ.get("OMP_NUM_THREADS"), "gpus", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if mu == 0.2 and not Path("mended").exists():
    print("flgen: error: it is broken", file=sys.stderr)
    sys.exit(1)
(folder / "config.yaml").write_text(to_yaml(configuration.resolved()))
if Path("slow").exists():
    def stop(number, frame):
        (folder / "checkpoint").touch()
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    Path(f"started-{mu}").touch()
    time.sleep(30)
for t in range(1, rounds + 1):
    MetricsTable(folder / "metrics.csv").write(t, {"test/accuracy": mu + (t == 2), "time/round_s": 2.0})
EventLog(folder / "events.jsonl").write("end", round=rounds)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep file, and a program in place of `flgen fit`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_set_up_logging", lambda: None)  # whose handlers would outlive the test
    monkeypatch.setattr(sweep_jobs, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(sweep_jobs, "PROGRAM", (sys.executable, str(tmp_path / "stand_in.py")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    return tmp_path


def test_configurations_are_listed_with_number_folder_and_parameters(folder: Path, capsys: Any) -> None:
    assert main(["sweep", "sweep.yaml", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{index}  all/{index:03d}-mu={mu}  --method.mu={mu}" for index, mu in enumerate((0.1, 0.2, 0.3))
    ]
    assert not (folder / "all").exists()


def test_random_configurations_are_listed_by_seed_and_count(folder: Path, capsys: Any) -> None:
    content = {**CONTENT, "method": "random", "parameters": {"method.mu": {"min": 0.0, "max": 1.0}}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))

    def listed(*arguments: str) -> list[str]:
        assert main(["sweep", "sweep.yaml", "--list", *arguments]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    five = listed("--count", "5")
    assert len(five) == len(set(five)) == 5
    assert listed("--count=3") == five[:3]
    assert listed("--count=5", "--seed=1") != five


def test_all_runs_of_a_sweep_are_run_and_one_that_fails_stops_no_other(
    folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["sweep", "sweep.yaml", "--jobs", "2", "--trainer.rounds=4"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "index  state   round  test/accuracy  best (round)  parameters",
        "2      done    4/4    0.3            1.3 (2)       mu=0.3",
        "0      done    4/4    0.1            1.1 (2)       mu=0.1",
        "1      failed  0/4    -              -             mu=0.2",
        "table of all runs: all/sweep.csv",
    ]
    errors = said.err.splitlines()
    assert errors[0] == "sweep rates: 3 runs, 0 done before, 2 at once, in all"
    assert sorted(errors[1:3]) == ["index 0 running  all/000-mu=0.1", "index 1 running  all/001-mu=0.2"]
    assert any(line.startswith("index 0 done  round 4/4  test/accuracy 0.1") for line in errors)
    assert errors[-3:] == [
        "flgen: index 1 failed (exit status 1): flgen: error: it is broken",
        "flgen:   all it said: all/logs/001.log",
        "flgen:   alone again: flgen fit --sweep=sweep.yaml --index=1 --trainer.rounds=4",
    ]
    rows = list(csv.DictReader((folder / "all" / "sweep.csv").open()))
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    first = {"index": "0", "run_dir": "all/000-mu=0.1", "round": "4", "rounds": "4", "computing_s": "8.0"}
    first |= {"metric": "test/accuracy", "last": "0.1", "best": "1.1", "best_round": "2", "method.mu": "0.1"}
    assert first.items() <= rows[0].items()


def test_the_same_command_runs_only_what_is_not_done(folder: Path, capsys: Any) -> None:
    assert main(["sweep", "sweep.yaml"]) == 1
    (folder / "mended").touch()
    written = (folder / "all" / "000-mu=0.1" / "metrics.csv").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["sweep", "sweep.yaml"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == "sweep rates: 3 runs, 2 done before, 1 at once, in all"
    assert [line.split()[1] for line in said.err.splitlines() if "running" in line] == ["1"]
    assert [line.split()[1] for line in said.out.splitlines()[1:4]] == ["done"] * 3
    assert (folder / "all" / "000-mu=0.1" / "metrics.csv").stat().st_mtime_ns == written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_reaches_every_run_and_starts_no_other(number: int, folder: Path, capsys: Any) -> None:
    (folder / "slow").touch()
    (folder / "mended").touch()

    def send_when_two_have_started() -> None:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("started-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send_when_two_have_started)
    sender.start()
    status = main(["sweep", "sweep.yaml", "--jobs=2"])
    sender.join()
    assert status == 128 + number
    assert sorted(path.parent.name for path in folder.glob("all/*/checkpoint")) == ["000-mu=0.1", "001-mu=0.2"]
    said = capsys.readouterr()
    assert [line.split()[1] for line in said.out.splitlines()[1:4]] == ["stopped", "stopped", "waiting"]
    assert said.err.splitlines()[-1] == "flgen: stopped; the same command goes on with the 3 of 3 that are not done"


def test_runs_at_once_share_cores_and_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    (folder / "mended").touch()
    assert main(["sweep", "sweep.yaml", "--jobs=2", "--trainer.devices=3"]) == 0
    logs = [(folder / "all" / "logs" / f"00{index}.log").read_text() for index in (0, 1)]
    assert logs == ["threads 2 gpus 4,6\n", "threads 2 gpus 5\n"]


def test_a_wrong_parameter_is_one_line_before_anything_runs(folder: Path, capsys: Any) -> None:
    content = {**CONTENT, "parameters": {"method.mu": {"values": [0.1, "lots"]}}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "sweep.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flgen: error: index 1 (--method.mu=lots): --method.mu: lots is not of type float")
    assert not (folder / "all").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "2", "sweep.yaml"], "--jobs: the sweep file comes first: flgen sweep FILE ..."),
        (["sweep.yaml", "--jobs=0"], "--jobs is 0: give 1 or more"),
        (["sweep.yaml", "--jobs=two"], "--jobs: two is not of type int"),
        ([], "which sweep? flgen sweep FILE, such as configs/sweeps/prism_digits.yaml"),
        (["nowhere.yaml"], "nowhere.yaml cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments: list[str], said: str, folder: Path, capsys: Any) -> None:
    assert main(["sweep", *arguments]) in (1, 2)
    assert capsys.readouterr().err.startswith(f"flgen: error: {said}")


def test_one_of_several_processes_does_not_run_a_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flgen.commands.sweep import run

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"flgen sweep runs one after another, but 2 processes were started for it"):
        run(["sweep.yaml"])


def job(index: int, *values: float, state: Any = "done", metric: str = "fid/digits") -> Job:
    rows = [{"round": t, metric: value} for t, value in enumerate(values, start=1)]
    return Job(index, RunFolder(Path(f"runs/{index}")), f"x={index}", 3, 1, state=state, rows=rows)


def test_runs_are_ranked_by_the_last_value_of_the_metric() -> None:
    jobs = [job(0, 5, 3), job(1, 1, 4), job(2), job(3, 2, float("nan")), job(4, 9, 2)]
    assert [found.index for found in ranked(jobs, Metric("fid/digits", "minimize"))] == [4, 0, 1, 2, 3]
    assert [found.index for found in ranked(jobs, Metric("fid/digits", "maximize"))] == [1, 0, 4, 2, 3]
    assert [found.index for found in ranked(jobs, None)] == [0, 1, 2, 3, 4]
    assert summary_lines(jobs[1:3], Metric("fid/digits", "maximize"))[1].split() == [
        "1",
        "done",
        "2/3",
        "4",
        "4",
        "(2)",
        "x=1",
    ]


def test_without_a_metric_of_its_own_a_sweep_takes_what_its_runs_are_judged_by() -> None:
    assert common_metric(None, [job(0), job(1, 5.0)]) == Metric("fid/digits", "minimize")
    assert common_metric(None, [job(0, 0.5, metric="test/accuracy")]) == Metric("test/accuracy", "maximize")
    assert common_metric(None, [job(0)]) is None
    assert common_metric(Metric("a", "maximize"), [job(0, 1.0)]) == Metric("a", "maximize")


def test_a_terminal_shows_a_table_and_first_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    jobs = [job(0, 5, 3), job(1, 4, state="running"), *(job(index, state="waiting") for index in range(2, 30))]
    jobs[1].started = time.monotonic() - 61
    display = SweepDisplay(jobs, None)
    console = Console(width=100, height=12, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    display._console = console
    console.print(display._table())
    lines = console.export_text().splitlines()
    assert lines[0].split() == ["index", "state", "round", "time", "newest", "parameters"]
    assert lines[1].split() == ["1", "running", "1/3", "0:01:01", "fid/digits", "4", "x=1"]
    assert lines[2].split()[:2] == ["2", "waiting"]
    assert lines[-1].strip() == "1 running, 28 waiting, 1 done"
    assert len(lines) < 12


def test_the_last_words_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "000.log"
    assert last_words(log) == ""
    log.write_bytes(b"x" * 9000 + b"\nflgen: error: no\n\n")
    assert last_words(log) == "flgen: error: no"


def test_columns_stand_below_each_other() -> None:
    assert aligned([["a", "bbb", "c"], ["dd", "e", ""]]) == ["a   bbb  c", "dd  e"]


@pytest.mark.long
def test_a_sweep_that_is_stopped_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Real runs: stopped after a round, then run to the end, against the same without a stop."""
    content = {**CONTENT, "command": [*CONTENT["command"][:-2], "${args}"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    options = [
        "--trainer.rounds=6",
        "--trainer.accelerator=cpu",
        "--partition.clients=4",
        "--trainer.threads_per_rank=1",
    ]

    def start(run_dir: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "flgen.cli",
            "sweep",
            "sweep.yaml",
            "--jobs=2",
            f"--run_dir={run_dir}",
            *options,
        ]
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    stopped = start("stopped")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("stopped/*/checkpoints/round-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 128 + signal.SIGTERM, said
    for run_dir in ("stopped", "whole"):
        process = start(run_dir)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said

    def accuracies(run_dir: str) -> dict[str, list[str]]:
        tables = sorted((tmp_path / run_dir).glob("*/metrics.csv"))
        return {path.parent.name: [row["test/accuracy"] for row in csv.DictReader(path.open())] for path in tables}

    assert len(accuracies("whole")) == 3
    assert accuracies("stopped") == accuracies("whole")
