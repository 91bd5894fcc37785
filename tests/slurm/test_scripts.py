"""The shipped job scripts, submitted to a real SLURM: what they start, and what happens when it is interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cluster import Cluster
from forked_commands import run_forked

from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_events, read_metrics

pytestmark = pytest.mark.system

SMALL = ("--config", "small.yaml")
LONG = ("--config", "small.yaml", "--trainer.rounds=8", "--method.local_steps=10")
"""A run that is still there when it has been seen to have two rounds."""
LIMIT_S = 180
REPOSITORY = Path(__file__).parents[2]
Undisturbed = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A function that returns what the server has at the end of a run on one process, outside SLURM."""
    runs = tmp_path_factory.mktemp("undisturbed")

    @cache
    def end_of(*options: str) -> dict[str, Any]:
        write_config(runs)
        run = runs / str(len(options))
        done = run_forked(["fit", *options, f"--run_dir={run}"], runs, {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        return final_state(run)

    return end_of


@pytest.fixture
def folder(tmp_path: Path, cluster: Cluster) -> Iterator[Path]:
    """A folder with the shipped scripts and a small configuration, from which jobs are submitted."""
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "slurm")
    write_config(tmp_path)
    yield tmp_path
    cluster.cancel_all()


def write_config(folder: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / "prism_digits.yaml").read_text())
    config["trainer"].update(devices=1, rounds=2, checkpoint_every=1000)
    config["method"]["init_args"].update(local_steps=2, batch_size=8, recalibration_batches=2)
    config["model"]["init_args"].update(latent=8, width=8)
    config["model"]["init_args"]["loss"]["init_args"]["real_batch"] = 8
    config["evaluation"] = {"every": 1000, "images": 32, "extractors": []}
    (folder / "small.yaml").write_text(yaml.safe_dump({**config, "run_dir": "runs/small"}))


def stand_in(folder: Path, program: str) -> None:
    """Let jobs find a program of a line in place of flgen: what a user says in slurm/environment.sh."""
    flgen = folder / "bin" / "flgen"
    flgen.parent.mkdir()
    flgen.write_text(f"#!/bin/bash\n{program}\n")
    flgen.chmod(0o755)
    (folder / "slurm" / "environment.sh").write_text('PATH="$PWD/bin:$PATH"\n')


def final_state(run: Path) -> dict[str, Any]:
    return dict(find_checkpoint(run / "checkpoints" / "last").server_state()["method"])


def assert_equal(one: Any, other: Any) -> None:
    """Compare two states, tensor by tensor, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def names_of(run: Path) -> list[str]:
    return [event["event"] for event in read_events(run / "events.jsonl")]


def has_rounds(run: Path, rounds: int = 2) -> bool:
    return (run / "metrics.csv").exists() and len(read_metrics(run / "metrics.csv")) >= rounds


def test_an_array_runs_every_line_of_a_sweep_in_a_folder_of_its_own(cluster: Cluster, folder: Path) -> None:
    values = {"seed_everything": {"values": [3, 4]}, "method.alpha": {"values": [0.0, 0.5]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"program": "flgen", "method": "grid", "parameters": values}))
    job = cluster.submit(folder, "--array=0-3", "slurm/array.sh", *SMALL, "--sweep", "sweep.yaml")
    for task in range(4):
        assert cluster.wait(f"{job}_{task}", LIMIT_S) == "COMPLETED", cluster.printed(f"{job}_{task}")
    runs = sorted((folder / "runs" / "small").iterdir())
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    ran = {(config["seed_everything"], config["method"]["init_args"]["alpha"]) for config in configs}
    assert ran == {(seed, alpha) for seed in (3, 4) for alpha in (0.0, 0.5)}
    assert [find_checkpoint(run / "checkpoints" / "last").round for run in runs] == [2] * 4


def test_a_seed_that_failed_is_run_again_alone(cluster: Cluster, folder: Path) -> None:
    runs = folder / "runs" / "small"
    runs.mkdir(parents=True)
    (runs / "seed-6").write_text("in the way")
    command = ("slurm/array.sh", *SMALL, "--seeds", "[5,6]")
    job = cluster.submit(folder, "--array=0-1", *command)
    assert cluster.wait(f"{job}_0", LIMIT_S) == "COMPLETED", cluster.printed(f"{job}_0")
    assert cluster.wait(f"{job}_1", LIMIT_S) == "FAILED", cluster.printed(f"{job}_1")
    assert f"run folder {Path('runs/small/seed-6')} already exists" in cluster.printed(f"{job}_1")

    (runs / "seed-6").unlink()
    again = cluster.submit(folder, "--array=1", *command)
    assert cluster.wait(f"{again}_1", LIMIT_S) == "COMPLETED", cluster.printed(f"{again}_1")
    assert names_of(runs / "seed-5").count("start") == 1
    summary = run_forked(["fit", *SMALL, "--seeds", "[5,6]"], folder)
    assert summary.returncode == 0, summary.stderr
    assert summary.stdout.count("done before") == 2
    assert (runs / "summary.csv").exists()


@pytest.mark.parametrize("tasks", ["--nodes=1 --ntasks-per-node=2", "--nodes=2 --ntasks-per-node=1"])
def test_two_tasks_are_two_ranks_with_the_result_of_one_process(
    cluster: Cluster, folder: Path, undisturbed: Undisturbed, tasks: str
) -> None:
    job = cluster.submit(folder, *tasks.split(), "slurm/multi_node.sh", *SMALL)
    assert cluster.wait(job, LIMIT_S) == "COMPLETED", cluster.printed(job)
    assert read_events(folder / "runs/small/events.jsonl")[0]["ranks"] == 2
    assert_equal(final_state(folder / "runs/small"), undisturbed(*SMALL))


def test_a_run_near_its_time_limit_is_queued_again_and_ends_as_if_undisturbed(
    cluster: Cluster, folder: Path, undisturbed: Undisturbed
) -> None:
    run = folder / "runs/small"
    job = cluster.submit(folder, "--ntasks-per-node=2", "slurm/preemptible.sh", *LONG)
    cluster.until(lambda: has_rounds(run), LIMIT_S, job)
    cluster.signal(job, "USR1")
    assert cluster.wait(job, LIMIT_S, until=("PENDING", "COMPLETED", "FAILED")) == "PENDING", cluster.printed(job)
    stopped = find_checkpoint(run / "checkpoints" / "last").round
    assert 2 <= stopped < 8

    cluster.start_now(job)
    assert cluster.wait(job, LIMIT_S) == "COMPLETED", cluster.printed(job)
    assert names_of(run) == ["start", "checkpoint", "stopped", "resume", "checkpoint", "end"]
    assert_equal(final_state(run), undisturbed(*LONG))
    output = cluster.printed(job)
    assert output.index("start 1, on") < output.index("back into the queue") < output.index("start 2, on")


def test_a_pre_empted_run_is_queued_again_and_ends_as_if_undisturbed(
    cluster: Cluster, folder: Path, undisturbed: Undisturbed
) -> None:
    run = folder / "runs/small"
    job = cluster.submit(folder, "--exclusive", "slurm/preemptible.sh", *LONG)
    cluster.until(lambda: has_rounds(run), LIMIT_S, job)
    urgent = cluster.submit(folder, "--partition=high", "--exclusive", "--nodes=2", "--wrap=true")
    assert cluster.wait(urgent, LIMIT_S) == "COMPLETED"
    assert cluster.wait(job, LIMIT_S, until=("PENDING", "COMPLETED", "FAILED")) == "PENDING", cluster.printed(job)

    cluster.start_now(job)
    assert cluster.wait(job, LIMIT_S) == "COMPLETED", cluster.printed(job)
    assert names_of(run) == ["start", "checkpoint", "stopped", "resume", "checkpoint", "end"]
    assert_equal(final_state(run), undisturbed(*LONG))

    cluster.client("scontrol", "requeue", job)
    cluster.start_now(job)
    cluster.until(lambda: "done before: runs/small" in cluster.printed(job), LIMIT_S, job)
    assert cluster.wait(job, LIMIT_S) == "COMPLETED"


def test_a_wrong_option_ends_the_job_with_one_line_and_is_not_queued_again(cluster: Cluster, folder: Path) -> None:
    job = cluster.submit(folder, "slurm/preemptible.sh", *SMALL, "--method.local_stepz=3")
    assert cluster.wait(job, LIMIT_S) == "FAILED"
    assert cluster.about(job)["ExitCode"] == "2:0"
    assert cluster.about(job)["Restarts"] == "0"
    (line,) = [line for line in cluster.printed(job).splitlines() if line.startswith("flgen: error:")]
    assert "--method.local_stepz" in line


def test_a_task_of_an_array_is_queued_again_alone(cluster: Cluster, folder: Path) -> None:
    stand_in(folder, 'echo "$@" >>said; [ "${SLURM_RESTART_COUNT:-0}" = 1 ] || [ "$6" = 0 ] || exit 138')
    job = cluster.submit(folder, "--array=0-2", "slurm/preemptible.sh", "--config=c.yaml")
    assert cluster.wait(f"{job}_0", LIMIT_S) == "COMPLETED"
    whole = [task for task in (1, 2) if cluster.about(f"{job}_{task}")["JobId"] == str(job)]
    assert len(whole) == 1, "one of the interrupted tasks should bear the number of the whole array"
    for task in (1, 2):
        assert cluster.wait(f"{job}_{task}", LIMIT_S, until=("PENDING",)) == "PENDING"
        cluster.start_now(f"{job}_{task}")
        assert cluster.wait(f"{job}_{task}", LIMIT_S) == "COMPLETED"
    assert [cluster.about(f"{job}_{task}")["Restarts"] for task in range(3)] == ["0", "1", "1"]
    calls = [f"fit --config=c.yaml --ckpt_path auto --seed_index {task}" for task in range(3)]
    assert sorted((folder / "said").read_text().splitlines()) == sorted([*calls, *calls[1:]])


def test_a_run_that_never_gets_further_is_given_up(cluster: Cluster, folder: Path) -> None:
    stand_in(folder, "exit 138")
    job = cluster.submit(folder, "--export=ALL,FLGEN_MAX_RESTARTS=1", "slurm/preemptible.sh")
    cluster.until(lambda: cluster.about(job)["Restarts"] == "1", LIMIT_S, job)
    cluster.start_now(job)
    assert cluster.wait(job, LIMIT_S) == "FAILED"
    assert "not queued again after 1 restarts (FLGEN_MAX_RESTARTS)" in cluster.printed(job)


def test_the_signal_comes_two_minutes_before_the_time_is_over(cluster: Cluster, folder: Path) -> None:
    stand_in(folder, 'trap "echo asked; exit 138" USR1; sleep 120 & wait')
    job = cluster.submit(folder, "--time=2", "slurm/preemptible.sh", *SMALL)  # so it comes as soon as SLURM looks
    cluster.until(lambda: cluster.about(job)["Restarts"] == "1", 45, job)
    assert "asked" in cluster.printed(job).splitlines()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("array.sh", "which tasks? sbatch --array=0-3 slurm/array.sh ..."),
        ("multi_node.sh", "there is no flgen on PATH: say in slurm/environment.sh"),
    ],
)
def test_a_script_says_what_it_lacks(cluster: Cluster, folder: Path, script: str, said: str) -> None:
    if "PATH" in said:
        (folder / "slurm" / "environment.sh").write_text("PATH=/usr/bin:/bin\n")
    job = cluster.submit(folder, f"slurm/{script}", *SMALL)
    assert cluster.wait(job, LIMIT_S) == "FAILED"
    assert f"flgen: error: {said}" in cluster.printed(job)
