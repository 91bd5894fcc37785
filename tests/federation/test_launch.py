"""Ranks start together and end together: when one fails, the job ends soon, and the reason is said once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric

from flgen.errors import FlgenError, UsageError
from flgen.federation.interruption import StopRequest
from flgen.federation.launch import RanksFailed, build_fabric, launch
from flgen.federation.strategy import ClientParallelStrategy

SECONDS = 20  # below any time limit of the ranks, and far above what ending takes


def fabric_of(ranks: int, timeout_s: float = 60) -> Fabric:
    return build_fabric(
        accelerator="cpu", devices=ranks, num_nodes=1, precision="32-true", timeout_s=timeout_s, callbacks=[]
    )


def fails(ranks: int, work: Callable[[int], Any]) -> RanksFailed:
    """Run work(rank) on every rank, which must end the job soon; return what the launching process raises."""
    fabric = fabric_of(ranks)
    started = time.monotonic()
    with pytest.raises(RanksFailed) as failure:
        launch(fabric, lambda stop: work(fabric.global_rank))
    assert time.monotonic() - started < SECONDS
    return failure.value


def error_lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("flgen: error:")]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_runs_and_the_first_ones_result_comes_back(ranks: int, tmp_path: Path) -> None:
    fabric = fabric_of(ranks)

    def work(stop: StopRequest) -> tuple[int, int]:
        (tmp_path / f"rank-{fabric.global_rank}").touch()
        return fabric.global_rank, fabric.world_size

    assert launch(fabric, work) == (0, ranks)
    assert len(list(tmp_path.iterdir())) == ranks


def test_one_process_has_no_process_group() -> None:
    fabric = fabric_of(1)
    assert not isinstance(fabric.strategy, ClientParallelStrategy)
    assert launch(fabric, lambda stop: (os.getpid(), dist.is_initialized())) == (os.getpid(), False)


def test_modules_and_loaders_of_a_rank_stay_its_own() -> None:
    fabric = fabric_of(2)

    def work(stop: StopRequest) -> tuple[bool, float, int, float]:
        rank = fabric.global_rank
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(module.weight)
        wrapped = fabric.setup_module(module)
        loss = ((rank + 1) * wrapped(torch.ones(1, 1))).sum()
        fabric.backward(loss)
        loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(list(range(4))))
        gradients: list[Any] = [None, None]
        dist.all_gather_object(gradients, float(module.weight.grad))
        return wrapped.module is module, gradients[0], len(loader), gradients[1]

    assert launch(fabric, work) == (True, 1.0, 4, 2.0)


def test_a_rank_that_stays_away_from_a_collective_ends_the_job_after_the_time_limit(
    capfd: pytest.CaptureFixture[str],
) -> None:
    fabric = fabric_of(2, timeout_s=1)

    def work(stop: StopRequest) -> None:
        if fabric.global_rank == 1:
            while not stop:
                time.sleep(0.05)
            return
        dist.barrier()

    started = time.monotonic()
    with pytest.raises(RanksFailed) as failure:
        launch(fabric, work)
    assert 1 <= time.monotonic() - started < SECONDS
    assert failure.value.exit_status == 1
    (line,) = error_lines(capfd)
    assert line.startswith("flgen: error: rank 0 had no answer from the other ranks in time")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rank_that_raises_ends_the_ranks_that_wait_for_it(failing: int, capfd: pytest.CaptureFixture[str]) -> None:
    def work(rank: int) -> None:
        if rank == failing:
            raise FlgenError(f"the disk of rank {rank} is full")
        dist.barrier()

    failure = fails(3, work)
    assert str(failure) == ""
    assert failure.exit_status == 1
    printed = capfd.readouterr().err
    assert printed.count("flgen: error:") == 1
    assert f"flgen: error: the disk of rank {failing} is full\n" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_raises_ends_the_ranks_that_compute(failing: int, capfd: pytest.CaptureFixture[str]) -> None:
    fabric = fabric_of(2)

    def work(stop: StopRequest) -> None:
        if fabric.global_rank == failing:
            raise ValueError("no such\nthing")
        while not stop:
            time.sleep(0.05)

    started = time.monotonic()
    with pytest.raises(RanksFailed) as failure:
        launch(fabric, work)
    assert time.monotonic() - started < SECONDS
    assert failure.value.exit_status == 1
    printed = capfd.readouterr().err
    assert printed.count("Traceback") == 1  # a mistake in the program is shown whole, and once
    assert printed.count("flgen: error: ValueError: no such thing\n") == 1


def test_what_every_rank_finds_wrong_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    def work(rank: int) -> None:
        raise UsageError("--model X cannot be trained")

    assert fails(3, work).exit_status == 2
    assert error_lines(capfd) == ["flgen: error: --model X cannot be trained"]


def test_an_error_that_mentions_time_or_connections_is_not_taken_for_a_lost_rank(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for error in (TimeoutError("Timed out reading logs"), BrokenPipeError(32, "Broken pipe")):

        def work(rank: int, error: Exception = error) -> None:
            if rank == 1:
                raise error
            dist.barrier()

        fails(2, work)
        (line,) = error_lines(capfd)
        assert line.startswith(f"flgen: error: {type(error).__name__}: ")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_ends_the_ranks_that_wait_for_it(killed: int, capfd: pytest.CaptureFixture[str]) -> None:
    def work(rank: int) -> None:
        if rank == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    failure = fails(2, work)
    assert failure.exit_status == 1
    # Whichever of the two is seen first, the line says that a rank is gone and what to do.
    assert f"rank {killed} was killed by SIGKILL" in str(failure) or "the others lost contact" in str(failure)
    assert "--ckpt_path last" in str(failure)
    assert "\n" not in str(failure)
    assert error_lines(capfd) == []


def test_a_rank_that_is_killed_ends_the_ranks_that_compute() -> None:
    fabric = fabric_of(2)

    def work(stop: StopRequest) -> None:
        if fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while not stop:
            time.sleep(0.05)

    with pytest.raises(RanksFailed, match=r"^rank 1 was killed by SIGKILL; continue .* --ckpt_path last$"):
        launch(fabric, work)


def test_the_next_launch_works_after_a_failed_one() -> None:
    fails(2, lambda rank: 1 / rank)
    fabric = fabric_of(2)
    assert launch(fabric, lambda stop: fabric.world_size) == 2
    assert not dist.is_initialized()


class Job:
    """A launch in a process of its own, whose ranks write their process ids down and wait for a stop request."""

    def __init__(self, folder: Path, ranks: int, *, obedient: bool = True) -> None:
        self.folder, self.ranks, self.obedient = folder, ranks, obedient

    def _run(self) -> int:
        fabric = fabric_of(self.ranks)

        def work(stop: StopRequest) -> int:
            (self.folder / f"{fabric.global_rank}.partial").write_text(str(os.getpid()))
            (self.folder / f"{fabric.global_rank}.partial").rename(self.folder / f"{fabric.global_rank}.pid")
            while not (stop and self.obedient):
                time.sleep(0.02)
            (self.folder / f"{fabric.global_rank}.stopped").write_text(str(stop.signal_number))
            return stop.signal_number

        return launch(fabric, work)

    def __enter__(self) -> Job:
        self.ranks_pids: list[int] = []
        self.pid = os.fork()  # as a process that a shell started: no child of multiprocessing
        if self.pid == 0:
            status = 99
            torch.cuda._is_in_bad_fork = lambda: False  # true of a fork of a process that trained; no GPU is used here
            try:
                status = self._run()
            finally:
                os._exit(status)
        wait_until(lambda: len(list(self.folder.glob("*.pid"))) == self.ranks)
        self.ranks_pids = [int(path.read_text()) for path in self.folder.glob("*.pid")]
        return self

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exit_status(self) -> int:
        wait_until(lambda: not is_running(self.pid))
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return status

    def __exit__(self, *exception: Any) -> None:
        for pid in [self.pid, *self.ranks_pids]:
            if pid and is_running(pid):
                os.kill(pid, signal.SIGKILL)
        if self.pid:
            os.waitpid(self.pid, 0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_reaches_every_rank(number: signal.Signals, tmp_path: Path) -> None:
    with Job(tmp_path, 2) as job:
        job.signal(number)
        assert job.exit_status() == number
        stopped = {path.name: path.read_text() for path in tmp_path.glob("*.stopped")}
    assert stopped == {"0.stopped": str(int(number)), "1.stopped": str(int(number))}


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    with Job(tmp_path, 2, obedient=False) as job:
        job.signal(signal.SIGINT)
        time.sleep(0.2)
        assert is_running(job.pid)
        job.signal(signal.SIGINT)
        assert job.exit_status() == 128 + signal.SIGINT
        wait_until(lambda: not any(is_running(pid) for pid in job.ranks_pids))


def test_no_rank_outlives_a_killed_job(tmp_path: Path) -> None:
    with Job(tmp_path, 2, obedient=False) as job:
        job.signal(signal.SIGKILL)
        assert job.exit_status() == -signal.SIGKILL
        wait_until(lambda: not any(is_running(pid) for pid in job.ranks_pids))


@pytest.mark.parametrize("forked", [False, True])
def test_a_stop_signal_that_comes_before_the_work_is_not_forgotten(
    forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = fabric_of(2)
    # Each rank while it is being connected, or the process that is about to fork them.
    where, what = (fabric.strategy, "setup_environment") if forked else (fabric.strategy.launcher, "launch")
    go_on = getattr(where, what)

    def after_a_signal(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return go_on(*arguments, **options)

    monkeypatch.setattr(where, what, after_a_signal)

    def work(stop: StopRequest) -> list[int]:
        received = [0, 0]
        dist.all_gather_object(received, stop.signal_number)
        return received

    assert launch(fabric, work) == [signal.SIGTERM] * 2


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_ID": "0"}
SRUN |= {"SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # sbatch's 4
SRUN |= {"SLURM_NODEID": "0"}


def fails_to_connect(started: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch as one of two processes that something else has started, and let making the group fail."""

    def fail() -> None:
        raise RuntimeError(reason)

    for name, value in {**started, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    fabric = fabric_of(2)
    monkeypatch.setattr(fabric.strategy, "setup_environment", fail)
    launch(fabric, lambda stop: None)


@pytest.mark.parametrize("started", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
@pytest.mark.parametrize(
    "reason", ["Gloo connectFullMesh failed with [pair.cc:1]\nno route", "Timed out after 2 s"], ids=["mesh", "time"]
)
def test_processes_that_cannot_be_connected_are_one_line(
    started: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FlgenError, match=r"^the processes did not find each other at 127\.0\.0\.1:29500: ") as failure:
        fails_to_connect(started, reason, monkeypatch)
    assert "\n" not in str(failure.value)
    why, _, remedy = str(failure.value).rpartition("; ")
    assert why.endswith(" ".join(reason.split()))
    assert remedy == "start flgen on every node, with the same MASTER_ADDR and MASTER_PORT"


def test_a_mistake_in_the_program_is_not_taken_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^no such buffer$"):
        fails_to_connect(TORCHRUN, "no such buffer", monkeypatch)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"devices": 0}, "--trainer.devices 0"),
        ({"accelerator": "tpu9"}, "--trainer.accelerator tpu9"),
        ({"accelerator": "cuda", "devices": 2}, "--trainer.accelerator cuda"),
        ({"precision": "17-true"}, "precision"),
    ],
)
def test_what_fabric_refuses_is_one_line_that_names_the_option(options: dict[str, Any], complaint: str) -> None:
    if options.get("accelerator") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    given = {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "precision": "32-true"} | options
    with pytest.raises(UsageError, match=complaint) as refusal:
        build_fabric(**given, timeout_s=10, callbacks=[])
    assert "\n" not in str(refusal.value)
