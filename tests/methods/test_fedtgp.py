"""FedTGP: the server's loss and margin, what its prototypes learn, and of which network clients speak."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mixed_trial import HELD, ONE_EPOCH, PAIRS, mixed_trial, offered_by, sent_by, watch_uploads, with_state
from torch import Tensor

from flgen import FedTGP, LocalTraining, Star
from flgen.errors import UsageError
from flgen.methods import fedtgp
from flgen.methods.class_vectors import ClassVectors
from flgen.methods.fedtgp import adaptive_margin, contrastive_loss
from flgen.privacy.secure_aggregation import SecureAggregation

# Check 9.12 of the specification.
P = torch.tensor([[0.0, 0], [3, 0]], dtype=torch.float64)
Y = torch.tensor([0, 1])
P_HAT = torch.tensor([[0.0, 1], [3, 4]], dtype=torch.float64)
BOTH = torch.tensor([True, True])


@pytest.mark.parametrize(("delta", "expected"), [(0.0, 0.607715), (2.0, 1.510779)])
def test_the_margin_makes_the_servers_loss_harder(delta: float, expected: float) -> None:
    assert float(contrastive_loss(P, Y, P_HAT, BOTH, delta)) == pytest.approx(expected, abs=1e-5)


def test_the_margin_is_the_widest_gap_to_the_nearest_other_class_and_bounded() -> None:
    means = torch.tensor([[0.0, 0], [3, 4], [0, 2]], dtype=torch.float64)
    everybody = torch.ones(3, dtype=torch.bool)
    assert adaptive_margin(means, everybody, 100) == pytest.approx(3.605551, abs=1e-5)
    assert adaptive_margin(means, everybody, 3) == 3
    # A class that nobody holds has a row of zeros, which is no mean.
    assert adaptive_margin(means, torch.tensor([False, True, True]), 100) == pytest.approx(13**0.5)
    assert adaptive_margin(means, torch.tensor([True, False, False]), 7) == 7


def test_a_prototype_that_is_met_exactly_has_a_finite_gradient() -> None:
    P_hat = torch.tensor([[0.0, 0], [3, 4]], dtype=torch.float64, requires_grad=True)
    contrastive_loss(P, Y, P_hat, BOTH, 1.0).backward()
    assert P_hat.grad is not None
    assert torch.isfinite(P_hat.grad).all()
    assert P_hat.grad[1].any()


def test_near_prototypes_far_from_zero_keep_their_distance() -> None:
    # The expanded square ||a||^2 + ||b||^2 - 2ab loses these in float32, or makes them negative.
    draws = torch.Generator().manual_seed(0)
    a = 1000 + torch.randn(40, 64, generator=draws)  # torch.cdist expands it from 26 rows on
    b = (a + 1e-2 * torch.randn(40, 64, generator=draws)).requires_grad_()
    y, known = torch.arange(40), torch.ones(40, dtype=torch.bool)
    loss = contrastive_loss(a, y, b, known, 0.0)
    exact = contrastive_loss(a.double(), y, b.double(), known, 0.0)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-3)
    loss.backward()
    assert b.grad is not None
    assert torch.isfinite(b.grad).all()

    near = torch.cat([a[:1] + 1e-2 * k for k in range(40)])  # each 0.01 sqrt(64) from the next
    assert adaptive_margin(near, known, 100) == pytest.approx(0.08, rel=1e-2)


def test_a_class_that_nobody_has_held_takes_no_part_in_the_servers_loss() -> None:
    P_hat = torch.cat([P_HAT, P[:1]]).requires_grad_()  # it lies on a prototype of class 0
    loss = contrastive_loss(P, Y, P_hat, torch.tensor([True, True, False]), 2.0)
    assert float(loss.detach()) == pytest.approx(1.510779, abs=1e-5)
    loss.backward()
    assert P_hat.grad is not None
    assert not P_hat.grad[2].any()


def received(method: FedTGP, rows: Tensor, labels: list[int]) -> ClassVectors:
    y = torch.tensor(labels)
    holders = torch.bincount(y, minlength=10)
    method.known |= holders > 0
    return ClassVectors(rows, y, torch.zeros(10, rows.shape[1]), holders, torch.ones(len(y)))


def test_one_step_of_the_server_is_sgd_at_the_clients_learning_rate_of_that_round() -> None:
    method = FedTGP(LocalTraining(batch_size=10, learning_rate_decay=0.5), server_epochs=1)
    mixed_trial(method)
    method.delta = 1.5
    rows = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    sent = received(method, rows, [0, 0, 3, 7])
    before = copy.deepcopy(method.G)
    loss = method.train_server(3, sent)

    expected = contrastive_loss(rows, sent.labels, before(torch.arange(10)), method.known, 1.5)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    rate = 0.1 * 0.5**2
    for after, parameter in zip(method.G.parameters(), before.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(after, parameter - rate * parameter.grad, atol=1e-7)


def test_the_server_goes_through_all_prototypes_in_batches_of_the_clients_size() -> None:
    method = FedTGP(LocalTraining(batch_size=8), server_epochs=3, server_learning_rate=0.02)
    mixed_trial(method)
    method.delta = 1.0
    sizes: list[int] = []
    network = method.G.forward
    sent = received(method, torch.randn(19, 16, generator=torch.Generator().manual_seed(0)), [*range(10), *range(9)])

    def counted(classes: Tensor) -> Tensor:
        sizes.append(len(classes))
        return network(classes)

    method.G.forward = counted  # type: ignore[method-assign]
    method.train_server(1, sent)
    assert sizes == [10] * 3 * 3  # 19 prototypes make 3 batches, in each of 3 epochs


def test_every_epoch_and_every_round_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    method = FedTGP(LocalTraining(batch_size=8), server_epochs=2)
    mixed_trial(method)
    method.delta = 1.0
    rows = torch.arange(19.0).unsqueeze(1).expand(19, 16).contiguous()
    sent, seen = received(method, rows, [*range(10), *range(9)]), []

    def watched(P: Tensor, *about: Any) -> Tensor:
        seen.extend(P[:, 0].tolist())
        return contrastive_loss(P, *about)

    monkeypatch.setattr(fedtgp, "contrastive_loss", watched)
    for t in (1, 2, 1):
        method.train_server(t, sent)
    orders = [seen[start : start + 19] for start in range(0, len(seen), 19)]
    assert all(sorted(order) == list(range(19)) for order in orders)
    assert len({tuple(order) for order in orders[:4]}) == 4
    assert orders[4:] == orders[:2]


def apart(method: FedTGP) -> ClassVectors:
    """Prototypes of five clients, whose classes lie around points of their own."""
    draws = torch.Generator().manual_seed(0)
    labels = [*range(10)] * 5
    centres = 3 * torch.randn(10, 16, generator=draws)
    return received(method, centres[labels] + 0.5 * torch.randn(50, 16, generator=draws), labels)


def test_what_it_learns_lies_nearest_to_the_prototypes_of_its_class_and_more_so_with_a_margin() -> None:
    separation = {}
    for delta in (0.0, 8.0):
        method = FedTGP(LocalTraining(batch_size=10), server_learning_rate=0.05)
        mixed_trial(method)
        vectors, method.delta = apart(method), delta
        losses = [method.train_server(t, vectors) for t in (1, 2)]
        assert losses[1] < losses[0]  # the second round goes on where the first one ended
        P_hat = method.G(torch.arange(10)).detach()
        distances = torch.cdist(vectors.rows, P_hat)
        assert torch.equal(distances.argmin(dim=1), vectors.labels)
        separation[delta] = float(torch.cdist(P_hat, P_hat).fill_diagonal_(float("inf")).min())
    assert separation[8.0] > separation[0.0] + 1


def test_a_round_sends_on_what_the_server_has_learnt_and_says_how_well() -> None:
    method = FedTGP(ONE_EPOCH, server_epochs=5)
    trial = mixed_trial(method)
    uploads = watch_uploads(method)
    trial.round(1)
    assert torch.equal(offered_by(method, 2)["global_prototypes"], method.G(torch.arange(10)))
    rows = torch.cat([sent["prototypes"] for sent in uploads[0].values()])
    labels = torch.cat([sent["labels"] for sent in uploads[0].values()]).long()
    means = torch.stack([rows[labels == c].mean(dim=0) for c in range(10)])
    noticed = method.round_metrics(1)
    assert noticed["prototypes/margin"] == pytest.approx(adaptive_margin(means, method.known, 100), rel=1e-5)
    after = contrastive_loss(rows, labels, method.P_bar, method.known, method.delta)
    assert noticed["prototypes/loss"] == pytest.approx(after.item(), rel=0.1)  # of the epoch that ended there


def test_the_first_prototypes_follow_from_the_runs_seed_alone() -> None:
    firsts = []
    for seed in (0, 1):
        method = FedTGP(ONE_EPOCH)
        trial = mixed_trial(method)
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        trial.job.set_up_method(method.fabric)
        assert torch.equal(torch.random.get_rng_state(), before)
        firsts.append(method.G(torch.arange(10)))
    assert torch.equal(*firsts)


def own_prototypes(trial: Any, client: int) -> Tensor:
    """The class means of a client's network as its state has it."""
    method = trial.method
    found = trial.job.federation.clients[client]
    means, n_k = method.prototypes(found, method.residents.load(found))
    held: Tensor = means[n_k > 0].float()
    return held


@pytest.mark.parametrize("fidelity", ["corrected", "reference"])
def test_clients_speak_of_the_network_that_they_trained_but_as_published_of_the_one_before(fidelity: Any) -> None:
    trial = mixed_trial(FedTGP(LocalTraining(epochs=2, batch_size=12), fidelity=fidelity))
    with_state(trial, 1)
    before = own_prototypes(trial, 1)
    sent = sent_by(trial, 1, 1)["prototypes"]
    after = own_prototypes(trial, 1)
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.equal(sent, after if fidelity == "corrected" else before)


def test_networks_of_two_kinds_learn_from_trained_prototypes() -> None:
    method = FedTGP(LocalTraining(epochs=4, batch_size=8), prototype_weight=0.1, server_epochs=50)
    trial = mixed_trial(method, samples=20)
    first = trial.evaluate(0)
    for t in (1, 2, 3):
        trial.round(t)
    last = trial.evaluate(3)
    assert len(trial.state(0)["weights"]) != len(trial.state(1)["weights"])
    assert all(last[k]["test/accuracy_trained"] > first[k]["test/accuracy_trained"] + 0.3 for k in range(3))


def test_traffic_is_the_formulas_once_every_class_has_been_seen() -> None:
    method = FedTGP(ONE_EPOCH, server_epochs=1)
    trial = mixed_trial(method)
    assert "comm/down_scalars/global_prototypes" not in trial.round(1).metrics
    second, formula = trial.round(2).metrics, method.round_metrics(2)
    assert second["comm/up_scalars/prototypes"] == formula["comm/up_scalars_formula"] == 16 * PAIRS
    assert second["comm/down_scalars/global_prototypes"] == formula["comm/down_scalars_formula"] == 3 * 16 * 10


def test_classes_that_nobody_holds_are_not_sent() -> None:
    method = FedTGP(ONE_EPOCH, server_epochs=1)
    trial = mixed_trial(method, held=HELD[:2])
    trial.round(1)
    download = offered_by(method, 2)
    assert download["held"].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert download["global_prototypes"].shape == (6, 16)


def test_under_secure_aggregation_the_server_learns_from_the_mean_of_each_class() -> None:
    plain = FedTGP(ONE_EPOCH, server_epochs=1)
    secure = FedTGP(ONE_EPOCH, server_epochs=1, topology=Star(secure_aggregation=SecureAggregation(clip=64.0)))
    learnt_from: list[ClassVectors] = []
    train_server = secure.train_server

    def spy(t: int, vectors: ClassVectors) -> float:
        learnt_from.append(vectors)
        return train_server(t, vectors)

    secure.train_server = spy  # type: ignore[method-assign]
    uploads = watch_uploads(plain)
    for method in (plain, secure):
        mixed_trial(method).round(1)
    assert secure.delta == pytest.approx(plain.delta, rel=1e-4)
    (vectors,) = learnt_from
    assert vectors.labels.tolist() == list(range(10))
    of_5 = [sent["prototypes"][sent["labels"] == 5] for sent in uploads[0].values()]
    assert torch.allclose(vectors.rows[5], torch.cat(of_5).mean(dim=0), atol=1e-5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("prototype_weight", -1), ("largest_margin", -1), ("server_epochs", 0), ("server_learning_rate", 0.0)],
)
def test_a_number_out_of_its_range_is_one_line(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        FedTGP(**{option: value})
