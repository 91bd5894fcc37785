"""Resident modules of a mixed federation: one per architecture, made when needed, in which clients take turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixed_trial import two_networks

from flgen import Digits, LocalTraining, ModelGroup, SmallCNN, SmallResNet
from flgen.federation.clients import Client
from flgen.federation.launch import build_fabric
from flgen.federation.residents import Residents, state_of
from flgen.federation.streams import RandomStreams


def client(number: int, seed: int = 0) -> Client:
    return Client(id=number, samples=1, streams=RandomStreams(seed), key=number, open_data=lambda device: None)  # type: ignore[arg-type, return-value]


def residents(model: Any, clients: int = 4, last: Any = lambda network: (), init: Any = "shared") -> Residents:
    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=60, callbacks=[])
    return Residents(model, Digits(), fabric, LocalTraining(), clients, last, init)


@pytest.fixture
def mixed() -> Residents:
    return residents(two_networks())


def test_one_module_per_architecture_is_made_when_the_first_client_needs_it(mixed: Residents) -> None:
    assert mixed.first_states == {}
    narrow = mixed.of(client(0))
    assert set(mixed.first_states) == {0}
    assert mixed.of(client(2)) is mixed.number(0) is narrow
    wide = mixed.of(client(1))
    assert set(mixed.first_states) == {0, 1}
    assert mixed.of(client(3)) is wide is not narrow
    assert (narrow.module, wide.module) == tuple(mixed.networks)


def test_a_single_network_is_everybodys() -> None:
    torch.manual_seed(3)
    one = residents(SmallCNN(image_size=8, width=4))
    assert len({id(one.of(client(k))) for k in range(4)}) == 1


def test_how_large_a_clients_network_is_can_be_said_without_making_it_resident(mixed: Residents) -> None:
    sizes = [mixed.parameters_of(client(k)) for k in range(4)]
    assert mixed.first_states == {}
    assert sizes == [sum(p.numel() for p in mixed.networks[k % 2].parameters()) for k in range(4)]
    assert sizes[0] < sizes[1]


def test_clients_of_one_architecture_take_turns_and_nothing_leaks() -> None:
    torch.manual_seed(3)
    group = ModelGroup([SmallResNet(image_size=8, width=4, feature_width=16), SmallCNN(image_size=8, width=4)])
    mixed = residents(group, init="independent")
    clients = [client(k) for k in range(4)]
    for one in clients:
        one.state = mixed.initial_state(one)
    assert set(clients[0].state) == {"weights", "buffers", "counters"}  # BatchNorm's
    assert set(clients[1].state) == {"weights"}
    kept = [{name: tensor.clone() for name, tensor in one.state.items()} for one in clients]
    for k, one in enumerate(clients):  # what each does in its turn
        at = mixed.load(one)
        for name, tensor in state_of(at).items():
            assert torch.equal(tensor, kept[k][name])
        at.weights.add_(k + 1)
        at.buffers.add_(k + 1)
        at.counters.add_(k + 1)
        one.state = mixed.state(one)
        kept[k] = {name: tensor + (k + 1) for name, tensor in kept[k].items()}
    for k, one in enumerate(clients):
        assert one.state.keys() == kept[k].keys()
        assert all(torch.equal(tensor, kept[k][name]) for name, tensor in one.state.items())


def test_a_state_does_not_change_with_the_module_that_it_was_taken_from(mixed: Residents) -> None:
    one = client(0)
    one.state = mixed.initial_state(one)
    before = one.state["weights"].clone()
    mixed.of(one).weights.fill_(7)
    assert torch.equal(one.state["weights"], before)
    assert torch.equal(mixed.first_states[0]["weights"], before)


def test_independent_initial_weights_differ_between_clients_and_between_seeds() -> None:
    mixed = residents(two_networks(), init="independent")
    drawn = {(k, seed): mixed.initial_state(client(k, seed))["weights"] for k in (0, 2) for seed in (0, 1)}
    assert not mixed.first_states  # a second copy of every network would be for nothing
    for one in drawn:
        assert torch.equal(mixed.initial_state(client(*one))["weights"], drawn[one])
        for other in drawn:
            assert torch.equal(drawn[one], drawn[other]) == (one == other)


def test_shared_initial_weights_are_the_networks_own_whoever_was_there_before(mixed: Residents) -> None:
    own = torch.cat([p.detach().flatten() for p in mixed.networks[0].parameters()])
    mixed.of(client(0)).weights.fill_(7)
    for k in (0, 2):
        assert torch.equal(mixed.initial_state(client(k, seed=k))["weights"], own)


def test_the_named_parameters_stand_last_in_every_network() -> None:
    def biases(network: Any) -> list[str]:
        return [name for name, _ in network.named_parameters() if name.endswith("bias")]

    mixed = residents(two_networks(), last=biases)
    for k in (0, 1):
        at = mixed.of(client(k))
        assert at.last == tuple(biases(at.module))
        expected = torch.cat([p.detach().flatten() for n, p in at.module.named_parameters() if n.endswith("bias")])
        assert torch.equal(at.weights[-len(expected) :], expected)


def test_gradients_are_given_back_at_the_end_of_a_turn(mixed: Residents) -> None:
    one = client(0)
    one.state = mixed.initial_state(one)
    at = mixed.load(one)
    at.module(torch.zeros(2, 1, 8, 8)).sum().backward()
    assert any(p.grad is not None for p in at.module.parameters())
    mixed.state(one)
    assert all(p.grad is None for p in at.module.parameters())
