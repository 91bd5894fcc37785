"""D-PSGD by hand: the uniform mean over a known graph, then local steps from it."""

from __future__ import annotations

import networkx
import pytest
import torch
from peer_trial import ONE_STEP, Pull, Remembering, Trial, row

from flgen import DPSGD, FixedGraph, FullyConnected, RandomGraph


def known_graph() -> FixedGraph:
    """Client 0 reads from 1 and 2, client 1 from 0, client 2 from nobody."""
    return FixedGraph(networkx.DiGraph([(1, 0), (2, 0), (0, 1)]))


def test_two_rounds_on_a_known_graph() -> None:
    model = Pull([0, 0], [[1, 2], [-1, 0], [5, 5]])
    states = {0: {"weights": row(3, 0)}, 1: {"weights": row(0, 6)}, 2: {"weights": row(6, 3)}}
    trial = Trial(DPSGD(ONE_STEP, topology=known_graph()), model, (1, 5, 2), states=states)

    trial.round(1)  # from the means [3, 3], [1.5, 3], [6, 3], whatever the numbers of samples
    assert torch.allclose(trial.state(0)["weights"], row(2.8, 2.9))
    assert torch.allclose(trial.state(1)["weights"], row(1.25, 2.7))
    assert torch.allclose(trial.state(2)["weights"], row(5.9, 3.2))

    trial.round(2)  # from the means [9.95, 8.8] / 3, [2.025, 2.8], [5.9, 3.2]
    assert torch.allclose(trial.state(0)["weights"], row(3.085, 2.84))
    assert torch.allclose(trial.state(1)["weights"], row(1.7225, 2.52))
    assert torch.allclose(trial.state(2)["weights"], row(5.81, 3.38))


def test_clients_are_tested_after_mixing_and_after_training() -> None:
    model = Pull([0], [[1], [2], [5]])
    states = {0: {"weights": row(3)}, 1: {"weights": row(0)}, 2: {"weights": row(6)}}
    outcome = Trial(DPSGD(ONE_STEP, topology=known_graph()), model, (1, 1, 1), states=states).round(1)
    squared = {0: 4.0, 1: 0.25, 2: 1.0}  # of the distances of the means 3, 1.5 and 6; a step leaves 0.81 of it
    for k, from_mean in squared.items():
        assert outcome.clients[k]["test/accuracy_aggregated"] == pytest.approx(from_mean)
        assert outcome.clients[k]["test/accuracy_trained"] == pytest.approx(0.81 * from_mean)
    assert outcome.metrics["test/accuracy_aggregated"] == pytest.approx(1.75)


def test_nobody_is_tested_in_a_round_that_is_not_evaluated() -> None:
    outcome = Trial(DPSGD(ONE_STEP, topology=FullyConnected()), Pull([0], [[1], [2]])).round(1, evaluated=False)
    assert outcome.clients.keys() == {0, 1}
    assert not [name for name in outcome.metrics if name.startswith("test/")]


def test_on_a_regular_graph_mixing_alone_keeps_the_mean_of_all_and_brings_them_together() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    model = Pull([0.0] * 3, [[0.0] * 3] * 6, learning_rate=0.0)
    method = DPSGD(ONE_STEP, topology=RandomGraph(degree=2, directed=False))
    trial = Trial(method, model, [1] * 6, states={k: {"weights": x[k]} for k in range(6)})
    spread = float(x.std(0).max())
    for t in range(1, 6):
        trial.round(t)
        now = torch.stack([trial.state(k)["weights"] for k in range(6)])
        assert torch.allclose(now.mean(0), x.mean(0), atol=1e-6)
        assert float(now.std(0).max()) < spread
        spread = float(now.std(0).max())
    assert spread < 0.2 * float(x.std(0).max())


def test_buffers_are_averaged_and_counters_are_everyones_own() -> None:
    states = {
        0: {"weights": row(0), "buffers": row(4), "counters": torch.tensor([10])},
        1: {"weights": row(0), "buffers": row(8), "counters": torch.tensor([20])},
    }
    trial = Trial(DPSGD(ONE_STEP, topology=FullyConnected()), Remembering([0], [[1], [2]]), states=states)
    trial.round(1)
    assert [float(trial.state(k)["buffers"]) for k in (0, 1)] == [6 + 1, 6 + 2]
    assert [int(trial.state(k)["counters"]) for k in (0, 1)] == [11, 21]
