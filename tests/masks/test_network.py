"""A network's masks and scores as one flat vector."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from flgen.masks import network
from flgen.masks.layers import MaskedConv2d, MaskedLinear, draw_mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def module() -> nn.Sequential:
    layers = nn.Sequential(MaskedConv2d(1, 4, 3, padding=1, bias=True), nn.ReLU(), nn.Flatten(), MaskedLinear(4 * 9, 5))
    network.reset_weights(layers, "signed_constant", weight_seed=1)
    network.reset_scores(layers, "normal", generator())
    return layers


INPUTS = torch.linspace(-1, 1, 18).view(2, 1, 3, 3)
COUNT = 36 + 4 + 180


def test_layers_and_slices_follow_the_forward_order(module):
    assert [name for name, _ in network.masked_layers(module)] == ["0", "3"]
    assert network.layer_slices(module) == {"0": slice(0, 36), "0.bias": slice(36, 40), "3": slice(40, COUNT)}
    assert network.weights_vector(module).shape == (COUNT,)
    assert torch.equal(network.scores_vector(module)[36:40], module[0].bias_scores)


def test_weights_depend_on_their_seed_alone(module):
    first = network.weights_vector(module)
    network.reset_weights(module, "signed_constant", weight_seed=2)
    assert not torch.equal(first, network.weights_vector(module))
    network.reset_weights(module, "signed_constant", weight_seed=1)
    assert torch.equal(first, network.weights_vector(module))


def test_flat_scores_are_the_layers_scores(module):
    before = network.scores_vector(module)
    scores = network.flatten_scores(module)
    assert torch.equal(scores.vector, before)
    assert scores.vector.dtype == torch.float32
    scores.load(torch.arange(COUNT))
    assert module[0].scores[0, 0, 0].tolist() == [0, 1, 2]
    assert module[3].scores[0, 0].item() == 40
    with torch.no_grad():
        module[3].scores[0, 0] = -7
    assert scores.vector[40].item() == -7
    module.load_state_dict({name: torch.ones_like(value) for name, value in module.state_dict().items()})
    assert scores.vector.unique().tolist() == [1]


def test_backward_replaces_the_flat_gradient(module):
    network.sample_masks(module, generator(3))
    module(INPUTS).square().sum().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])

    scores = network.flatten_scores(module)
    for _ in range(2):  # the second call adds nothing
        network.sample_masks(module, generator(3))
        scores.backward(module(INPUTS).square().sum())
        assert torch.equal(scores.vector.grad, expected)
    assert torch.equal(module[3].scores.grad.flatten(), expected[40:])


def test_backward_survives_an_optimiser_that_drops_gradients(module):
    scores = network.flatten_scores(module)
    network.sample_masks(module, generator(3))
    scores.backward(module(INPUTS).square().sum())
    expected = scores.grad.clone()
    torch.optim.SGD([scores.vector], lr=1.0).zero_grad()
    network.sample_masks(module, generator(3))
    scores.backward(module(INPUTS).square().sum())
    assert torch.equal(scores.vector.grad, expected)


def test_ordinary_backward_adds_to_the_flat_gradient(module):
    scores = network.flatten_scores(module)
    for _ in range(2):
        network.sample_masks(module, generator(3))
        module(INPUTS).square().sum().backward()
    twice = scores.vector.grad.clone()
    network.sample_masks(module, generator(3))
    scores.backward(module(INPUTS).square().sum())
    torch.testing.assert_close(twice, 2 * scores.vector.grad)


def test_one_optimiser_step_on_the_vector_trains_the_layers_and_leaves_the_weights(module):
    weights = network.weights_vector(module)
    scores = network.flatten_scores(module)
    optimiser = torch.optim.Adam([scores.vector], lr=0.1)
    network.sample_masks(module, generator(3))
    before = module[3].scores.detach().clone()
    scores.backward(module(INPUTS).square().sum())
    optimiser.step()
    moved = module[3].scores.detach() - before
    # Adam's first step has the size of its learning rate wherever there is a gradient.
    touched = module[3].scores.grad.abs() > 1e-4
    assert touched.any()
    torch.testing.assert_close(moved[touched].abs(), torch.full((int(touched.sum()),), 0.1), rtol=1e-3, atol=0)
    assert torch.equal(network.weights_vector(module), weights)


def test_sampled_masks_equal_one_flat_draw(module):
    mask = draw_mask(network.scores_vector(module), generator(4))
    network.fix_masks(module, mask)
    expected = module(INPUTS)
    network.sample_masks(module, generator(4))
    assert torch.equal(module(INPUTS), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_fixed_masks_stay(module, dtype):
    mask = (torch.arange(COUNT) % 3 == 0).to(dtype)
    network.fix_masks(module, mask)
    expected = nn.functional.conv2d(
        INPUTS,
        module[0].weight * mask[:36].view(4, 1, 3, 3),
        module[0].bias * mask[36:40],
        padding=1,
    )
    assert torch.equal(module[0](INPUTS), expected)
    assert torch.equal(module(INPUTS), module(INPUTS))


def test_a_mask_of_the_wrong_size_is_refused(module):
    with pytest.raises(ValueError, match="220 masked weights"):
        network.fix_masks(module, torch.ones(COUNT + 1))


def test_threshold_and_top_k_masks(module):
    with network.threshold_masks(module):
        weight, _ = module[3].effective()
        assert torch.equal(weight != 0, module[3].scores > 0)
    with network.top_k_masks(module, 0.25):
        weight, _ = module[3].effective()
        assert int((weight != 0).sum()) == 45


def test_a_choice_of_masks_ends_with_its_block(module):
    network.sample_masks(module, generator())
    sampled = module[0].masking
    with network.fix_masks(module, torch.ones(COUNT)):
        assert module[0].masking is not sampled
    assert module[0].masking is sampled
    assert module[3].masking is not None


def test_gradient_rules_differ_by_the_probability(module):
    mask = torch.ones(COUNT)
    gradients = {}
    for rule in ("identity", "scaled_p"):
        scores = network.flatten_scores(module)
        network.fix_masks(module, mask, rule)
        scores.backward(module(INPUTS).square().sum())
        gradients[rule] = scores.grad.clone()
    torch.testing.assert_close(gradients["scaled_p"], gradients["identity"] * torch.sigmoid(scores.vector))


def test_the_package_imports_without_torch():
    code = "import sys, flgen.masks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
