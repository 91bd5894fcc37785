"""FedProto: what is pulled where, what clients send, how the server averages, and how a class is predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import gathered
from mixed_trial import HELD, ONE_EPOCH, PAIRS, mixed_trial, offered_by, sent_by, watch_uploads, with_state
from torch import Tensor

from flgen import FedProto, FedTGP, LocalTraining, SmallCNN, Star
from flgen.errors import UsageError
from flgen.federation.resident import TEST_BATCH
from flgen.methods.fedproto import nearest_prototype, prototype_loss
from flgen.privacy.secure_aggregation import SecureAggregation

# Check 9.9 of the specification.
F = torch.tensor([[1.0, 2], [0, 0], [3, 3]], dtype=torch.float64)
P_BAR = torch.tensor([[0.0, 0], [1, 1], [0, 0]], dtype=torch.float64)
KNOWN = torch.tensor([True, True, False])


def test_a_class_without_prototype_adds_nothing_and_stays_in_the_denominator() -> None:
    loss = prototype_loss(F, torch.tensor([0, 1, 2]), P_BAR, KNOWN)
    assert float(loss) == pytest.approx(7 / 6, abs=1e-9)
    assert 10 * float(loss) == pytest.approx(11.666667, abs=1e-5)


def test_features_of_a_class_without_prototype_get_no_gradient() -> None:
    f = F.clone().requires_grad_()
    prototype_loss(f, torch.tensor([0, 1, 2]), P_BAR, KNOWN).backward()
    assert f.grad is not None
    assert torch.allclose(f.grad, 2 / 6 * torch.tensor([[1.0, 2], [-1, -1], [0, 0]], dtype=torch.float64))


def test_the_nearest_prototype_is_predicted_and_never_a_class_that_has_none() -> None:
    assert nearest_prototype(F, P_BAR, KNOWN).tolist() == [1, 0, 1]
    assert nearest_prototype(F, P_BAR, torch.tensor([False, True, False])).tolist() == [1, 1, 1]


def test_the_nearest_of_prototypes_that_lie_close_together_and_far_from_zero_is_predicted() -> None:
    # The expanded square ||z||^2 + ||P||^2 - 2zP loses their distances in float32.
    draws = torch.Generator().manual_seed(0)
    P_bar = 1000 + torch.randn(40, 64, generator=draws)
    z = P_bar + 1e-2 * torch.randn(40, 64, generator=draws)
    P_near = torch.cat([P_bar, P_bar + 2e-2 * torch.randn(40, 64, generator=draws)])
    exact = (z.double().unsqueeze(1) - P_near.double()).square().sum(dim=2).argmin(dim=1)
    assert torch.equal(nearest_prototype(z, P_near, torch.ones(80, dtype=torch.bool)), exact)


def narrow_trial(method: FedProto) -> Any:
    """A trial whose features have two elements."""
    return mixed_trial(method, model=SmallCNN(image_size=8, width=4, feature_width=2))


@pytest.mark.parametrize(("weighting", "expected"), [("uniform", [2.0, 2.0]), ("samples", [2.5, 3.0])])
def test_the_server_averages_over_the_clients_that_hold_a_class(weighting: Any, expected: list[float]) -> None:
    method = FedProto(ONE_EPOCH, weighting=weighting)
    narrow_trial(method)

    def sent(rows: list[list[float]], labels: list[int], counts: list[int]) -> dict[str, Tensor]:
        about = {"prototypes": torch.tensor(rows), "labels": torch.tensor(labels, dtype=torch.uint8)}
        return {**about, "label_counts": torch.tensor(counts)} if weighting == "samples" else about

    method.aggregate(1, gathered(sent([[1, 0], [5, 6]], [4, 7], [10, 2]), sent([[3, 4]], [4], [30])))
    assert method.P_bar[4].tolist() == pytest.approx(expected)
    assert method.P_bar[7].tolist() == [5, 6]
    assert method.known.nonzero().flatten().tolist() == [4, 7]
    assert offered_by(method, 2)["global_prototypes"].shape == (2, 2)  # a class that nobody has ever held is not sent

    method.aggregate(2, gathered(sent([[8, 8]], [7], [1])))
    assert method.P_bar[7].tolist() == [8, 8]
    assert method.P_bar[4].tolist() == pytest.approx(expected)  # nobody held it in this round


def brute_means(trial: Any, client: int, weights: dict[str, Tensor]) -> dict[int, Tensor]:
    """Return the mean features of each class that a client holds by the network that has some weights."""
    found = trial.job.federation.clients[client]
    found.state = weights
    at = trial.method.residents.load(found)
    at.module.eval()
    ((x, y),) = found.data.in_order(10_000)
    with torch.no_grad():
        z = at.module.features(at.data.standardize(x)).double()
    return {c: z[y == c].mean(dim=0) for c in sorted(set(y.tolist()))}


def assert_equal_means(sent: dict[str, Tensor], expected: dict[int, Tensor]) -> None:
    assert sent["labels"].tolist() == list(expected)
    assert torch.allclose(sent["prototypes"].double(), torch.stack(list(expected.values())), atol=1e-5)


@pytest.mark.parametrize("client", [0, 1, 2])
def test_a_client_sends_the_class_means_of_its_trained_network(client: int) -> None:
    trial = mixed_trial(FedProto(ONE_EPOCH), samples=(12, 12, 50))  # the last has more than are tested at once
    assert trial.job.federation.clients[2].samples == 300 > TEST_BATCH
    sent = sent_by(trial, client, 1)
    trained = trial.job.federation.clients[client].state
    assert set(sent) == {"prototypes", "labels"}
    assert_equal_means(sent, brute_means(trial, client, trained))


def test_as_published_it_sends_the_means_of_the_features_that_passed_while_it_trained() -> None:
    method = FedProto(LocalTraining(epochs=2, batch_size=10), fidelity="reference")
    trial = mixed_trial(method)  # of its 36 samples a client trains on 30
    client = with_state(trial, 0)
    model: Any = method.residents.of(client).module
    features, passed = model.features, []

    def spy(x: Tensor) -> Tensor:
        z = features(x)
        if model.training:
            passed.append(z.detach().double())
        return z

    model.features = spy
    sent = sent_by(trial, 0, 1)
    labels = torch.cat([y for _ in range(2) for _, y in method.training_data(client).in_order(10)])
    z = torch.cat(passed)
    assert len(z) == len(labels) == 60
    assert_equal_means(sent, {c: z[labels == c].mean(dim=0) for c in (0, 1, 2)})
    trained = brute_means(trial, 0, trial.job.federation.clients[0].state)
    assert not torch.allclose(sent["prototypes"].double(), torch.stack(list(trained.values())), atol=1e-3)


def test_as_published_a_client_with_less_than_a_batch_sends_nothing_and_the_round_goes_on() -> None:
    method = FedProto(LocalTraining(batch_size=40), fidelity="reference")
    trial = mixed_trial(method)  # client 0 has 36 samples
    uploads = watch_uploads(method)
    trial.round(1)
    assert uploads[0][0]["prototypes"].shape == (0, 16)
    assert len(uploads[0][1]["prototypes"]) > 0
    assert method.pairs == sum(len(sent["labels"]) for sent in uploads[0].values())


def test_a_clients_loss_is_cross_entropy_and_from_round_2_on_the_distance_to_the_prototypes() -> None:
    method = FedProto(ONE_EPOCH, prototype_weight=3.0)
    trial = mixed_trial(method)
    client = with_state(trial, 1)
    at = method.residents.load(client)
    model: Any = at.module
    x, y = next(at.batches(client, client.data, "trial", 1, epochs=1))
    z = model.features(x)
    ce = torch.nn.functional.cross_entropy(model.head(z), y)
    assert method.local_loss(at, offered_by(method, 1), [])((x, y), 0).item() == pytest.approx(ce.item())

    trial.round(1)
    method.residents.load(with_state(trial, 1))
    z = model.features(x)
    expected = torch.nn.functional.cross_entropy(model.head(z), y) + 3 * (z - method.P_bar[y]).square().mean()
    assert method.local_loss(at, offered_by(method, 2), [])((x, y), 0).item() == pytest.approx(expected.item())


def test_the_prototypes_pull_the_features_of_a_client_towards_them() -> None:
    apart = {}
    for weight in (0.0, 1.0):
        method = FedProto(LocalTraining(epochs=3, batch_size=8), prototype_weight=weight)
        trial = mixed_trial(method)
        trial.round(1)
        targets = method.P_bar.clone()
        sent = sent_by(trial, 2, 2)
        apart[weight] = float((sent["prototypes"] - targets[sent["labels"].long()]).square().mean())
    assert apart[1.0] < 0.7 * apart[0.0]


def test_clients_are_tested_by_the_nearest_prototype_and_by_the_head_before_there_is_one() -> None:
    method = FedProto(LocalTraining(epochs=3, batch_size=8))
    trial = mixed_trial(method, clients_per_round=2)

    def accuracy(client: Any, predict: Any) -> float:
        at = method.residents.load(client)
        at.module.eval()
        ((x, y),) = client.test_data.in_order(10_000)
        with torch.no_grad():
            return float((predict(at.module, at.data.standardize(x)) == y).double().mean())

    def by_head(model: Any, x: Tensor) -> Tensor:
        return model(x).argmax(dim=1)

    def by_prototype(model: Any, x: Tensor) -> Tensor:
        distances = (model.features(x).unsqueeze(1) - method.P_bar[method.known]).square().mean(dim=2)
        return method.known.nonzero().squeeze(1)[distances.argmin(dim=1)]

    for t, predict in ((0, by_head), (1, by_prototype)):  # one client has not taken part yet
        if t:
            trial.round(t)
        measured = trial.evaluate(t)
        for client in trial.job.federation.clients:
            expected = accuracy(with_state(trial, client.id), predict)
            assert measured[client.id]["test/accuracy_trained"] == pytest.approx(expected)
    heads = [accuracy(with_state(trial, k), by_head) for k in range(3)]
    assert heads != [measured[k]["test/accuracy_trained"] for k in range(3)]


def test_networks_of_two_kinds_learn_from_common_prototypes() -> None:
    method = FedProto(LocalTraining(epochs=4, batch_size=8), prototype_weight=1.0)
    trial = mixed_trial(method, samples=20)
    first = trial.evaluate(0)
    for t in (1, 2, 3):
        trial.round(t)
    last = trial.evaluate(3)
    assert len(trial.state(0)["weights"]) != len(trial.state(1)["weights"])
    assert all(last[k]["test/accuracy_trained"] > first[k]["test/accuracy_trained"] + 0.3 for k in range(3))


def test_traffic_is_the_formulas_once_every_class_has_been_seen() -> None:
    method = FedProto(ONE_EPOCH)
    trial = mixed_trial(method)
    first, formula = trial.round(1).metrics, method.round_metrics(1)
    assert first["comm/up_scalars/prototypes"] == formula["comm/up_scalars_formula"] == 16 * PAIRS
    assert "comm/down_scalars/global_prototypes" not in first
    second, formula = trial.round(2).metrics, method.round_metrics(2)
    assert second["comm/up_scalars/prototypes"] == formula["comm/up_scalars_formula"]
    assert second["comm/down_scalars/global_prototypes"] == formula["comm/down_scalars_formula"] == 3 * 16 * 10


def test_the_formula_gives_the_published_numbers() -> None:
    # Section 6: CIFAR-100, 20 clients, 900 pairs, features 512 wide.
    for method in (FedProto(), FedTGP()):
        method.d, method.C = 512, 100
        assert method.published_scalars(20, 900) == (460_800, 1_024_000)


def test_classes_that_nobody_holds_are_not_sent() -> None:
    method = FedProto(ONE_EPOCH)
    trial = mixed_trial(method, held=HELD[:2])
    trial.round(1)
    second = trial.round(2).metrics
    assert second["comm/down_scalars/global_prototypes"] == 2 * 16 * 6
    assert offered_by(method, 3)["held"].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_counts_are_sent_only_where_means_are_weighted_by_them() -> None:
    method = FedProto(ONE_EPOCH, weighting="samples")
    trial = mixed_trial(method, samples=(10, 30, 12))
    uploads = watch_uploads(method)
    metrics = trial.round(1).metrics
    assert metrics["comm/up_scalars/label_counts"] == PAIRS
    of_0, of_1 = (sent["prototypes"][sent["labels"] == 2][0].double() for sent in (uploads[0][0], uploads[0][1]))
    assert torch.allclose(method.P_bar[2].double(), 0.25 * of_0 + 0.75 * of_1, atol=1e-6)


def test_sums_give_the_same_prototypes_under_secure_aggregation() -> None:
    plain = FedProto(ONE_EPOCH)
    secure = FedProto(ONE_EPOCH, topology=Star(secure_aggregation=SecureAggregation(clip=64.0)))
    assert (plain.collection, secure.collection) == ("gather", "sum")
    for method in (plain, secure):
        mixed_trial(method, held=HELD[:2]).round(1)
    assert torch.allclose(plain.P_bar, secure.P_bar, atol=1e-4)
    assert torch.equal(plain.known, secure.known)
    assert plain.pairs == secure.pairs == 7


def test_weighting_by_samples_refuses_secure_aggregation_and_says_what_does_not() -> None:
    method = FedProto(weighting="samples", topology=Star(secure_aggregation=SecureAggregation()))
    with pytest.raises(UsageError, match=r"FedProto cannot run .*weighting samples .* uniform needs their sum alone"):
        mixed_trial(method)


def test_a_weight_below_0_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^--method\.prototype_weight is -1: give [^\n]+$"):
        FedProto(prototype_weight=-1)
