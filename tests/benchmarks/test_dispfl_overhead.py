"""DisPFL of a small CNN: what the framework adds to the bare loop, on one rank and on two."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch
from cnn_workload import BATCH_SIZE, ProcessorTimes, Setting, Turns, fit, round_times, side_by_side
from dispfl_workload import DEGREE, SPARSITY, BareLoop, make_method
from report import Report

from flgen import fit_loop
from flgen.experiment.checkpoints import find_checkpoint
from flgen.federation.state_store import ClientStateStore

pytestmark = pytest.mark.benchmark

IN_TURNS = Setting(samples_per_client=100, rounds=4)
TWO_RANKS = Setting(samples_per_client=100, rounds=3)


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[ClientStateStore]:
    """The stores of the fits that this process runs, so that clients' states can be read without a checkpoint."""
    opened: list[ClientStateStore] = []

    class NotedStore(ClientStateStore):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            opened.append(self)

    monkeypatch.setattr(fit_loop, "ClientStateStore", NotedStore)
    return opened


def test_round_time_over_the_bare_loop(report: Report, tmp_path: Path, stores: list[ClientStateStore]) -> None:
    data = IN_TURNS.data()
    bare = BareLoop(IN_TURNS, data)
    turns = Turns(bare, lambda: bare.meet(stores[0].state_dict()))
    fit(make_method(), IN_TURNS, data, tmp_path / "run", callbacks=[turns])
    assert turns.deviation < 1e-5

    def ratio(clock: str) -> float:
        return median(getattr(ours, clock) / getattr(bare, clock) for ours, bare in turns.times)

    added_ms = median(ours.cpu - bare.cpu for ours, bare in turns.times) / IN_TURNS.clients * 1e3
    report.add(
        "DisPFL round over the bare loop",
        ratio("cpu"),
        1.05,
        "x",
        f"SmallCNN at 28x28, {IN_TURNS.clients} clients, all in every round, of {IN_TURNS.samples_per_client} samples; "
        f"batch {BATCH_SIZE}, 1 epoch, RandomGraph of degree {DEGREE}, density {SPARSITY.density}, random regrow, "
        "1 rank, 1 thread; the budget is that of FedAvg's round; the bare loop mixes, trains, prunes and regrows to "
        "the same weights, but sends nothing; processor time, median of "
        f"{len(turns.times)} rounds in turns; by the wall clock {ratio('wall'):.2f}; bare round "
        f"{median(bare.wall for _, bare in turns.times):.2f} s; added per client {added_ms:.1f} ms: coding and "
        "decoding its message, copies of its state, masking its weights after steps, and what FedAvg's steps have too",
    )


def test_two_ranks_over_one(report: Report, tmp_path: Path) -> None:
    data = TWO_RANKS.data()
    wall: dict[int, list[float]] = {}
    processor: dict[int, list[float]] = {}
    states = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        processor_times = ProcessorTimes(folder)
        fit(make_method(), TWO_RANKS, data, folder / "run", callbacks=[processor_times], devices=ranks)
        wall[ranks] = round_times(folder / "run")
        processor[ranks] = processor_times.read()[1:]
        states[ranks] = find_checkpoint(folder / "run" / "checkpoints" / "last").client_states()
    assert sorted(states[1]) == sorted(states[2]) == list(range(TWO_RANKS.clients))
    for client, state in states[1].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, states[2][client][name]), (client, name)

    alone, halves = side_by_side(lambda: BareLoop(TWO_RANKS, data), rounds=1)
    report.add(
        "DisPFL round, 2 ranks over 1",
        median(wall[2]) / median(wall[1]),
        0.60,
        "x",
        f"as above; wall clock, medians of {len(wall[1])} rounds each, a fit of 1 rank, then one of 2, same bits; by "
        f"processor time of the busier rank {median(processor[2]) / median(processor[1]):.2f}; two bare loops side by "
        f"side, each with half the clients and without communication, take {halves / alone:.2f} of one",
    )
