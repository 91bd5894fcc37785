"""Stop signals and sudden deaths: nothing is lost, nothing hangs."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_commands import ForkedCommand
from small_runs import DIGITS, QUICK, Flgen

from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_events


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start a fit that would take long, wait for its second round, and see to it that nothing of it is left."""
    started: list[ForkedCommand] = []

    def begin(*arguments: str) -> ForkedCommand:
        command = ["fit", "--config", DIGITS, *QUICK, "--trainer.rounds=1000"]
        slow = ("--method.local_steps=20", "--evaluation.extractors=[]", "--evaluation.every=1000", "--run_dir=run")
        process = ForkedCommand([*command, *slow, "--trainer.checkpoint_every=1", *arguments], tmp_path)
        started.append(process)
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "checkpoints" / "round-00002").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no second round in a minute"
            time.sleep(0.05)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def children(process: ForkedCommand) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("number", "devices"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGUSR1, 2)]
)
def test_a_stop_signal_checkpoints_and_the_run_goes_on_as_if_nothing_had_happened(
    number: signal.Signals, devices: int, start: Any, flgen: Flgen, tmp_path: Path
) -> None:
    process = start(f"--trainer.devices={devices}")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number, stderr
    stopped = int(re.search(r"stopped after round (\d+); continue with", stderr).group(1))  # type: ignore[union-attr]
    assert "Traceback" not in stderr
    assert find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round == stopped
    assert read_events(tmp_path / "run" / "events.jsonl")[-1]["event"] == "stopped"

    more = ("--trainer.checkpoint_every=1", "--method.local_steps=20", "--evaluation.extractors=[]")
    rounds = f"--trainer.rounds={stopped + 1}"
    for arguments in (("--run_dir=run", "--ckpt_path=auto"), ("--run_dir=whole", "--ckpt_path=auto")):
        done = flgen("fit", "--config", DIGITS, *QUICK, *more, rounds, "--trainer.devices=2", *arguments)
        assert done.returncode == 0, done.stderr
    resumed, whole = (find_checkpoint(tmp_path / run / "checkpoints" / "last") for run in ("run", "whole"))
    assert resumed.round == whole.round == stopped + 1
    assert torch.equal(resumed.server_state()["method"]["scores"], whole.server_state()["method"]["scores"])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_job_and_the_last_checkpoint_resumes(
    victim: int, start: Any, flgen: Flgen, tmp_path: Path
) -> None:
    process = start("--trainer.devices=2")
    ranks = [pid for pid in children(process) if alive(pid)]
    assert len(ranks) == 2
    os.kill(ranks[victim], signal.SIGKILL)
    killed_at = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    assert process.returncode == 1
    assert "was killed by SIGKILL; continue from the last checkpoint with --ckpt_path last" in stderr
    assert "Traceback" not in stderr
    assert not any(alive(pid) for pid in ranks)

    good = find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round
    rounds = f"--trainer.rounds={good + 1}"
    done = flgen(
        "fit", "--config", DIGITS, *QUICK, rounds, "--run_dir=run", "--ckpt_path=last", "--method.local_steps=20"
    )
    assert done.returncode == 0, done.stderr
    assert find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round == good + 1


def test_a_killed_command_takes_its_ranks_with_it(start: Any) -> None:
    process = start("--trainer.devices=2")
    ranks = children(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in ranks):
        assert time.monotonic() < deadline, "a rank outlived the command"
        time.sleep(0.1)
