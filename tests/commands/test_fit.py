"""`flgen fit`: what it says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flgen.experiment.records import read_events, read_metrics
from flgen.experiment.summary import describe_readings

QUICK = ["--method=FedAvg", "--model=SmallCNN", "--model.width=4", "--partition.clients=4", "--evaluation.every=1"]
QUICK += ["--trainer.rounds=3", "--trainer.accelerator=cpu", "--trainer.threads_per_rank=1", "--run_dir=runs/x"]


def test_a_run_whose_clients_hold_samples_back_ends_with_its_three_readings(flgen: Any, tmp_path: Path) -> None:
    done = flgen("fit", *QUICK, "--split.test=own", "--split.validation_fraction=0.2", "--trainer.participation=0.5")
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "runs" / "x" / "metrics.csv")
    line = describe_readings(rows)
    assert done.stdout == f"{line}\nrun folder: runs/x\n"
    assert line is not None
    assert line.startswith(f"test/pooled/accuracy_aggregated: last {100 * rows[-1]['test/accuracy']:.2f} (round 3), ")


def test_other_runs_end_without(flgen: Any) -> None:
    done = flgen("fit", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run folder: runs/x\n"


def test_auto_starts_goes_on_and_leaves_a_finished_run_alone(flgen: Any, tmp_path: Path) -> None:
    quick = [*QUICK, "--run_dir=run", "--ckpt_path=auto"]
    for rounds in (1, 2):
        done = flgen("fit", *quick, f"--trainer.rounds={rounds}")
        assert done.returncode == 0, done.stderr
    events = tmp_path / "run" / "events.jsonl"
    assert [event["event"] for event in read_events(events) if event["event"] in ("start", "resume", "end")] == [
        "start",
        "end",
        "resume",
        "end",
    ]
    before = events.read_bytes()
    done = flgen("fit", *quick, "--trainer.rounds=2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done before: run\n", "")
    assert events.read_bytes() == before
    other = flgen("fit", *quick, "--trainer.rounds=2", "--seed_everything=5")
    assert other.returncode == 1
    assert "config.yaml is of another experiment (different seed_everything, partition_seed): choose" in other.stderr
