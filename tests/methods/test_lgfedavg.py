"""LG-FedAvg: heads are averaged by numbers of samples and taken by participants; all else stays with the clients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import LightningModule
from mixed_trial import ONE_EPOCH, mixed_trial, offered_by, two_networks, with_state
from peer_trial import ONE_STEP, Trial
from small_methods import small_method
from torch import Tensor

from flgen import LGFedAvg, LocalTraining, SecureAggregation, Star
from flgen.client_turns import state_of

P_H = 16 * 10 + 10


class PulledHead(LightningModule):
    """A network whose head jumps to the target of its client in one step.

    Args:
        targets: The head that each client wants, by client.
    """

    def __init__(self, targets: list[list[float]]) -> None:
        super().__init__()
        self.extractor = torch.nn.Linear(16, 1)
        self.w = torch.nn.Parameter(torch.zeros(2, 1))
        self.targets = torch.tensor(targets)

    def features(self, x: Tensor) -> Tensor:
        z: Tensor = self.extractor(x.flatten(1))
        return z

    def head(self, z: Tensor) -> Tensor:
        return z @ self.w.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0.5 * (self.w.flatten() - self.targets[batch[1][0]]).square().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("secure", [False, True])
def test_heads_are_averaged_by_the_numbers_of_samples(secure: bool) -> None:
    # Check 9.13: (1, 2) with 10 samples, (3, -2) with 30.
    star = Star(secure_aggregation=SecureAggregation() if secure else None)
    method = LGFedAvg(ONE_STEP, init="shared", topology=star)
    trial = Trial(method, PulledHead([[1, 2], [3, -2]]), samples=(10, 30))
    trial.round(1)
    assert method.w_bar.tolist() == pytest.approx([2.5, -1.0], abs=1e-5)
    assert offered_by(method, 2)["head"].tolist() == method.w_bar.tolist()


def test_participants_begin_with_the_common_head_and_nobody_else_is_touched() -> None:
    # Section 8, item 15: the published code overwrites the heads of everybody.
    method = LGFedAvg(ONE_EPOCH)
    trial = mixed_trial(method, model=two_networks(learning_rate=0.0), clients_per_round=2)
    clients = trial.job.federation.clients
    for t in (1, 2):
        common = method.w_bar.clone()
        before = [state_of(method, trial.store, client)["weights"] for client in clients]
        trial.round(t)
        present = {client.id for client in trial.job.federation.cohort(t)}
        for client, old in zip(clients, before, strict=True):
            new = state_of(method, trial.store, client)["weights"]
            assert torch.equal(new[:-P_H], old[:-P_H])
            assert torch.equal(new[-P_H:], common if client.id in present else old[-P_H:])


@pytest.mark.parametrize("name", ["LGFedAvg", "FedGH", "FedGenHeads"])
def test_clients_are_tested_as_they_trained_and_with_the_head_that_the_server_sends_next(name: str) -> None:
    method = small_method(name, training=LocalTraining(epochs=5, batch_size=8))
    trial = mixed_trial(method, clients_per_round=2)
    for t in (1, 2, 3):
        trial.round(t)
    measured = trial.evaluate(3)
    W, b = method.w_bar[: 16 * 10].view(10, 16), method.w_bar[16 * 10 :]
    differ = []
    for k, client in enumerate(trial.job.federation.clients):
        model: Any = method.residents.load(with_state(trial, k)).module
        model.eval()
        ((x, y),) = client.test_data.in_order(10_000)
        with torch.no_grad():
            z = model.features(trial.job.data.standardize(x))
            answers = model.head(z), z @ W.T + b
        trained, aggregated = (float((logits.argmax(dim=1) == y).double().mean()) for logits in answers)
        assert measured[k]["test/accuracy_trained"] == pytest.approx(trained)
        assert measured[k]["test/accuracy_aggregated"] == pytest.approx(aggregated)
        differ.append(trained != aggregated)
        losses = [torch.nn.functional.cross_entropy(logits, y).item() for logits in answers]
        assert measured[k]["test/loss_trained"] == pytest.approx(losses[0], rel=1e-4)
        assert measured[k]["test/loss_aggregated"] == pytest.approx(losses[1], rel=1e-4)
    assert any(differ)


def test_traffic_is_what_the_formula_says() -> None:
    method = LGFedAvg(ONE_EPOCH)
    counted = mixed_trial(method, clients_per_round=2).round(1).metrics
    formula = method.round_metrics(1)
    assert counted["comm/up_scalars/head"] == formula["comm/up_scalars_formula"] == 2 * P_H
    assert counted["comm/down_scalars/head"] == formula["comm/down_scalars_formula"] == 2 * P_H


def test_the_formula_gives_the_published_numbers() -> None:
    # Section 6: CIFAR-100, 20 clients, features 512 wide.
    method = LGFedAvg()
    method.w_bar = torch.zeros(512 * 100 + 100)
    assert method.published_scalars(20, 900) == (1_026_000, 1_026_000)


def test_clients_with_different_networks_learn() -> None:
    trial = mixed_trial(LGFedAvg(LocalTraining(epochs=5, batch_size=8)))
    before = trial.evaluate(0)  # of clients that never took part
    for t in range(1, 6):
        trial.round(t)
    after = trial.evaluate(5)
    for k in range(3):
        for point in ("trained", "aggregated"):
            assert before[k][f"test/accuracy_{point}"] < 0.5 < 0.7 < after[k][f"test/accuracy_{point}"]
