"""Floating-point operations: counted layer by layer, as DisPFL does (section 9.1), and by PyTorch's own counter.

A multiplication and an addition are two operations. Convolutions and linear layers count; normalisation, activations
and pooling do not. A weight that a mask switches off costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_TRAINING = 3  # forward, gradient of the inputs, gradient of the weights
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerCost:
    """What one layer does for one sample.

    Args:
        name: Name of its weight among the module's parameters.
        weights: Elements of the weight, n_l.
        positions: How often each of them is used: the output positions H_out * W_out of a convolution (the input
            positions of a transposed one), 1 for a linear layer.
        bias_additions: Elements of the bias times output positions.
    """

    name: str
    weights: int
    positions: int
    bias_additions: int


def layer_costs(
    module: nn.Module, sample: Sequence[int] | Callable[[], object], device: torch.device | str = "cpu"
) -> list[LayerCost]:
    """Return the cost of every convolution and linear layer that one forward pass uses, in the order of first use.

    The pass is made in eval mode without gradients; the module is left as it was.

    Args:
        module: Any module; a layer that it uses twice has twice the positions.
        sample: Shape of one input, such as (channels, height, width), or a function that makes the pass.
        device: Where the module is, if a shape is given.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    costs: dict[str, LayerCost] = {}

    def hook(prefix: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            cost = _cost(layer, names.get(id(layer.weight), f"{prefix}.weight"), inputs[0], output)
            known = costs.get(cost.name, LayerCost(cost.name, cost.weights, 0, 0))
            costs[cost.name] = LayerCost(
                cost.name,
                cost.weights,
                known.positions + cost.positions,
                known.bias_additions + cost.bias_additions,
            )

        return count

    layers = [(prefix, layer) for prefix, layer in module.named_modules() if isinstance(layer, _COUNTED)]
    handles = [layer.register_forward_hook(hook(prefix)) for prefix, layer in layers]
    try:
        with _evaluating(module), torch.no_grad():
            if callable(sample):
                sample()
            else:
                module(torch.zeros(1, *sample, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return list(costs.values())


def forward_flops(costs: Sequence[LayerCost], active: Mapping[str, int] | None = None) -> int:
    """Return the operations of one sample's forward pass, f = sum of 2 nnz(W) * positions + bias additions.

    Args:
        costs: From `layer_costs`.
        active: Number of weights in use, by name, where it is not all of them; other names are ignored.
    """
    active = active or {}
    return sum(2 * active.get(cost.name, cost.weights) * cost.positions + cost.bias_additions for cost in costs)


def client_round_flops(
    costs: Sequence[LayerCost],
    *,
    samples: int,
    epochs: int,
    active: Mapping[str, int] | None = None,
    search_batch: int = 0,
) -> int:
    """Return the operations of one client's round: E * n_k * 3 f, and one dense batch where a gradient is searched.

    Args:
        costs: From `layer_costs`.
        samples: Training samples of the client, n_k.
        epochs: Passes over them, E.
        active: Number of weights in use, as for `forward_flops`.
        search_batch: Batch size B if the mask search computes a dense gradient, of min(B, n_k) samples; otherwise 0.
    """
    trained = epochs * samples * forward_flops(costs, active)
    searched = min(search_batch, samples) * forward_flops(costs)
    return _TRAINING * (trained + searched)


def counted_training_flops(module: nn.Module, loss_of: Callable[[], Tensor | None]) -> int:
    """Return the operations that PyTorch's counter sees in one forward and backward pass, masks or not.

    The counter leaves out additions of biases and, unlike 3 f, the gradient of the network's input. The passes are made
    in eval mode; the module and the gradients of its parameters are left as they were.

    Args:
        module: Whose parameters get gradients.
        loss_of: Makes the forward pass and returns the loss, a scalar; none where the module passes over the batch.
    """
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    counter = FlopCounterMode(display=False)
    with _evaluating(module), torch.enable_grad(), counter:
        loss = loss_of()
        if learnt and loss is not None and loss.requires_grad:
            torch.autograd.grad(loss, learnt, allow_unused=True)
    return counter.get_total_flops()


_COUNTED = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


def _cost(layer: Any, name: str, inputs: Tensor, output: Tensor) -> LayerCost:
    """Return what one call of a layer costs per sample; the first dimension counts samples."""
    if isinstance(layer, nn.Linear):
        positions = at_output = math.prod(output.shape[1:-1])
    else:
        at_output = math.prod(output.shape[2:])
        positions = math.prod(inputs.shape[2:]) if isinstance(layer, _TRANSPOSED) else at_output
    bias = 0 if layer.bias is None else layer.bias.numel()
    return LayerCost(name, layer.weight.numel(), positions, bias * at_output)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, then each of its parts back in the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
