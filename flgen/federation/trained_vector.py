"""One flat parameter behind a network's weights: what an optimiser steps and what a client's state keeps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flgen.federation.flat_parameters import flatten_in_place


class TrainedVector:
    """Parameters in one vector; each of them, and its gradient, is a view of it.

    Moving the network (`.to`, `.cuda`, `.double`) afterwards cuts the views.

    Args:
        parameters: All of one dtype, in the order of the vector.

    Attributes:
        vector: Their values, a parameter (d,): what an optimiser, the wire and a change of client touch.
        grad: The gradient (d,); `vector.grad` is this tensor.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self.vector = nn.Parameter(flatten_in_place(self._parameters))
        self.grad = torch.zeros_like(self.vector, requires_grad=False)
        self.vector.grad = self.grad
        parts = self.grad.split([parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def load(self, values: Tensor) -> None:
        """Overwrite all parameters with `values`, float (d,)."""
        with torch.no_grad():
            self.vector.copy_(values)

    def copy(self) -> Tensor:
        """Return the parameters as they are now, (d,)."""
        return self.vector.detach().clone()

    def backward(self, outputs: Tensor, upstream: Tensor | None = None) -> None:
        """Write the gradient of a loss to `vector.grad`, over whatever was there, so that there is nothing to zero.

        `loss.backward()` works too and adds to `grad`; then zero it with `grad.zero_()`, since
        `optimiser.zero_grad()` would take `vector.grad` away without clearing the parameters' views.

        Args:
            outputs: A scalar loss of a forward pass, or something that a loss depends on, such as generated images.
            upstream: In the second case, the loss's gradient with respect to it, of its shape.
        """
        gradients = torch.autograd.grad(outputs, self._parameters, upstream)
        torch.cat([gradient.flatten() for gradient in gradients], out=self.grad)
        self.vector.grad = self.grad
