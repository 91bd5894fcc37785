"""FedGH: what clients send, how the server learns the common head of it, and who takes the head (fedktl.md, 5.3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import LightningModule
from mixed_trial import HELD, ONE_EPOCH, PAIRS, mixed_trial, sent_by, two_kinds, two_networks, watch_uploads
from torch import Tensor

from flgen import FedGH, LocalTraining, SecureAggregation, Star
from flgen.client_turns import state_of
from flgen.errors import UsageError
from flgen.methods.fedgh import train_head
from flgen.models.feature_generator import FlatHead

P_H = 16 * 10 + 10


class TwoClasses(LightningModule):
    """A network of which the head matters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = torch.nn.Linear(3, 2)
        self.head = torch.nn.Linear(2, 2)


def head_of_two_classes() -> FlatHead:
    return FlatHead(TwoClasses(), ["head.weight", "head.bias"])


def weights(trial: Any, client: int) -> Tensor:
    return state_of(trial.method, trial.store, trial.job.federation.clients[client])["weights"]


def test_one_step_on_one_class_mean_is_the_one_of_the_specification() -> None:
    # Check 9.13: zero head, P = (1, 2), class 0, learning rate 0.01.
    zero = torch.zeros(6, dtype=torch.float64)
    w, loss = train_head(
        head_of_two_classes(),
        zero,
        torch.tensor([[1.0, 2.0]], dtype=torch.float64),
        torch.tensor([0]),
        learning_rate=0.01,
        batch_size=10,
        epochs=1,
        draws=torch.Generator(),
    )
    assert loss == pytest.approx(0.693147, abs=1e-6)
    assert w.tolist() == pytest.approx([0.005, 0.01, -0.005, -0.01, 0.005, -0.005], abs=1e-9)
    assert not zero.any()  # what it begins with stays as it is


def test_every_epoch_takes_all_class_means_in_batches_and_in_an_order_of_its_own() -> None:
    P, c = torch.arange(20.0).view(10, 2), torch.arange(10) % 2
    head, seen = head_of_two_classes(), []

    def watched(w: Tensor, z: Tensor) -> Tensor:
        seen.append(z[:, 0])
        logits: Tensor = head(w, z)
        return logits

    def train(seed: int) -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        return train_head(watched, torch.zeros(6), P, c, learning_rate=0.01, batch_size=4, epochs=2, draws=draws)[0]

    trained = train(0)
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, P[:, 0])
    assert torch.equal(second.sort().values, P[:, 0])
    assert not torch.equal(first, second)
    assert torch.equal(train(0), trained)
    assert not torch.equal(train(1), trained)


def test_without_class_means_the_head_stays_as_it_is() -> None:
    w, none = torch.ones(6), torch.zeros(0, dtype=torch.int64)
    same, loss = train_head(
        head_of_two_classes(),
        w,
        torch.zeros(0, 2),
        none,
        learning_rate=0.01,
        batch_size=4,
        epochs=2,
        draws=torch.Generator(),
    )
    assert torch.equal(same, w)
    assert loss == 0


def test_clients_send_class_means_of_features_as_the_trained_network_sees_them_in_eval_mode() -> None:
    trial = mixed_trial(FedGH(ONE_EPOCH), model=two_kinds())
    for k, held in enumerate(HELD):
        sent = sent_by(trial, k, 1)
        assert set(sent) == {"prototypes", "labels"}
        assert sent["labels"].tolist() == sorted(held)  # nothing is said about other classes
        client = trial.job.federation.clients[k]
        at = trial.method.residents.load(client)  # with the state that the step has left
        ((x, y),) = client.data.in_order(1000)
        means = {}
        for mode in (False, True):
            at.module.train(mode)
            with torch.no_grad():
                z = at.module.features(trial.job.data.standardize(x)).double()
            means[mode] = torch.stack([z[y == c].mean(dim=0) for c in sorted(held)]).float()
        assert torch.allclose(sent["prototypes"], means[False], atol=1e-6)
        if k % 2 == 1:  # with BatchNorm, that is another thing than in training mode
            assert not torch.allclose(sent["prototypes"], means[True], atol=1e-3)


def test_the_server_trains_its_head_on_everybodys_class_means() -> None:
    method = FedGH(ONE_EPOCH, server_learning_rate=0.5, server_epochs=3)
    trial = mixed_trial(method)
    seen = watch_uploads(method)
    for t in (1, 2):  # in an order of the round
        w_t = method.w_bar.clone()
        trial.round(t)
        sent = [seen[-1][k] for k in range(3)]
        expected, loss = train_head(
            method.h.eval(),
            w_t,
            torch.cat([one["prototypes"] for one in sent]),
            torch.cat([one["labels"] for one in sent]).long(),
            learning_rate=0.5,
            batch_size=8,
            epochs=3,
            draws=trial.job.federation.streams.torch("class means", round=t),
        )
        assert torch.equal(method.w_bar, expected)
        assert not torch.equal(method.w_bar, w_t)
        assert method.round_metrics(t)["head/loss"] == loss > 0


def test_the_head_replaces_that_of_participants_and_of_nobody_else() -> None:
    # Section 8, item 15: the published code overwrites the heads of everybody.
    method = FedGH(ONE_EPOCH, server_learning_rate=0.5)
    trial = mixed_trial(method, model=two_networks(learning_rate=0.0), clients_per_round=2)
    for t in (1, 2):
        before = [weights(trial, k) for k in range(3)]
        common = method.w_bar.clone()
        trial.round(t)
        present = {client.id for client in trial.job.federation.cohort(t)}
        assert len(present) == 2
        for k in range(3):
            if k in present:
                assert torch.equal(weights(trial, k)[-P_H:], common)
                assert torch.equal(weights(trial, k)[:-P_H], before[k][:-P_H])
            else:
                assert torch.equal(weights(trial, k), before[k])


def test_traffic_is_what_the_formula_says() -> None:
    method = FedGH(ONE_EPOCH)
    trial = mixed_trial(method)
    for t in (1, 2):
        counted = trial.round(t).metrics
        formula = method.round_metrics(t)
        assert counted["comm/up_scalars/prototypes"] == formula["comm/up_scalars_formula"] == 16 * PAIRS
        assert counted["comm/down_scalars/head"] == formula["comm/down_scalars_formula"] == 3 * P_H


def test_the_formula_gives_the_published_numbers() -> None:
    # Section 6: CIFAR-100, 20 clients, 900 pairs, features 512 wide.
    method = FedGH()
    method.d, method.w_bar = 512, torch.zeros(512 * 100 + 100)
    assert method.published_scalars(20, 900) == (460_800, 1_026_000)


def test_a_class_that_nobody_holds_teaches_the_head_nothing() -> None:
    method = FedGH(ONE_EPOCH)
    trial = mixed_trial(method, held=([0, 1], [1, 2]))
    seen = watch_uploads(method)
    trial.round(1)
    assert [sent["labels"].tolist() for sent in seen[0].values()] == [[0, 1], [1, 2]]
    assert method.round_metrics(1)["comm/up_scalars_formula"] == 4 * 16


def test_under_secure_aggregation_the_server_sees_the_mean_of_each_class_over_its_holders() -> None:
    plain = FedGH(ONE_EPOCH)
    trial = mixed_trial(plain)
    seen = watch_uploads(plain)
    w_1 = plain.w_bar.clone()
    trial.round(1)
    rows = torch.cat([seen[0][k]["prototypes"] for k in range(3)]).double()
    labels = torch.cat([seen[0][k]["labels"] for k in range(3)])
    means = torch.stack([rows[labels == c].mean(dim=0) for c in range(10)]).float()

    hidden = FedGH(ONE_EPOCH, topology=Star(secure_aggregation=SecureAggregation(clip=16.0)))
    assert hidden.collection == "sum"
    metrics = mixed_trial(hidden).round(1).metrics
    assert metrics["privacy/clipped_fraction"] == 0
    assert metrics["comm/up_scalars/prototypes"] == 3 * 10 * 16  # whole tables
    assert hidden.round_metrics(1)["comm/up_scalars_formula"] == 16 * PAIRS
    expected, _ = train_head(
        plain.h.eval(),
        w_1,
        means,
        torch.arange(10),
        learning_rate=0.01,
        batch_size=8,
        epochs=1,
        draws=trial.job.federation.streams.torch("class means", round=1),
    )
    assert torch.allclose(hidden.w_bar, expected, atol=1e-5)
    assert not torch.allclose(hidden.w_bar, plain.w_bar, atol=1e-5)


def test_as_published_a_client_with_less_than_a_batch_has_nothing_to_say() -> None:
    method = FedGH(ONE_EPOCH, fidelity="reference")
    trial = mixed_trial(method, samples=[2, 12, 12])  # the first client has 6 samples, a batch is of 8
    seen = watch_uploads(method)
    trial.round(1)
    assert seen[0][0]["prototypes"].shape == (0, 16)
    assert method.round_metrics(1)["comm/up_scalars_formula"] == 16 * (len(HELD[1]) + len(HELD[2]))
    assert all(torch.isfinite(weights(trial, k)).all() for k in range(3))


def test_clients_with_different_networks_learn() -> None:
    trial = mixed_trial(FedGH(LocalTraining(epochs=5, batch_size=8), server_learning_rate=0.1))
    before = trial.evaluate(0)  # of clients that never took part
    for t in range(1, 7):
        trial.round(t)
    after = trial.evaluate(6)
    for k in range(3):
        for point in ("trained", "aggregated"):
            assert before[k][f"test/accuracy_{point}"] < 0.5 < 0.7 < after[k][f"test/accuracy_{point}"]


@pytest.mark.parametrize(("option", "value"), [("server_learning_rate", 0.0), ("server_epochs", 0)])
def test_a_number_out_of_its_range_is_one_line(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        FedGH(**{option: value})
