"""Parameters that an optimiser steps as one vector."""

from __future__ import annotations

import torch
from torch import nn

from flgen.federation.trained_vector import TrainedVector


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def inputs() -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def test_parameters_keep_their_values_and_become_views() -> None:
    model, same = small_model(), small_model()
    flat = TrainedVector(model.parameters())
    assert torch.equal(flat.vector, torch.cat([p.flatten() for p in same.parameters()]))
    flat.load(torch.arange(21.0))
    assert model[0].weight.tolist() == torch.arange(12.0).view(4, 3).tolist()
    assert model[2].bias.tolist() == [20.0]
    assert flat.vector.requires_grad


def test_a_backward_writes_the_gradient_over_the_last_one() -> None:
    model = small_model()
    flat = TrainedVector(model.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(model(inputs()).sum(), list(model.parameters()))])
    for _ in range(2):
        flat.backward(model(inputs()).sum())
        assert torch.equal(flat.grad, expected)
        assert flat.vector.grad is flat.grad
        assert torch.equal(model[0].weight.grad, expected[:12].view(4, 3))


def test_steps_on_the_vector_are_steps_on_the_parameters() -> None:
    model, plain = small_model(), small_model()
    flat = TrainedVector(model.parameters())
    adam, plain_adam = torch.optim.Adam([flat.vector], lr=0.1), torch.optim.Adam(plain.parameters(), lr=0.1)
    for _ in range(3):
        flat.backward(model(inputs()).square().mean())
        adam.step()
        plain_adam.zero_grad()
        plain(inputs()).square().mean().backward()
        plain_adam.step()
    assert torch.equal(flat.vector, torch.cat([p.flatten() for p in plain.parameters()]))


def test_the_gradient_of_a_loss_may_come_in_two_parts() -> None:
    model = small_model()
    flat = TrainedVector(model.parameters())
    flat.backward(model(inputs()).square().sum())
    expected = flat.grad.clone()
    outputs = model(inputs())
    flat.backward(outputs, 2 * outputs.detach())
    torch.testing.assert_close(flat.grad, expected)


def test_a_copy_stays_as_it_was() -> None:
    flat = TrainedVector(small_model().parameters())
    before = flat.copy()
    flat.load(before + 1)
    assert torch.equal(flat.vector, before + 1)
    assert not before.requires_grad


def test_a_gradient_that_came_from_elsewhere_goes_through_the_network() -> None:
    model = small_model()
    flat = TrainedVector(list(model.parameters()))
    upstream = torch.arange(5.0).view(5, 1)
    flat.backward((upstream * model(inputs())).sum())
    expected = flat.grad.clone()
    flat.backward(model(inputs()), upstream)
    assert torch.equal(flat.grad, expected)


def test_a_copy_stays_what_it_was() -> None:
    flat = TrainedVector(list(small_model().parameters()))
    copy = flat.copy()
    flat.load(torch.zeros(21))
    assert not copy.requires_grad
    assert float(copy.abs().min()) > 0
