"""FedDistill: the distance to others' logits, what clients send, and what leave-one-out takes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import gathered
from mixed_trial import HELD, ONE_EPOCH, PAIRS, mixed_trial, offered_by, sent_by, watch_uploads, with_state
from peer_trial import Labels, Trial
from torch import Tensor

from flgen import FedDistill, LocalTraining, SmallCNN, Star
from flgen.errors import UsageError
from flgen.methods.feddistill import distillation_loss, without_own
from flgen.privacy.secure_aggregation import SecureAggregation

# Check 9.8 of the specification: client a has l^0 and l^1, client b has l^0.
A = {"logits": torch.tensor([[2.0, 0, 0], [0, 1, -1]]), "labels": torch.tensor([0, 1], dtype=torch.uint8)}
B = {"logits": torch.tensor([[0.0, 2, 0]]), "labels": torch.tensor([0], dtype=torch.uint8)}
G = torch.tensor([[1.0, 1, 0], [0, 1, -1], [0, 0, 0]], dtype=torch.float64)
KNOWN = torch.tensor([True, True, False])
O = torch.tensor([[1.0, 0, -1]], dtype=torch.float64)  # noqa: E741 - the specification's name


def three_classes(**options: Any) -> FedDistill:
    """Return a method set up for three classes."""
    method = FedDistill(**options)
    model = SmallCNN(image_size=4, channels=1, classes=3, width=1)
    Trial(method, model, data=Labels([2, 2, 2]), samples=(2, 2, 2))
    return method


def test_the_server_averages_over_the_clients_that_hold_a_class_and_keeps_what_it_had() -> None:
    method = three_classes()
    method.aggregate(1, gathered(A, B))
    assert method.g.tolist() == G.tolist()
    assert method.holders.tolist() == [2, 1, 0]
    assert offered_by(method, 2)["mean_logits"].tolist() == G[:2].tolist()
    method.aggregate(2, gathered(B))
    assert method.g.tolist() == [[0, 2, 0], [0, 1, -1], [0, 0, 0]]
    assert (method.holders.tolist(), method.made_in.tolist()) == ([1, 1, 0], [2, 1, 0])


@pytest.mark.parametrize(("distance", "expected"), [("mse", 0.666667), ("ce_softmax", 1.140650)])
def test_the_two_distances(distance: Any, expected: float) -> None:
    y = torch.tensor([0])
    assert float(torch.nn.functional.cross_entropy(O, y)) == pytest.approx(0.407606, abs=1e-5)
    assert float(distillation_loss(O, y, G, KNOWN, distance)) == pytest.approx(expected, abs=1e-5)


def test_no_distance_falls_below_zero_as_cross_entropy_with_raw_logits_does() -> None:
    g = torch.tensor([[-3.0, 1, -2]], dtype=torch.float64).expand(3, 3)
    raw = float(torch.nn.functional.cross_entropy(O, g[:1]))
    assert raw == pytest.approx(-4.630424, abs=1e-5)
    for distance in ("mse", "ce_softmax"):
        assert float(distillation_loss(O, torch.tensor([0]), g, KNOWN, distance)) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("distance", ["mse", "ce_softmax"])
def test_a_class_that_nobody_has_held_moves_nothing_and_stays_in_the_denominator(distance: Any) -> None:
    o = torch.cat([O, O]).requires_grad_()
    loss = distillation_loss(o, torch.tensor([2, 0]), G, KNOWN, distance)
    loss.backward()
    assert o.grad is not None
    assert float(o.grad[0].abs().max()) < 1e-12
    alone = O.clone().requires_grad_()
    distillation_loss(alone, torch.tensor([0]), G, KNOWN, distance).backward()
    assert alone.grad is not None
    assert torch.allclose(o.grad[1], alone.grad[0] / 2)
    if distance == "mse":
        assert float(loss.detach()) == pytest.approx(0.666667 / 2, abs=1e-5)


def test_leave_one_out_takes_a_clients_own_term_out_of_the_mean() -> None:
    l_a = torch.tensor([[2.0, 0, 0], [0, 1, -1], [0, 0, 0]], dtype=torch.float64)
    g, known = without_own(G, torch.tensor([2, 1, 0]), l_a, torch.tensor([True, True, False]))
    assert g[0].tolist() == [0, 2, 0]
    assert known.tolist() == [True, False, False]  # nobody else holds class 1, nobody at all class 2
    g, known = without_own(G, torch.tensor([2, 1, 0]), l_a, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(g, G)
    assert known.tolist() == [True, True, False]


def test_a_client_sends_the_mean_of_its_logits_over_all_steps_of_the_round() -> None:
    method = FedDistill(LocalTraining(epochs=2, batch_size=8))
    trial = mixed_trial(method)
    model: Any = method.residents.of(with_state(trial, 0)).module
    seen: list[tuple[Tensor, Tensor]] = []
    make_loss = method.local_loss

    def spy(at: Any, targets: Any, said: list[Any]) -> Any:
        loss = make_loss(at, targets, said)

        def watched(batch: Any, step: int) -> Tensor:
            with torch.no_grad():
                seen.append((model(batch[0]).double(), batch[1]))
            return loss(batch, step)

        return watched

    method.local_loss = spy  # type: ignore[method-assign]
    sent = sent_by(trial, 0, 1)
    logits, labels = torch.cat([o for o, _ in seen]), torch.cat([y for _, y in seen])
    assert len(labels) == 2 * 36
    assert sent["labels"].tolist() == [0, 1, 2]
    for row, c in zip(sent["logits"], (0, 1, 2), strict=True):
        assert torch.allclose(row.double(), logits[labels == c].mean(dim=0), atol=1e-5)
    assert set(sent) == {"logits", "labels"}


@pytest.mark.parametrize("distance", ["mse", "ce_softmax"])
def test_a_clients_loss_is_cross_entropy_and_from_round_2_on_the_distance_to_what_others_say(distance: Any) -> None:
    method = FedDistill(ONE_EPOCH, gamma=3.0, distance=distance)
    trial = mixed_trial(method)

    def losses(t: int) -> tuple[float, float]:
        client = with_state(trial, 1)
        at = method.residents.load(client)
        x, y = next(at.batches(client, client.data, "trial", 1, epochs=1))
        o = at.module(x)
        expected = torch.nn.functional.cross_entropy(o, y)
        if t > 1 and distance == "mse":
            expected = expected + 3 * (o - method.g[y]).square().mean()
        elif t > 1:
            p = torch.softmax(method.g[y], dim=1)
            expected = expected - 3 * (p * torch.log_softmax(o, dim=1)).sum(dim=1).mean()
        loss = method.local_loss(at, method.targets(client, offered_by(method, t)), [])
        return loss((x, y), 0).item(), expected.item()

    for t in (1, 2):
        value, expected = losses(t)
        assert value == pytest.approx(expected, rel=1e-5)
        trial.round(t)


def test_leave_one_out_knows_of_which_round_each_mean_is() -> None:
    """Cohorts of two of three: a mean of an earlier round, or one of a round that a client missed, stays right."""
    method = FedDistill(ONE_EPOCH, leave_one_out=True)
    held = ([0, 1, 2], [1, 2, 3], [2, 3, 4])
    trial = mixed_trial(method, held=held, clients_per_round=2)
    uploads = watch_uploads(method)
    cohorts = set()
    for t in range(1, 6):
        trial.round(t)
        cohorts.add(tuple(sorted(uploads[-1])))
        for k in range(3):
            g, known = method.targets(with_state(trial, k), offered_by(method, t + 1)) or pytest.fail("nothing sent")
            for c in range(5):
                rows = latest(uploads, c)
                others = [row for client, row in rows.items() if client != k]
                assert bool(known[c]) == bool(others)
                if others:
                    assert torch.allclose(g[c], torch.stack(others).mean(dim=0), atol=1e-5)
            assert not known[5:].any()
    assert len(cohorts) > 1


def latest(uploads: list[dict[int, dict[str, Tensor]]], c: int) -> dict[int, Tensor]:
    """Return the logits of a class that clients sent in the last round in which anybody did."""
    for sent in reversed(uploads):
        rows = {k: of_k["logits"][of_k["labels"] == c][0] for k, of_k in sent.items() if c in of_k["labels"].tolist()}
        if rows:
            return rows
    return {}


def test_leave_one_out_sends_who_is_behind_each_mean_and_clients_remember_what_they_said() -> None:
    method = FedDistill(ONE_EPOCH, leave_one_out=True)
    trial = mixed_trial(method)
    trial.round(1)
    second = trial.round(2).metrics
    assert second["comm/down_scalars/holders"] == second["comm/down_scalars/made_in"] == 3 * 10
    state = trial.state(0)
    assert state["sent_in"].tolist() == [2, 2, 2, 0, 0, 0, 0, 0, 0, 0]
    assert "logits" not in mixed_trial(FedDistill(ONE_EPOCH)).method.initial_state(trial.job.federation.clients[0])


def test_clients_are_tested_by_their_own_networks() -> None:
    method = FedDistill(ONE_EPOCH)
    trial = mixed_trial(method, clients_per_round=2)
    for t in (0, 1):  # one client has not taken part yet
        if t:
            trial.round(t)
        measured = trial.evaluate(t)
        for k in range(3):
            client = with_state(trial, k)
            at = method.residents.load(client)
            at.module.eval()
            ((x, y),) = client.test_data.in_order(10_000)
            with torch.no_grad():
                right = (at.module(at.data.standardize(x)).argmax(dim=1) == y).double().mean()
            assert measured[k]["test/accuracy_trained"] == pytest.approx(float(right))


def test_networks_of_two_kinds_say_the_same_of_a_class_once_they_learn_from_each_other() -> None:
    apart = {}
    for gamma in (0.0, 1.0):
        method = FedDistill(LocalTraining(epochs=3, batch_size=8), gamma=gamma)
        trial = mixed_trial(method, held=([0, 1, 2], [0, 1, 2], [0, 1, 2]))
        uploads = watch_uploads(method)
        for t in (1, 2, 3):
            trial.round(t)
        rows = torch.stack([sent["logits"] for sent in uploads[-1].values()])
        apart[gamma] = float((rows - rows.mean(dim=0)).square().mean())
    assert len(trial.state(0)["weights"]) != len(trial.state(1)["weights"])
    assert apart[1.0] < 0.5 * apart[0.0]


def test_traffic_is_the_formulas_once_every_class_has_been_seen() -> None:
    method = FedDistill(ONE_EPOCH)
    trial = mixed_trial(method)
    assert "comm/down_scalars/mean_logits" not in trial.round(1).metrics
    second, formula = trial.round(2).metrics, method.round_metrics(2)
    assert second["comm/up_scalars/logits"] == formula["comm/up_scalars_formula"] == 10 * PAIRS
    assert second["comm/down_scalars/mean_logits"] == formula["comm/down_scalars_formula"] == 3 * 10**2


def test_the_formula_gives_the_published_numbers() -> None:
    # Section 6: CIFAR-100, 20 clients, 900 pairs.
    method = FedDistill()
    method.C = 100
    assert method.published_scalars(20, 900) == (90_000, 200_000)


def test_as_published_a_client_with_less_than_a_batch_sends_nothing_and_the_round_goes_on() -> None:
    method = FedDistill(LocalTraining(batch_size=40), fidelity="reference")
    trial = mixed_trial(method)  # client 0 has 36 samples
    uploads = watch_uploads(method)
    trial.round(1)
    assert len(uploads[0][0]["labels"]) == 0
    assert method.pairs == sum(len(sent["labels"]) for sent in uploads[0].values()) > 0


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_sums_give_the_same_targets_under_secure_aggregation(leave_one_out: bool) -> None:
    star = Star(secure_aggregation=SecureAggregation(clip=64.0))
    plain = FedDistill(ONE_EPOCH, leave_one_out=leave_one_out)
    secure = FedDistill(ONE_EPOCH, leave_one_out=leave_one_out, topology=star)
    assert (plain.collection, secure.collection) == ("gather", "sum")
    said = []
    for method in (plain, secure):
        trial = mixed_trial(method, held=HELD[:2])
        trial.round(1)
        said.append(method.targets(with_state(trial, 0), offered_by(method, 2)))
    (g, known), (g_secure, known_secure) = (pair or pytest.fail("nothing sent") for pair in said)
    assert torch.equal(known, known_secure)
    assert known.nonzero().flatten().tolist() == ([2, 3, 4, 5] if leave_one_out else [0, 1, 2, 3, 4, 5])
    assert torch.allclose(g[known], g_secure[known], atol=1e-4)


def test_a_weight_below_0_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^--method\.gamma is -1: give [^\n]+$"):
        FedDistill(gamma=-1)
