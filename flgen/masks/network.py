"""Masks and scores of a whole network: one flat vector, one choice of masks.

How it is used, once per rank and then for every client that the rank hosts::

    generator_network.to(device)
    scores = flatten_scores(generator_network)          # after moving: .to() would cut the views
    sample_masks(generator_network, torch_generator)    # a fresh Bernoulli mask at every forward from now on
    optimiser = torch.optim.Adam([scores.vector], lr=0.1)

    scores.load(global_scores)                          # a client begins
    scores.backward(loss)                               # replaces scores.vector.grad: nothing to zero
    optimiser.step()

    with fix_masks(generator_network, mask):            # for the block only; without `with`, from now on
        images = generator_network(noise)
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from flgen.federation.trained_vector import TrainedVector
from flgen.masks.initialisation import ScoreInit, WeightInit, weight_generator
from flgen.masks.layers import Fixed, GradientRule, MaskedLayer, Masking, Part, Sampled, TopK, threshold_mask


def masked_layers(module: nn.Module) -> list[tuple[str, MaskedLayer]]:
    """Return the names and masked layers of `module` in the order in which it registers them.

    A network registers its layers in forward order; this order is the order of every flat vector.
    """
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, MaskedLayer)]


def layer_slices(module: nn.Module) -> dict[str, slice]:
    """Return where each layer's scores lie in the flat vector; a bias follows its weight as `<layer>.bias`."""
    slices: dict[str, slice] = {}
    start = 0
    for name, layer in masked_layers(module):
        for part, _, scores in layer.parts():
            slices[name if part == "weight" else f"{name}.bias"] = slice(start, start + scores.numel())
            start += scores.numel()
    return slices


def weights_vector(module: nn.Module) -> Tensor:
    """Return a copy of all frozen weights, float32 (d,)."""
    return torch.cat([frozen.flatten() for _, layer in masked_layers(module) for _, frozen, _ in layer.parts()])


def scores_vector(module: nn.Module) -> Tensor:
    """Return a copy of all scores, float32 (d,)."""
    return torch.cat([scores.detach().flatten() for scores in _score_tensors(module)])


def reset_weights(module: nn.Module, kind: WeightInit, weight_seed: int) -> None:
    """Draw all frozen weights from one seed; the result is the same on every device."""
    for index, (_, layer) in enumerate(masked_layers(module)):
        layer.reset_weights(kind, weight_generator(weight_seed, index))


def reset_scores(module: nn.Module, kind: ScoreInit, generator: torch.Generator) -> None:
    """Draw all scores, layer by layer, in place."""
    for _, layer in masked_layers(module):
        layer.reset_scores(kind, generator)


class MaskedScores(TrainedVector):
    """All scores of a network in one vector; each layer's `scores` and `scores.grad` are views of it.

    Made by `flatten_scores`.

    Attributes:
        slices: Where each layer lies, by name (see `layer_slices`).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(_score_tensors(module))
        self.slices = layer_slices(module)


def flatten_scores(module: nn.Module) -> MaskedScores:
    """Make all scores of `module` views of one flat vector, keeping their values, and return it."""
    return MaskedScores(module)


class MaskChoice:
    """The maskings that a call has just replaced; used with `with`, they come back at the end of the block."""

    def __init__(self, module: nn.Module, maskings: list[Masking]) -> None:
        layers = [layer for _, layer in masked_layers(module)]
        self._before = [(layer, layer.masking) for layer in layers]
        for layer, masking in zip(layers, maskings, strict=True):
            layer.masking = masking

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for layer, masking in self._before:
            layer.masking = masking


def sample_masks(module: nn.Module, generator: torch.Generator, rule: GradientRule = "identity") -> MaskChoice:
    """From now on draw a fresh Bernoulli(sigmoid(scores)) mask at every forward, in training and evaluation.

    Args:
        module: A network with masked layers.
        generator: Where all masks come from; best on the device of the network.
        rule: Gradient of the draw: `identity` (straight-through) or `scaled_p` (section 1.4).
    """
    return MaskChoice(module, [Sampled(generator, rule) for _ in masked_layers(module)])


def fix_masks(module: nn.Module, mask: Tensor, rule: GradientRule = "identity") -> MaskChoice:
    """From now on use one given mask.

    Args:
        module: A network with masked layers.
        mask: Zeros and ones of any type, flat (d,). It is converted, hence copied unless it is float32.
        rule: Gradient of the scores under this mask.

    Raises:
        ValueError: The mask has not one element per weight.
    """
    scores, slices = _score_tensors(module), list(layer_slices(module).values())
    expected = sum(tensor.numel() for tensor in scores)
    if mask.shape != (expected,):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} was given to a network with {expected} masked weights")
    values = mask.to(scores[0])
    views = iter([values[place].view_as(tensor) for tensor, place in zip(scores, slices, strict=True)])
    maskings: list[Masking] = []
    for _, layer in masked_layers(module):
        masks: dict[Part, Tensor] = {part: next(views) for part, _, _ in layer.parts()}
        maskings.append(Fixed(masks, rule))
    return MaskChoice(module, maskings)


def threshold_masks(module: nn.Module) -> MaskChoice:
    """From now on use the mask `sigmoid(scores) > 0.5` of the scores as they are at this moment."""
    return fix_masks(module, threshold_mask(scores_vector(module)))


def top_k_masks(module: nn.Module, kept: float) -> MaskChoice:
    """From now on keep, in each layer, the fraction `kept` of the weights with the largest |score| (section 1.5)."""
    return MaskChoice(module, [TopK(kept) for _ in masked_layers(module)])


def _score_tensors(module: nn.Module) -> list[nn.Parameter]:
    return [scores for _, layer in masked_layers(module) for _, _, scores in layer.parts()]
