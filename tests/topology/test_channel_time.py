"""The channel says how long payloads moved, and how long a rank waited for the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flgen.experiment.records import read_metrics
from flgen.topology.channel import Channel, TimeSpent

LATE_S = 0.4


def test_waiting_and_moving_are_told_apart(on_ranks: Callable[..., list[Any]]) -> None:
    def work(channel: Channel) -> list[TimeSpent]:
        channel.agree("here")
        channel.take_time()
        time.sleep(LATE_S * channel.rank)
        channel.agree("after work")
        waited = channel.take_time()
        channel.reduce(torch.ones(1_000_000), 0)
        return [waited, channel.take_time(), channel.take_time()]

    (early, moved, nothing), (late, *_) = on_ranks(2, work)
    assert early.waiting_s > 0.75 * LATE_S
    assert early.moving_s == 0
    assert late.waiting_s < early.waiting_s
    assert moved.moving_s > 0
    assert moved.waiting_s == 0
    assert nothing == TimeSpent()


def test_a_run_on_several_ranks_reports_both_every_round(fit_small: Callable[..., Any], tmp_path: Path) -> None:
    fit_small(tmp_path / "run", devices=2, accelerator="cpu")
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert len(rows) == 2
    for row in rows:
        spent = row["time/communication_s"], row["time/waiting_s"]
        assert min(spent) > 0
        assert sum(spent) < row["time/round_s"]


def test_one_process_has_nobody_to_wait_for(fit_small: Callable[..., Any], tmp_path: Path) -> None:
    fit_small(tmp_path / "run", rounds=1)
    (row,) = read_metrics(tmp_path / "run" / "metrics.csv")
    assert "time/waiting_s" not in row
