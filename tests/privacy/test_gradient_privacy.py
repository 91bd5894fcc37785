"""A batch of clipped gradients never moves further than the sensitivity says, and can move as far."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flgen.errors import UsageError
from flgen.privacy.gradient_privacy import GradientPrivacy


def test_gradients_longer_than_the_clip_are_shortened_and_others_left_alone() -> None:
    g = torch.zeros(3, 1, 2, 2)
    g[0, 0, 0] = torch.tensor([3.0, 4.0])
    g[1, 0, 0] = torch.tensor([0.3, 0.4])
    clipped, share = GradientPrivacy(gradient_clip=1.0).clip_each(g)
    assert torch.allclose(clipped[0, 0, 0], torch.tensor([0.6, 0.8]))
    assert torch.equal(clipped[1:], g[1:])
    assert share == pytest.approx(1 / 3)


@pytest.mark.parametrize("scale", [1e-30, 0.1, 1.0, 1e20])
def test_no_two_batches_lie_further_apart_than_the_sensitivity(scale: float) -> None:
    privacy = GradientPrivacy(gradient_clip=0.5)
    draws = torch.Generator().manual_seed(1)
    for _ in range(20):
        a, b = (privacy.clip_each(scale * torch.randn(8, 3, 4, 4, generator=draws))[0].double() for _ in range(2))
        assert float((a - b).norm()) <= privacy.sensitivity(8) * (1 + 1e-6)


def test_opposite_gradients_attain_it() -> None:
    privacy = GradientPrivacy(gradient_clip=0.5)
    g = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 100
    apart = float((privacy.clip_each(g)[0].double() - privacy.clip_each(-g)[0].double()).norm())
    assert apart == pytest.approx(privacy.sensitivity(8), rel=1e-6)
    assert privacy.sensitivity(8) == pytest.approx(2 * 0.5 * math.sqrt(8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient_clip": 0.0}, "--method.privacy.gradient_clip is 0.0: give a number above 0"),
        ({"epsilon": None}, "--method.privacy: give .epsilon (a budget), .noise_multiplier, or both"),
        ({"delta": 1.0}, "--method.privacy.delta is 1.0: give a share between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        GradientPrivacy(**options)
    assert str(caught.value) == said
