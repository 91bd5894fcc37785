"""FedAvg of a small CNN: what the framework adds to the bare loop, on one rank and on two."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch
from cnn_workload import BATCH_SIZE, CLIENTS, ProcessorTimes, Setting, Turns, fit, round_times, side_by_side
from fedavg_workload import COHORT, BareLoop, make_method
from report import Report

pytestmark = pytest.mark.benchmark

TWO_RANKS = Setting(samples_per_client=100, cohort=COHORT, rounds=4)


def take_turns(setting: Setting, run_dir: Path) -> Turns:
    """Run flgen and the bare loop in turns, and make sure that they compute the same."""
    data = setting.data()
    method, bare = make_method(), BareLoop(setting, data)
    turns = Turns(bare, lambda: bare.meet(method.w_t))
    fit(method, setting, data, run_dir, callbacks=[turns])
    assert turns.deviation < 1e-6
    return turns


def ratio(turns: Turns, clock: str) -> float:
    return median(getattr(ours, clock) / getattr(bare, clock) for ours, bare in turns.times)


def test_round_time_over_the_bare_loop(report: Report, tmp_path: Path) -> None:
    setting = Setting(samples_per_client=100, cohort=COHORT, rounds=14)
    turns = take_turns(setting, tmp_path / "run")
    steps = COHORT * setting.samples_per_client // BATCH_SIZE
    report.add(
        "FedAvg round over the bare loop",
        ratio(turns, "cpu"),
        1.05,
        "x",
        f"SmallCNN at 28x28, {CLIENTS} clients, {COHORT} per round, batch {BATCH_SIZE}, {steps} local steps "
        f"per round, 1 rank, 1 thread; processor time, median of {len(turns.times)} rounds in turns; by the wall "
        f"clock {ratio(turns, 'wall'):.2f}; bare round {median(bare.wall for _, bare in turns.times):.2f} s",
    )


def test_fixed_cost_of_one_more_client(report: Report, tmp_path: Path) -> None:
    few = take_turns(Setting(samples_per_client=1, cohort=10, rounds=32), tmp_path / "few")
    many = take_turns(Setting(samples_per_client=1, cohort=90, rounds=12), tmp_path / "many")

    def cost_ms(clock: str) -> float:
        extra = [median(getattr(a, clock) - getattr(b, clock) for a, b in turns.times) for turns in (few, many)]
        return (extra[1] - extra[0]) / (90 - 10) * 1e3

    report.add(
        "FedAvg, one more client in a round",
        cost_ms("cpu"),
        2,
        "ms",
        "clients of one sample, one local step: flgen's round minus the bare loop's, 90 clients against 10; "
        f"processor time; by the wall clock {cost_ms('wall'):.2f} ms",
    )


def test_two_ranks_over_one(report: Report, tmp_path: Path) -> None:
    data = TWO_RANKS.data()
    wall: dict[int, list[float]] = {1: [], 2: []}
    processor: dict[int, list[float]] = {1: [], 2: []}
    weights = {}
    for turn in range(3):
        for ranks in (1, 2):
            folder = tmp_path / f"{turn}-{ranks}"
            folder.mkdir()
            method, processor_times = make_method(), ProcessorTimes(folder)
            fit(method, TWO_RANKS, data, folder / "run", callbacks=[processor_times], devices=ranks)
            wall[ranks] += round_times(folder / "run")
            processor[ranks] += processor_times.read()[1:]
            weights[ranks] = method.w_t
    assert torch.equal(weights[1], weights[2])

    alone, halves = side_by_side(lambda: BareLoop(TWO_RANKS, data), TWO_RANKS.rounds)
    report.add(
        "FedAvg round, 2 ranks over 1",
        median(wall[2]) / median(wall[1]),
        0.60,
        "x",
        f"as above; wall clock, medians of {len(wall[1])} rounds each, fits of 1 and 2 ranks in turns, same bits; by "
        f"processor time of the busier rank {median(processor[2]) / median(processor[1]):.2f}; two bare loops side by "
        f"side, each with half the cohort and without communication, take {halves / alone:.2f} of one",
    )
