"""Local by hand: every client alone, and D-PSGD on a graph without edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Pull, Remembering, Trial, row

from flgen import DPSGD, Digits, Local, LocalTraining, Shards, SmallCNN
from flgen.topology.peers import NoEdges


def test_every_client_takes_all_its_steps_at_the_rate_of_the_round() -> None:
    training = LocalTraining(epochs=2, batch_size=2, learning_rate_decay=0.5)
    trial = Trial(Local(training), Pull([0], [[1], [-10]]), (3, 1))
    trial.round(1)  # 2 epochs of 2 batches, 2 epochs of 1, at 0.1
    assert torch.allclose(trial.state(0)["weights"], row(1 - 0.9**4))
    assert torch.allclose(trial.state(1)["weights"], row(-10 * (1 - 0.9**2)))
    trial.round(2)  # at 0.05
    assert torch.allclose(trial.state(0)["weights"], row(1 - 0.9**4 * 0.95**4))
    assert torch.allclose(trial.state(1)["weights"], row(-10 * (1 - 0.9**2 * 0.95**2)))


def test_nothing_is_sent_and_the_model_is_tested_after_training_only() -> None:
    outcome = Trial(Local(ONE_STEP), Pull([0], [[1], [2]])).round(1)
    assert [(row.messages, row.bytes, row.wire_bytes) for row in outcome.ledger] == [(0, 0, 0)]
    for name in ("bytes", "max_sent_bytes", "max_received_bytes", "busiest_node_bytes", "wire_bytes"):
        assert outcome.metrics[f"comm/{name}"] == 0
    assert outcome.metrics["test/accuracy_trained"] == pytest.approx((0.9**2 + 1.8**2) / 2)
    assert "test/accuracy_aggregated" not in outcome.metrics


def test_one_client_can_be_alone() -> None:
    trial = Trial(Local(ONE_STEP), Pull([0], [[1]]), (1,))
    trial.round(1)
    assert torch.allclose(trial.state(0)["weights"], row(0.1))


def test_everybody_keeps_buffers_of_its_own() -> None:
    trial = Trial(Local(ONE_STEP), Remembering([0], [[1], [2], [3]]), (1, 1, 1))
    for t in (1, 2):
        trial.round(t)
    assert [float(trial.state(k)["buffers"]) for k in range(3)] == [2, 4, 6]
    assert [int(trial.state(k)["counters"]) for k in range(3)] == [2, 2, 2]


def test_dpsgd_without_edges_is_local_bit_for_bit() -> None:
    training = LocalTraining(epochs=2, batch_size=128, learning_rate_decay=0.9, clip_norm=1.0)

    def states(method: Any) -> list[dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = SmallCNN(image_size=8, width=2)
        model.network.insert(1, torch.nn.BatchNorm2d(2))
        trial = Trial(method, model, data=Digits(), partition=Shards(clients=3))
        for t in (1, 2):
            trial.round(t)
        return [trial.state(k) for k in range(3)]

    alone, without_edges = states(Local(training)), states(DPSGD(training, topology=NoEdges()))
    for ours, theirs in zip(alone, without_edges, strict=True):
        assert ours.keys() == theirs.keys() == {"weights", "buffers", "counters"}
        for name in ours:
            assert torch.equal(ours[name], theirs[name])
    assert not torch.equal(alone[0]["weights"], alone[1]["weights"])
