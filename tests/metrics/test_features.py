from __future__ import annotations

import pytest
import torch

from flgen.errors import UsageError
from flgen.metrics.extractors import FeatureExtractor
from flgen.metrics.features import extract_features, interleave


class RowMeans(torch.nn.Module):
    """Features that also tell how large the batch was."""

    def forward(self, images):
        means = images.float().mean(dim=(1, 3))
        return torch.cat([means, torch.full((len(images), 1), float(len(images)))], dim=1)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (23, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_any_number_of_ranks_gives_the_same_bits(images, ranks, digits_extractor):
    for extractor in (RowMeans(), digits_extractor):
        whole = extract_features(extractor, images, batch_size=5, device="cpu")
        parts = [
            extract_features(extractor, images, batch_size=5, device="cpu", shard=(rank, ranks))
            for rank in range(ranks)
        ]
        assert torch.equal(interleave(parts, len(images), 5), whole)


def test_features_keep_the_order_of_the_images(images):
    features = extract_features(RowMeans(), images, batch_size=5, device="cpu")
    assert torch.equal(features[:, :4], images.float().mean(dim=(1, 3)))
    assert features[:, 4].tolist() == [5.0] * 20 + [3.0] * 3


def test_a_rank_takes_every_nth_batch(images):
    part = extract_features(RowMeans(), images, batch_size=5, device="cpu", shard=(1, 2))
    own = torch.cat([images[5:10], images[15:20]])
    assert torch.equal(part[:, :4], own.float().mean(dim=(1, 3)))


def test_a_rank_without_a_batch_returns_no_rows_of_the_right_length(images):
    part = extract_features(RowMeans(), images, batch_size=20, device="cpu", shard=(3, 4))
    assert part.shape == (0, 5)
    assert part.dtype == torch.float32


def test_no_gradient_is_recorded(images):
    linear = torch.nn.Sequential(RowMeans(), torch.nn.Linear(5, 2))
    assert not extract_features(FeatureExtractor("linear", linear), images, device="cpu").requires_grad


def test_no_images_is_an_error_that_names_the_option(images):
    with pytest.raises(UsageError, match=r"--evaluation\.images"):
        extract_features(RowMeans(), images[:0], device="cpu")


def test_parts_that_do_not_fit_are_refused(images):
    features = extract_features(RowMeans(), images, batch_size=5, device="cpu")
    with pytest.raises(ValueError, match=r"\[23\] images where \[24\]"):
        interleave([features], 24, 5)
    with pytest.raises(ValueError, match=r"\[20, 3\] images where \[13, 10\]"):
        interleave([features[:20], features[20:]], 23, 5)
