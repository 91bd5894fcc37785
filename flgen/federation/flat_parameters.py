"""One flat vector behind a module's tensors: switching clients is one copy, sending a model is one entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def flatten_in_place(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors of one dtype into one flat vector, of which each becomes a view.

    Call it after the module has reached its device: moving it again would break the views.

    Args:
        tensors: Parameters or buffers; their `data` is re-pointed, so optimisers and layers keep working.

    Returns:
        The vector (elements,), in the order given.
    """
    vector = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    position = 0
    for tensor in tensors:
        tensor.data = vector[position : position + tensor.numel()].view(tensor.shape)
        position += tensor.numel()
    return vector


def flatten_model(module: nn.Module) -> Tensor:
    """Return one float32 vector behind all parameters and floating-point buffers of a module (d,).

    Integer buffers (BatchNorm's batch counter) stay outside: an average of counters means nothing.
    """
    floating = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    return flatten_in_place([*module.parameters(), *floating])


def named_parts(vector: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of a flat vector under the names, and in the shapes, of the tensors that they stand for.

    Parts are views through which gradients flow, as `torch.func.functional_call` takes them.

    Args:
        vector: (elements,), in the order of `tensors`; what is left over stands for none of them.
        tensors: Parameters or buffers by name.
    """
    parts, position = {}, 0
    for name, tensor in tensors.items():
        parts[name] = vector[position : position + tensor.numel()].view(tensor.shape)
        position += tensor.numel()
    return parts
