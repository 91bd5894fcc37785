"""Who has started the processes is told from the environment, and options that do not fit are refused in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from flgen.errors import UsageError
from flgen.federation.launchers import Started, check_launcher, is_job_of_one_task, started_processes

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"}
PART_OF_A_JOB = {  # sbatch --nodes=2 --ntasks-per-node=4, in it srun --nodes=1 --ntasks=2
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "1",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}
BATCH = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
BY_HAND = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500", "NODE_RANK": "1"}


@pytest.fixture(autouse=True)
def _plain_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", *BY_HAND):
            monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Started("torchrun", 4, 2)),
        (SRUN, Started("srun", 4, 2)),
        (PART_OF_A_JOB, Started("srun", 2, 2)),
        (PART_OF_A_JOB | {"SLURM_STEP_NUM_NODES": "2", "SLURM_NNODES": "2"}, Started("srun", 2, 1)),
        ({**SRUN, **TORCHRUN, "WORLD_SIZE": "8"}, Started("torchrun", 8, 2)),  # one torchrun per task
        (BATCH, None),
        ({**SRUN, "SLURM_NTASKS": "1"}, None),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, None),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, None),  # flgen's own, on GPUs
    ],
)
def test_what_has_been_started(
    environment: dict[str, str], expected: Started | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, environment)
    assert started_processes() == expected


@pytest.mark.parametrize(("environment", "by"), [(TORCHRUN, "torchrun"), (SRUN, "srun")])
@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (1, 2), (1, 1), (4, 1), ("auto", 1)])
def test_options_that_do_not_fit_the_launcher_are_refused(
    environment: dict[str, str], by: str, devices: int | str, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, environment)
    with pytest.raises(UsageError) as refusal:
        check_launcher(devices, nodes)
    assert str(refusal.value) == (
        f"--trainer.devices {devices} --trainer.num_nodes {nodes} does not fit the 4 processes that {by} has started: "
        "give --trainer.devices 2 --trainer.num_nodes 2"
    )


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
@pytest.mark.parametrize("devices", [2, "auto"])
def test_options_that_fit_are_taken(
    environment: dict[str, str], devices: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, environment)
    check_launcher(devices, 2)


def test_a_part_of_a_job_counts_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, PART_OF_A_JOB)
    check_launcher(2, 1)
    with pytest.raises(UsageError, match=r"give --trainer\.devices 2 --trainer\.num_nodes 1$"):
        check_launcher(4, 2)


def test_nodes_with_different_numbers_of_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = {"SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NUM_NODES": "2"}
    set_all(monkeypatch, {**PART_OF_A_JOB, **uneven, "SLURM_STEP_TASKS_PER_NODE": "2,1"})
    with pytest.raises(UsageError, match=r"^srun has started 2,1 processes on its nodes, and .* a multiple of --nodes"):
        check_launcher("auto", 2)


def test_a_batch_script_that_forgot_srun_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, BATCH)
    with pytest.raises(UsageError, match=r"^SLURM has given this job 4 tasks .* write srun before flgen"):
        check_launcher(2, 2)
    check_launcher(1, 1)  # one process of its own needs nobody
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    check_launcher(2, 1)  # there flgen starts the ranks


def test_a_job_of_one_task_starts_its_ranks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_job_of_one_task()
    set_all(monkeypatch, {**SRUN, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"})
    assert is_job_of_one_task()
    check_launcher(4, 1)


def test_several_nodes_by_hand_need_to_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"MASTER_ADDR": "n1"})
    with pytest.raises(UsageError, match=r"^--trainer\.num_nodes 2: .*torchrun or srun, or set MASTER_PORT, NODE_RANK"):
        check_launcher(1, 2)
    set_all(monkeypatch, BY_HAND)
    check_launcher(1, 2)
    set_all(monkeypatch, {**BY_HAND, "NODE_RANK": "2"})
    with pytest.raises(UsageError, match=r"^NODE_RANK is 2: give 0 to 1, another on each node"):
        check_launcher(1, 2)
