"""Masked layers: gradients of the mask, kinds of mask, initial values."""

import math

import pytest
import torch
import torch.nn.functional as F

from flgen.masks.initialisation import Fan, frozen_values, score_values, weight_generator
from flgen.masks.layers import (
    Fixed,
    MaskedConv2d,
    MaskedConvTranspose2d,
    MaskedLayer,
    MaskedLinear,
    Sampled,
    TopK,
    draw_mask,
    masked_value,
    threshold_mask,
    top_k_mask,
)

LN3, LN9 = math.log(3), math.log(9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(layer: MaskedLayer) -> MaskedLayer:
    layer.reset_weights("signed_constant", generator(1))
    layer.reset_scores("normal", generator(2))
    return layer


LAYERS = [
    pytest.param(lambda bias: MaskedLinear(6, 5, bias=bias), (3, 6), id="linear"),
    pytest.param(lambda bias: MaskedConv2d(2, 5, 3, stride=2, padding=1, bias=bias), (3, 2, 8, 8), id="conv"),
    pytest.param(lambda bias: MaskedConvTranspose2d(2, 5, 4, stride=2, padding=1, bias=bias), (3, 2, 4, 4), id="up"),
]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("identity", [[0.125, -0.1875], [0.09375, -0.09]]),
        ("scaled_p", [[0.0625, -0.140625], [0.0234375, -0.081]]),
    ],
)
def test_straight_through_gradient_of_the_worked_example(rule, expected):
    layer = MaskedLinear(2, 2)
    layer.weight.copy_(torch.tensor([[0.5, -0.5], [-0.5, 0.5]]))
    layer.scores.data.copy_(torch.tensor([[0, LN3], [-LN3, LN9]]))
    layer.masking = Fixed({"weight": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}, rule)

    output = layer(torch.tensor([[1.0, 2.0]]))
    assert output.tolist() == [[0.5, 0.5]]
    output.backward(torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(layer.scores.grad, torch.tensor(expected), rtol=1e-6, atol=1e-8)


def test_top_k_keeps_the_largest_magnitudes_and_passes_the_gradient_with_the_sign_of_the_score():
    scores = torch.tensor([0.3, -0.9, 0.1, 0.5], requires_grad=True)
    mask = top_k_mask(scores, 0.5)
    assert mask.tolist() == [0, 1, 0, 1]

    frozen = torch.tensor([1.0, 2.0, -3.0, 4.0])
    masked_value(frozen, scores, mask, "magnitude").backward(torch.tensor([1.0, 1.0, 1.0, -1.0]))
    assert scores.grad.tolist() == [1, -2, -3, -4]


def test_top_k_rounds_the_number_of_zeroed_weights():
    assert int((1 - 0.9) * 10) == 0  # the trap
    assert top_k_mask(torch.arange(10.0), 0.9).tolist() == [0] + [1] * 9


@pytest.mark.parametrize(("kept", "ones"), [(0.0, 0), (0.25, 5), (1.0, 20)])
def test_top_k_keeps_the_asked_number_even_among_equal_scores(kept, ones):
    assert int(top_k_mask(torch.ones(4, 5), kept).sum()) == ones


def test_the_top_k_masking_gives_each_layer_its_own_share():
    layer = drawn(MaskedLinear(10, 10))
    layer.masking = TopK(0.3)
    (weight, _) = layer.effective()
    assert int((weight != 0).sum()) == 30


def test_threshold_keeps_probabilities_above_one_half():
    assert threshold_mask(torch.tensor([-1.0, 0.0, 1e-6, 2.0])).tolist() == [0, 0, 1, 1]


def test_a_drawn_mask_has_the_probabilities_of_its_scores():
    probability = torch.tensor([0.01, 0.25, 0.5, 0.9])
    draws = draw_mask(torch.logit(probability).expand(20_000, 4), generator())
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    error = (draws.mean(0) - probability).abs()
    assert (error < 4 * (probability * (1 - probability) / 20_000).sqrt()).all()


def test_saturated_scores_are_certain():
    mask = draw_mask(torch.tensor([-200.0, 200.0]).expand(1000, 2), generator())
    assert mask.sum(0).tolist() == [0, 1000]


def test_one_flat_draw_equals_successive_draws():
    scores = torch.randn(1000, generator=generator())
    source = generator(5)
    pieces = torch.cat([draw_mask(piece, source) for piece in scores.split([3, 17, 480, 500])])
    assert torch.equal(pieces, draw_mask(scores, generator(5)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_every_forward_draws_a_fresh_mask_from_the_given_generator_alone(build, shape, training):
    layer = drawn(build(False)).train(training)
    inputs = torch.randn(shape, generator=generator())
    before = torch.get_rng_state()
    layer.masking = Sampled(generator(3))
    first, second = layer(inputs), layer(inputs)
    layer.masking = Sampled(generator(3))
    again = layer(inputs)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_a_layer_is_the_dense_operator_on_masked_weights(build, shape, bias):
    layer = drawn(build(bias))
    masks = {part: draw_mask(scores, generator(9)) for part, _, scores in layer.parts()}
    layer.masking = Fixed(masks)
    inputs = torch.randn(shape, generator=generator())
    weight = layer.weight * masks["weight"]
    offset = layer.bias * masks["bias"] if bias else None
    if isinstance(layer, MaskedLinear):
        expected = F.linear(inputs, weight, offset)
    elif isinstance(layer, MaskedConvTranspose2d):
        expected = F.conv_transpose2d(inputs, weight, offset, stride=2, padding=1)
    else:
        expected = F.conv2d(inputs, weight, offset, stride=2, padding=1)
    assert torch.equal(layer(inputs), expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_only_scores_are_trained(build, shape, bias):
    layer = drawn(build(bias))
    layer.masking = Sampled(generator(3))
    before = [frozen.clone() for _, frozen, _ in layer.parts()]
    assert {name for name, _ in layer.named_parameters()} == ({"scores", "bias_scores"} if bias else {"scores"})
    layer(torch.randn(shape, generator=generator())).square().sum().backward()
    for (_, frozen, scores), old in zip(layer.parts(), before, strict=True):
        assert frozen.grad is None
        assert scores.grad.abs().sum() > 0
        assert scores.dim() >= 1
        assert torch.equal(frozen, old)


def test_a_layer_without_a_masking_says_what_to_call():
    with pytest.raises(RuntimeError, match="sample_masks"):
        MaskedLinear(2, 2)(torch.zeros(1, 2))


def test_fan_in_of_a_transposed_convolution_counts_output_channels():
    layer = MaskedConvTranspose2d(128, 512, 4)
    assert layer.weight.shape == (128, 512, 4, 4)
    layer.reset_weights("signed_constant", generator())
    assert layer.weight.abs().unique().tolist() == [pytest.approx(0.015625, rel=1e-6)]


def test_weights_of_the_other_initialisations():
    layer = MaskedConv2d(32, 64, 3)  # fan_in = 288
    layer.reset_weights("me_init", generator())
    assert layer.weight.abs().unique().tolist() == [pytest.approx(math.e / math.sqrt(288), rel=1e-6)]
    layer.reset_weights("kaiming_normal", generator())
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 288), rel=0.03)
    layer.reset_weights("normal10", generator())
    assert layer.weight.std().item() == pytest.approx(10, rel=0.03)
    assert abs(layer.weight.mean().item()) < 0.3


def test_signs_are_fair_and_never_zero():
    values = frozen_values(torch.Size([100_000]), Fan(2, 2), "signed_constant", generator())
    assert values.abs().unique().tolist() == [1.0]
    assert abs(values.mean().item()) < 4 / math.sqrt(100_000)


def test_frozen_weights_follow_their_seed_and_layer():
    def draw(seed: int, layer: int) -> torch.Tensor:
        return frozen_values(torch.Size([200]), Fan(9, 9), "signed_constant", weight_generator(seed, layer))

    assert torch.equal(draw(1, 0), draw(1, 0))
    assert not torch.equal(draw(1, 0), draw(2, 0))
    assert not torch.equal(draw(1, 0), draw(1, 1))


@pytest.mark.parametrize(
    ("kind", "std", "bound"),
    [("normal", 1.0, math.inf), ("uniform", 0.1 / math.sqrt(3), 0.1), ("kaiming_uniform", 0.25 / math.sqrt(3), 0.25)],
)
def test_score_initialisations(kind, std, bound):
    scores = score_values(torch.Size([40_000]), Fan(16, 16), kind, generator())
    assert scores.std().item() == pytest.approx(std, rel=0.02)
    assert scores.abs().max().item() <= bound
    assert torch.equal(scores, score_values(torch.Size([40_000]), Fan(16, 16), kind, generator()))
