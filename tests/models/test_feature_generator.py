"""FedGen's generator: its size, what it reads, and a head that is called with anybody's weights."""

from __future__ import annotations

import torch

from flgen import SmallCNN
from flgen.models.feature_generator import FeatureGenerator, FlatHead, Head


def test_its_size_is_that_of_two_linear_layers_and_batch_norm() -> None:
    # CIFAR: hidden 512, features 32, noise 64.
    G = FeatureGenerator(classes=10, features=32, hidden=512, noise=64)
    assert sum(p.numel() for p in G.parameters()) == (64 + 10) * 512 + 512 + 2 * 512 + 512 * 32 + 32
    floating = [buffer for buffer in G.buffers() if buffer.is_floating_point()]
    assert sum(buffer.numel() for buffer in floating) == 2 * 512


def test_it_reads_noise_and_a_one_hot_label() -> None:
    G = FeatureGenerator(classes=3, features=5, hidden=4, noise=2)
    seen = []
    G.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z = G(torch.tensor([[0.25, 0.5], [0.75, 1.0]]), torch.tensor([2, 0]))
    assert z.shape == (2, 5)
    assert seen[0].tolist() == [[0.25, 0.5, 0, 0, 1], [0.75, 1.0, 1, 0, 0]]


def test_noise_is_uniform_and_follows_the_generator_that_it_is_given() -> None:
    G = FeatureGenerator(classes=3, features=5, hidden=4, noise=50).eval()
    y = torch.zeros(200, dtype=torch.int64)
    eps, z = G.draw(y, torch.Generator().manual_seed(0))
    again, z_again = G.draw(y, torch.Generator().manual_seed(0))
    assert torch.equal(eps, again)
    assert torch.equal(z, z_again)
    assert 0 <= float(eps.min()) < 0.01
    assert 0.99 < float(eps.max()) < 1
    assert abs(float(eps.mean()) - 0.5) < 0.01


def test_a_head_is_called_with_the_weights_of_any_client() -> None:
    model, other = (SmallCNN(image_size=8, width=4) for _ in range(2))
    head, z = Head(model), torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    theirs = {f"classifier.{name}": parameter for name, parameter in other.named_parameters()}
    assert torch.equal(torch.func.functional_call(head, theirs, (z,)), other.head(z))
    assert torch.equal(head(z), model.head(z))


def test_a_flat_head_is_a_function_of_the_vector_of_its_parameters() -> None:
    model, other = (SmallCNN(image_size=8, width=4) for _ in range(2))
    names = [name for name, _ in model.named_parameters()][-2:]
    h, z = FlatHead(model, names), torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    w = torch.cat([parameter.detach().flatten() for parameter in list(other.parameters())[-2:]]).requires_grad_()
    logits = h(w, z)
    assert torch.equal(logits, other.head(z))
    logits.sum().backward()
    assert w.grad is not None
    assert torch.allclose(w.grad, torch.cat([z.sum(dim=0).repeat(10), torch.full((10,), 3.0)]), atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), before)
    doubled = h(w.detach().double(), z.double())  # in the precision of what it is given
    assert doubled.dtype == torch.float64
