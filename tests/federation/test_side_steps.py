"""Optimisers beside the module's own: a step each, clipped each by itself, on fresh gradients."""

from __future__ import annotations

import pytest
import torch

from flgen.federation.side_steps import side_steps


@pytest.mark.parametrize(("clip_norm", "moved"), [(None, ([3.0, 4.0], [0.5])), (1.0, ([0.6, 0.8], [0.5]))])
def test_each_gradient_is_clipped_by_itself(clip_norm: float | None, moved: tuple[list[float], list[float]]) -> None:
    a, b = (torch.zeros(n, requires_grad=True) for n in (2, 1))
    optimizers = [torch.optim.SGD([tensor], lr=1.0) for tensor in (a, b)]
    step = side_steps(*optimizers, clip_norm=clip_norm)
    for times in (1, 2):
        (-(a * torch.tensor([3.0, 4.0])).sum() - 0.5 * b.sum()).backward()
        step()
        for tensor, expected in zip((a, b), moved, strict=True):
            assert tensor.tolist() == pytest.approx([times * each for each in expected], rel=1e-5)


def test_gradients_that_an_interrupted_step_left_are_forgotten() -> None:
    a = torch.zeros(1, requires_grad=True)
    a.grad = torch.tensor([100.0])
    step = side_steps(torch.optim.SGD([a], lr=1.0), clip_norm=None)
    (-2 * a).sum().backward()
    step()
    assert a.tolist() == [2]
