"""Clipped updates and what they promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flgen.errors import UsageError
from flgen.privacy.update_privacy import UpdatePrivacy


def test_a_long_update_is_scaled_to_the_clip_and_a_short_one_left_alone() -> None:
    privacy = UpdatePrivacy(update_clip=2.0)
    scaled, clipped = privacy.clip(torch.tensor([3.0, 4.0]))
    assert clipped
    torch.testing.assert_close(scaled, torch.tensor([1.2, 1.6]))
    for short in (torch.tensor([1.0, 1.5]), torch.tensor([0.1, 0.2]), torch.zeros(2)):
        kept, clipped = privacy.clip(short)
        assert not clipped
        assert torch.equal(kept, short)


def test_rounding_before_the_sum_counts_as_movement() -> None:
    privacy = UpdatePrivacy(update_clip=2.0)
    assert privacy.sensitivity(100, 0.0) == 2.0
    assert privacy.sensitivity(100, 0.25) == pytest.approx(2.0 + 10 * 0.125)
    # No rounding to the nearest multiple moves a vector farther than that.
    update = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(((update / 0.25).round() * 0.25 - update).norm()) < 10 * 0.125


def test_the_record_says_who_is_hidden_and_by_what() -> None:
    record = UpdatePrivacy(update_clip=0.5).record()
    assert record["unit"] == "client"
    assert record["clip"] == 0.5
    assert record["sensitivity"].startswith("S = 0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_clip": 0.0}, "--method.privacy.update_clip is 0.0: give a number above 0"),
        ({"epsilon": -1.0}, "--method.privacy.epsilon is -1.0"),
        ({"delta": 1.0}, "--method.privacy.delta is 1.0"),
        ({"epsilon": None}, "--method.privacy: give .epsilon"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UpdatePrivacy(**options)
