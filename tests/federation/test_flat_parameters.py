"""One vector behind a module: changing either changes both, and layers and optimisers notice nothing."""

from __future__ import annotations

import torch
from torch import nn

from flgen.federation.flat_parameters import flatten_in_place, flatten_model, named_parts


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 4, 2))


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_the_vector_holds_every_element_in_the_order_given() -> None:
    a, b = nn.Parameter(torch.arange(6.0).view(2, 3)), nn.Parameter(torch.tensor([7.0, 8.0]))
    vector = flatten_in_place([a, b])
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert a.shape == (2, 3)
    assert not vector.requires_grad


def test_vector_and_tensors_are_the_same_memory() -> None:
    a, b = nn.Parameter(torch.zeros(2, 3)), torch.ones(2)
    vector = flatten_in_place([a, b])
    vector.copy_(torch.arange(8.0))
    assert a.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert b.tolist() == [6, 7]
    with torch.no_grad():
        a.mul_(-1)
    assert vector.tolist() == [0, -1, -2, -3, -4, -5, 6, 7]


def test_a_model_is_its_parameters_and_floating_buffers() -> None:
    model = small_model()
    vector = flatten_model(model)
    assert vector.dtype == torch.float32
    assert vector.numel() == sum(parameter.numel() for parameter in model.parameters()) + 3 + 3  # running moments
    model(images())
    assert model[1].num_batches_tracked.item() == 1
    assert vector[-6:-3].tolist() == model[1].running_mean.tolist()
    assert vector[-3:].tolist() == model[1].running_var.tolist()


def test_copying_the_vector_switches_the_model() -> None:
    model, other = small_model(), small_model()
    other(images(1))
    with torch.no_grad():
        other[0].weight.add_(1)
    flatten_model(model).copy_(flatten_model(other))
    model.eval(), other.eval()
    assert torch.equal(model(images()), other(images()))


def test_training_a_flat_model_is_training_the_model() -> None:
    plain, flat = small_model(), small_model()
    vector = flatten_model(flat)
    for model in (plain, flat):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            model(images(step)).square().mean().backward()
            optimizer.step()
    assert torch.equal(vector, flatten_model(plain))


def test_a_tensor_that_two_layers_share_is_there_once_and_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    vector = flatten_model(model)
    assert vector.numel() == 16
    vector.fill_(2)
    assert model[1].weight.tolist() == [[2.0] * 4] * 4


def test_parts_of_a_vector_have_the_names_and_shapes_of_the_tensors_and_let_gradients_through() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    expected = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    vector = torch.cat([flatten_model(module), torch.zeros(7)]).requires_grad_()  # more than there are parameters
    parts = named_parts(vector, dict(module.named_parameters()))
    assert parts.keys() == expected.keys()
    assert all(torch.equal(parts[name], expected[name]) for name in expected)
    torch.func.functional_call(module, parts, (torch.ones(1, 2),)).sum().backward()
    assert vector.grad is not None
    assert bool(vector.grad[:13].any())
    assert not bool(vector.grad[13:].any())
