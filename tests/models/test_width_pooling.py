"""Pooling of features to a width: the bins of the specification, and no weights."""

from __future__ import annotations

import math

import pytest
import torch

from flgen.models.width_pooling import WidthPooling


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1, 2, 3, 4, 5], [1.5, 3, 4.5]),
        ([1, 2, 4], [1, 1.5, 3, 4]),
        ([1, 5], [1, 1, 1, 5, 5, 5]),
    ],
)
def test_the_numbers_of_the_specification(before, after):
    # fedktl.md, 9.13.
    z = WidthPooling(len(after))(torch.tensor([before], dtype=torch.float64))
    assert z.tolist() == [after]


@pytest.mark.parametrize("length", [64, 128, 256, 512, 768, 1024, 1280, 2048])
def test_every_bin_is_the_mean_of_its_elements(length):
    generator = torch.Generator().manual_seed(length)
    z = torch.randn(3, length, dtype=torch.float64, generator=generator)
    bins = [z[:, j * length // 512 : math.ceil((j + 1) * length / 512)].mean(dim=1) for j in range(512)]
    torch.testing.assert_close(WidthPooling(512)(z), torch.stack(bins, dim=1))


def test_its_own_width_is_left_as_it_is():
    z = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    assert torch.equal(WidthPooling(512)(z), z)


def test_narrow_features_are_repeated():
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(WidthPooling(512)(z), z.repeat_interleave(8, dim=1))


def test_nothing_is_learnt():
    assert list(WidthPooling(512).state_dict()) == []
