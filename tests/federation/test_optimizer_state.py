"""One optimiser serves many clients, each with its own moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flgen.federation import optimizer_state

MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, betas=(0.5, 0.999)),
    "fused adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, betas=(0.5, 0.999), fused=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def start(client: int) -> Tensor:
    return torch.randn(20, generator=torch.Generator().manual_seed(client))


def step(parameter: Tensor, optimizer: torch.optim.Optimizer, client: int, t: int) -> None:
    draws = torch.Generator().manual_seed(1000 * client + t)
    parameter.grad = torch.randn(20, generator=draws)
    optimizer.step()


@pytest.mark.parametrize("name", MAKERS)
def test_clients_that_take_turns_train_as_if_each_had_its_own(name: str) -> None:
    apart = []
    for client in (0, 1, 2):
        parameter = torch.nn.Parameter(start(client))
        optimizer = MAKERS[name]([parameter])
        for t in range(6):
            step(parameter, optimizer, client, t)
        apart.append(parameter.detach().clone())

    shared = torch.nn.Parameter(torch.zeros(20))
    optimizer = MAKERS[name]([shared])
    weights = [start(client) for client in (0, 1, 2)]
    states: list[dict[str, Tensor]] = [{}, {}, {}]
    for t in (0, 2, 4):
        for client in (2, 0, 1):
            shared.data.copy_(weights[client])
            optimizer_state.load(optimizer, states[client])
            step(shared, optimizer, client, t)
            step(shared, optimizer, client, t + 1)
            optimizer_state.store(optimizer, states[client])
            weights[client] = shared.detach().clone()
    for client in (0, 1, 2):
        assert torch.equal(weights[client], apart[client])


def test_moments_stand_beside_the_clients_other_tensors() -> None:
    parameter = torch.nn.Parameter(torch.zeros(20))
    optimizer = MAKERS["adam"]([parameter])
    state = {"distance": torch.tensor(3.0)}
    optimizer_state.load(optimizer, state)
    step(parameter, optimizer, 0, 0)
    optimizer_state.store(optimizer, state)
    assert sorted(state) == ["distance", "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.step"]
    assert state["distance"].item() == 3.0
    assert state["optimizer.step"].item() == 1
    assert len(optimizer.state) == 0


def test_an_interrupted_client_leaves_nothing_to_the_next() -> None:
    parameter = torch.nn.Parameter(torch.zeros(20))
    optimizer = MAKERS["adam"]([parameter])
    optimizer_state.load(optimizer, {})
    step(parameter, optimizer, 0, 0)  # and no store
    parameter.data.zero_()
    optimizer_state.load(optimizer, {})
    step(parameter, optimizer, 1, 0)
    fresh = torch.nn.Parameter(torch.zeros(20))
    step(fresh, MAKERS["adam"]([fresh]), 1, 0)
    assert torch.equal(parameter, fresh)


def test_an_optimiser_over_several_parameters_is_a_mistake() -> None:
    pair = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    with pytest.raises(ValueError, match="unpack"):
        optimizer_state.load(MAKERS["plain"](pair), {})
