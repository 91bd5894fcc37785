"""Batch normalisation of a single value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flgen.models.batch_norm import BatchNorm


def normalised() -> tuple[BatchNorm, nn.BatchNorm2d]:
    """Ours and PyTorch's with equal weights and statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for tensor in (*ours.parameters(), ours.running_mean, ours.running_var):
        tensor.data.uniform_(0.5, 1.5, generator=generator)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("training", [True, False])
def test_several_values_are_normalised_as_pytorch_does(training):
    ours, theirs = (norm.train(training) for norm in normalised())
    maps = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(maps), theirs(maps))
    assert all(torch.equal(one, other) for one, other in zip(ours.buffers(), theirs.buffers(), strict=True))


def test_of_one_value_the_running_statistics_are_used_and_stay_as_they_are():
    ours, theirs = normalised()
    maps = torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="more than 1 value"):
        theirs.train()(maps)
    before = [buffer.clone() for buffer in ours.buffers()]
    assert torch.equal(ours.train()(maps), theirs.eval()(maps))
    assert all(torch.equal(one, other) for one, other in zip(before, ours.buffers(), strict=True))
