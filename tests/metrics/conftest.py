from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits

from flgen.metrics.extractors import FeatureExtractor, load_extractor


@dataclass
class LabelledDataSet:
    """The attributes of a data module that extractors use."""

    name: str
    classes: int
    train: SimpleNamespace
    test: SimpleNamespace


@pytest.fixture(scope="session")
def digits() -> LabelledDataSet:
    source = load_digits()
    images = torch.from_numpy(source.images * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(source.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return LabelledDataSet(
        "digits",
        10,
        SimpleNamespace(images=images[train], labels=labels[train]),
        SimpleNamespace(images=images[test], labels=labels[test]),
    )


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("extractors")


@pytest.fixture(scope="session")
def digits_extractor(digits, digits_cache) -> FeatureExtractor:
    return load_extractor("digits", data=digits, cache_dir=digits_cache)
