"""Values of DisPFL's specification, section 13, check 11, with the densities of check 2."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flgen.metrics.flops import LayerCost, client_round_flops, counted_training_flops, forward_flops, layer_costs
from flgen.models import VGG11, ResNet18, SmallCNN

RESNET_ACTIVE = {
    "layer3.0.conv2.weight": 424_498,
    "layer3.1.conv1.weight": 424_498,
    "layer3.1.conv2.weight": 424_498,
    "layer4.0.conv1.weight": 634_289,
    "layer4.0.conv2.weight": 844_080,
    "layer4.1.conv1.weight": 844_080,
    "layer4.1.conv2.weight": 844_080,
}


@pytest.fixture(scope="module")
def resnet_costs() -> list[LayerCost]:
    return layer_costs(ResNet18(), (3, 32, 32))


def test_forward_operations_of_resnet(resnet_costs):
    assert forward_flops(resnet_costs) == 1_110_845_450
    assert forward_flops(resnet_costs, RESNET_ACTIVE) == 884_448_042


def test_forward_operations_of_resnet_on_larger_images():
    costs = layer_costs(ResNet18(image_size=64, classes=200), (3, 64, 64))
    assert forward_flops(costs) == 4_443_545_800


def test_forward_operations_of_vgg():
    costs = layer_costs(VGG11(), (3, 32, 32))
    kept = {256 * 256 * 9: 500_245, 256 * 512 * 9: 747_470, 512 * 512 * 9: 994_695}  # of ERK at density 0.5
    active = {cost.name: kept[cost.weights] for cost in costs if cost.weights in kept}
    assert [active[cost.name] for cost in costs[3:8]] == [500_245, 747_470, 994_695, 994_695, 994_695]
    assert forward_flops(costs) == 305_690_634
    assert forward_flops(costs, active) == 214_893_978


def test_operations_of_a_clients_round(resnet_costs):
    dense = client_round_flops(resnet_costs, samples=500, epochs=5)
    masked = client_round_flops(resnet_costs, samples=500, epochs=5, active=RESNET_ACTIVE)
    searched = client_round_flops(resnet_costs, samples=500, epochs=5, active=RESNET_ACTIVE, search_batch=128)
    assert dense == pytest.approx(8.33134e12, rel=1e-6)
    assert masked == pytest.approx(6.63336e12, rel=1e-6)
    assert searched - masked == 128 * 3 * 1_110_845_450
    assert searched - masked == pytest.approx(4.26565e11, rel=2e-6)  # the last digit of the specification


def test_a_search_sees_no_more_samples_than_there_are(resnet_costs):
    rounds = [client_round_flops(resnet_costs, samples=100, epochs=1, search_batch=batch) for batch in (100, 128)]
    assert rounds[0] == rounds[1] == 2 * 100 * 3 * 1_110_845_450


def test_each_layer_is_named_after_its_weight():
    model = SmallCNN(8, width=2)
    assert layer_costs(model, (1, 8, 8)) == [
        LayerCost("network.0.weight", 50, 64, 2 * 64),
        LayerCost("network.3.weight", 200, 16, 4 * 16),
        LayerCost("network.7.weight", 128, 1, 8),
        LayerCost("network.9.weight", 80, 1, 10),
    ]


def test_a_layer_that_is_used_twice_costs_twice():
    layer = nn.Linear(3, 3)
    assert layer_costs(nn.Sequential(layer, nn.ReLU(), layer), (3,)) == [LayerCost("0.weight", 9, 2, 6)]


def test_a_linear_layer_over_a_sequence_costs_each_position():
    assert layer_costs(nn.Linear(3, 2), (5, 3)) == [LayerCost("weight", 6, 5, 10)]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv1d(2, 3, 3, stride=2), (2, 9), LayerCost("weight", 18, 4, 12)),
        (nn.Conv2d(4, 4, 3, groups=2, bias=False), (4, 5, 6), LayerCost("weight", 72, 12, 0)),
        (nn.ConvTranspose2d(2, 3, 4, stride=4), (2, 3, 3), LayerCost("weight", 96, 9, 3 * 144)),
    ],
)
def test_convolutions_of_other_kinds(layer, shape, expected):
    assert layer_costs(layer, shape) == [expected]
    layer.requires_grad_(False)  # PyTorch's counter then counts the forward pass alone
    operations = 2 * expected.weights * expected.positions
    assert counted_training_flops(layer, lambda: layer(torch.ones(1, *shape)).sum()) == operations


def test_a_function_may_make_the_pass():
    model = SmallCNN(8, width=2)
    assert layer_costs(model, lambda: model(torch.zeros(3, 1, 8, 8))) == layer_costs(model, (1, 8, 8))


def test_pytorchs_counter_agrees_but_for_biases_and_the_gradient_of_the_input():
    model = ResNet18(8, width=4, groups=2)
    labels = torch.tensor([3])

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(torch.zeros(1, 3, 8, 8)), labels)

    forward = forward_flops(layer_costs(model, (3, 8, 8)))
    first_layer = 2 * (4 * 3 * 9) * 64
    assert counted_training_flops(model, loss) == 3 * (forward - 10) - first_layer


def test_counting_leaves_the_module_as_it_was(capsys):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 2))
    model[1].eval()
    model[4].weight.grad = torch.ones(2, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_costs(model, (1, 4, 4))
    counted_training_flops(model, lambda: model(torch.ones(1, 1, 4, 4)).sum())
    assert [part.training for part in model.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[4].weight.grad.equal(torch.ones(2, 8))
    assert model[0].weight.grad is None
    assert not any(part._forward_hooks for part in model.modules())
    assert capsys.readouterr() == ("", "")


def test_a_pass_that_fails_leaves_no_hook():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        layer_costs(model, (4,))
    assert model.training
    assert not model[0]._forward_hooks


def test_a_module_that_learns_nothing_has_no_backward_pass():
    layer = nn.Linear(3, 2)
    assert counted_training_flops(layer, lambda: layer(torch.ones(1, 3)).sum()) == 2 * 12
    layer.requires_grad_(False)
    assert counted_training_flops(layer, lambda: layer(torch.ones(1, 3)).sum()) == 12


def test_a_module_that_passes_over_the_sample_costs_its_forward_pass_alone() -> None:
    layer = nn.Linear(3, 2, bias=False)

    def forward_only() -> None:
        layer(torch.ones(1, 3))

    assert counted_training_flops(layer, forward_only) == 2 * 6
