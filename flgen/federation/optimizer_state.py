"""An optimiser's moments as part of a client's state: they stay with the client while the optimiser is shared."""

from __future__ import annotations

import torch
from torch import Tensor

PREFIX = "optimizer."


def load(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Let an optimiser over one parameter go on with a client's moments, or start afresh if it has none.

    Args:
        optimizer: Over a single (flat) parameter.
        state: The client's state; the optimiser changes these tensors in place.
    """
    parameter = _only_parameter(optimizer)
    moments = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    optimizer.state[parameter] = moments


def store(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Put the optimiser's moments into a client's state, and forget them."""
    parameter = _only_parameter(optimizer)
    for name, tensor in optimizer.state.pop(parameter).items():
        state[PREFIX + name] = tensor


def _only_parameter(optimizer: torch.optim.Optimizer) -> Tensor:
    ((parameter,),) = (group["params"] for group in optimizer.param_groups)
    return parameter
