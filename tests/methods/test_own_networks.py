"""Methods whose clients keep networks of their own: heads, widths, what is refused, and the published order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import LightningModule
from mixed_trial import HELD, ONE_EPOCH, mixed_trial, two_networks
from torch import Tensor

from flgen import FML, Digits, FedAvg, FedDistill, LGFedAvg, LocalTraining, ModelGroup, SmallCNN, SmallMLP, SmallResNet
from flgen.client_turns import state_of
from flgen.data.client_data import TensorClientData
from flgen.data.image_set import ImageSet
from flgen.errors import UsageError
from flgen.methods.own_networks import FixedOrder, check_equal_heads, feature_width, head_parameters


class TwoLayerHead(SmallCNN):
    """A network with a head of two linear layers and a part that nobody uses."""

    def __init__(self, between: int = 12) -> None:
        super().__init__(image_size=8, width=4)
        self.first = torch.nn.Linear(16, between)
        self.second = torch.nn.Linear(between, 10)
        self.unused = torch.nn.Linear(3, 3)

    def head(self, z: Tensor) -> Tensor:
        logits: Tensor = self.second(torch.tanh(self.first(z)))
        return logits


@pytest.mark.parametrize(
    ("network", "d", "expected"),
    [
        (SmallCNN(image_size=8, width=4, feature_width=16), 16, ["network.10.weight", "network.10.bias"]),
        (SmallMLP(image_size=8, hidden=12), 12, ["linear.weight", "linear.bias"]),
        (SmallResNet(image_size=8, width=4), 8, ["linear.weight", "linear.bias"]),
        (TwoLayerHead(), 16, ["first.weight", "first.bias", "second.weight", "second.bias"]),
    ],
)
def test_the_head_is_what_logits_depend_on_given_the_features(
    network: LightningModule, d: int, expected: list[str]
) -> None:
    assert head_parameters(network, d) == expected
    assert network.training  # as it was before
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_head_of_a_resident_module_is_a_view_of_its_last_weights() -> None:
    method = LGFedAvg(ONE_EPOCH)
    trial = mixed_trial(method)
    for client in trial.job.federation.clients[:2]:
        at = method.residents.of(client)
        layer = at.module.network[-1]
        assert torch.equal(method.head(at), torch.cat([layer.weight.flatten(), layer.bias]))
        method.head(at).zero_()
        assert not layer.weight.any()
        assert not layer.bias.any()
        assert at.module.network[0].weight.any()


def test_features_of_different_widths_are_refused_in_one_line() -> None:
    group = ModelGroup([SmallCNN(image_size=8, width=4), SmallCNN(image_size=8, width=6)])
    assert feature_width(two_networks(), Digits(), "LGFedAvg") == 16
    with pytest.raises(UsageError) as refusal:
        LGFedAvg().prepare(group, Digits())
    assert str(refusal.value) == (
        "--model: LGFedAvg needs features of one width from every network, but they give 16, 24: make them alike "
        "(feature_width)"
    )


class OnlyLogits(LightningModule):
    """A classifier in one piece.

    Args:
        classes: Number of logits.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/accuracy", (self(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("method", [FML, FedDistill])
def test_a_method_that_looks_at_logits_alone_takes_networks_of_any_features_and_of_none(method: Any) -> None:
    torch.manual_seed(3)
    group = [SmallCNN(image_size=8, width=4), SmallCNN(image_size=8, width=6), OnlyLogits()]
    trial = mixed_trial(method(LocalTraining(epochs=4, batch_size=8)), model=ModelGroup(group))
    first = trial.evaluate(0)
    for t in (1, 2):
        trial.round(t)
    last = trial.evaluate(2)
    assert all(last[k]["test/accuracy_trained"] > first[k]["test/accuracy_trained"] for k in range(3))
    with pytest.raises(UsageError, match=r"^--model OnlyLogits must be a classifier .* returns shape \(2, 9\)$"):
        method().prepare(ModelGroup([SmallCNN(image_size=8), OnlyLogits(9)]), Digits())


def test_heads_of_different_shapes_are_refused_in_one_line_where_they_are_shared() -> None:
    group = ModelGroup([SmallCNN(image_size=8, width=4), TwoLayerHead()])
    with pytest.raises(UsageError, match=r"^--model: LGFedAvg shares the heads .* different shapes [^\n]+$"):
        LGFedAvg().prepare(group, Digits())
    with pytest.raises(UsageError, match="different shapes"):
        check_equal_heads(ModelGroup([TwoLayerHead(12), TwoLayerHead(13)]), 16, "LGFedAvg")
    check_equal_heads(ModelGroup([TwoLayerHead(12), TwoLayerHead(12)]), 16, "LGFedAvg")
    check_equal_heads(two_networks(), 16, "LGFedAvg")


def test_a_method_with_one_network_for_all_refuses_several_and_takes_a_list_of_one() -> None:
    with pytest.raises(UsageError) as refusal:
        FedAvg().own_model(two_networks())
    assert str(refusal.value) == (
        "--model is a group of 2 networks, but FedAvg needs the same one for every client: give one --model, or a "
        "--method whose clients keep their own (FedKTL, FedProto, Local)"
    )
    only = SmallCNN(image_size=8, width=4)
    assert FedAvg().own_model(ModelGroup([only])) is only
    assert FedAvg().own_model(only) is only
    group = two_networks()
    assert LGFedAvg().own_model(group) is group


def test_a_run_refuses_several_networks_before_its_first_round(fit_small: Any, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match=r"^--model is a group of 2 networks, but FedAvg needs the same one"):
        fit_small(tmp_path / "run", method="FedAvg", model=two_networks())


def test_fedavg_on_a_list_of_one_network_is_fedavg_on_that_network(fit_small: Any, tmp_path: Any) -> None:
    def metrics(name: str, model: Any) -> Any:
        fit_small(tmp_path / name, method="FedAvg", model=model, rounds=1, every=1)
        rows = [line.split(",") for line in (tmp_path / name / "metrics.csv").read_text().splitlines()]
        return {key: value for key, value in zip(*rows[:2], strict=True) if not key.startswith("time/")}

    def network() -> SmallCNN:
        torch.manual_seed(7)
        return SmallCNN(image_size=8, width=4)

    alone = metrics("alone", network())
    assert metrics("list", ModelGroup([network()])) == alone
    assert "test/accuracy" in alone


def initial(method: LGFedAvg, seed: int = 0) -> list[Tensor]:
    """Return the initial weights of three clients with the same network."""
    torch.manual_seed(3)
    trial = mixed_trial(method, model=SmallCNN(image_size=8, width=4))
    clients = trial.job.federation.clients
    for client in clients:
        client.streams = type(client.streams)(seed)
    return [state_of(method, trial.store, client)["weights"] for client in clients]


def test_clients_begin_apart_or_alike() -> None:
    apart = initial(LGFedAvg())
    assert not any(torch.equal(apart[k], apart[other]) for k in range(3) for other in range(k))
    assert all(torch.equal(one, again) for one, again in zip(apart, initial(LGFedAvg()), strict=True))
    assert not any(torch.equal(one, new) for one, new in zip(apart, initial(LGFedAvg(), seed=1), strict=True))
    for method in (LGFedAvg(init="shared"), LGFedAvg(fidelity="reference")):
        alike = initial(method)
        assert torch.equal(alike[0], alike[1])
        assert torch.equal(alike[0], alike[2])


def test_what_draws_weights_is_known_by_its_option() -> None:
    assert LGFedAvg().draws_weights == "--method.init independent"
    assert LGFedAvg(init="shared").draws_weights == ""
    assert LGFedAvg(fidelity="reference").draws_weights == ""


def test_work_is_samples_times_the_size_of_the_clients_network() -> None:
    method = LGFedAvg(ONE_EPOCH)
    trial = mixed_trial(method)
    sizes = [sum(p.numel() for p in network.parameters()) for network in method.residents.networks]
    for k, client in enumerate(trial.job.federation.clients):
        assert method.expected_work(client) == 12 * len(HELD[k]) * sizes[k % 2]


# ---- the published order of samples -----------------------------------------------------------------------------


def eleven() -> TensorClientData:
    """Samples 0 to 10, each labelled with its number."""
    numbers = torch.arange(11)
    return TensorClientData(ImageSet(numbers.to(torch.uint8).view(11, 1, 1, 1), numbers), torch.arange(11))


def order(batches: Any) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


def test_as_published_samples_come_in_a_fixed_order_and_what_fills_no_batch_never() -> None:
    data = FixedOrder(eleven(), 4)
    assert data.samples == 8
    once = [[0, 1, 2, 3], [4, 5, 6, 7]]
    for seed in (0, 1):
        assert order(data.batches(4, torch.Generator().manual_seed(seed), epochs=2)) == [*once, *once]
    assert order(data.in_order(256)) == once
    assert torch.equal(data.label_counts, eleven().label_counts)


def test_as_published_a_client_with_less_than_a_batch_trains_on_nothing() -> None:
    data = FixedOrder(eleven(), 12)
    assert data.samples == 0
    assert order(data.batches(12, torch.Generator(), epochs=3)) == []


def test_otherwise_every_sample_is_trained_on_in_a_new_order() -> None:
    def seen(fidelity: Any, t: int) -> list[int]:
        method = LGFedAvg(LocalTraining(batch_size=10), fidelity=fidelity)
        trial = mixed_trial(method)
        client = trial.job.federation.clients[0]  # of 36 samples
        data = method.training_data(client)
        rows = [y for _, y in data.batches(10, client.random("batches", t), epochs=1)]
        return torch.cat(rows).tolist()

    first, second = seen("corrected", 1), seen("corrected", 2)
    assert sorted(first) == sorted(second) == [0] * 12 + [1] * 12 + [2] * 12
    assert first != second
    assert seen("reference", 1) == seen("reference", 2) == ([0] * 12 + [1] * 12 + [2] * 12)[:30]
