"""Tensors that are trained beside a module: their optimisers step on gradients of the module's own backward pass."""

from __future__ import annotations

from collections.abc import Callable

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import torch
else:
    torch = deferred_module("torch")


def side_steps(*optimizers: torch.optim.Optimizer, clip_norm: float | None) -> Callable[[], None]:
    """Return an `after_step` of local training that takes a step with each optimiser; forget old gradients now.

    Args:
        *optimizers: Over tensors that the loss depends on, none of which is the module's.
        clip_norm: Largest L2 norm of the gradient of all tensors of one optimiser; null does not clip.
    """
    for optimizer in optimizers:
        optimizer.zero_grad()

    def step() -> None:
        for optimizer in optimizers:
            if clip_norm is not None:
                trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
                torch.nn.utils.clip_grad_norm_(trained, clip_norm)
            optimizer.step()
            optimizer.zero_grad()

    return step
