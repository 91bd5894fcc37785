"""The registry of feature extractors: Inception networks, classifiers trained on the data set, and the user's own.

    register_extractor("mine", lambda data: MyModule())
    features = load_extractor("mine", data=digits)(images)

The name of an extractor is part of the name of every metric computed with it, such as `fid/mine`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flgen.errors import UsageError

log = logging.getLogger("flgen")

PRETRAINED = ("inception", "inception_torchvision")
TRAINED = ("digits", "mnist", "fashion_mnist", "cifar10", "celeba")
_registered: dict[str, Callable[[Any], nn.Module]] = {}


class FeatureExtractor(nn.Module):
    """Any network as a feature extractor: uint8 images in, float32 features out, always in evaluation mode.

    Args:
        name: Name it is registered under.
        network: Maps images (B, C, H, W) uint8 to (B, ...); everything after the first dimension is flattened.

    Attributes:
        accuracy: Share of held-out images classified correctly, for a trained extractor; else None.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.accuracy: float | None = getattr(network, "accuracy", None)
        self.eval()

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode: features must not depend on the batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) uint8 of any size to features (B, F) float32."""
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"uint8 images (B, C, H, W) expected, got {images.dtype} {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            features = self.network(images)
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(images):
            given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UsageError(
                f"the extractor '{self.name}' returned {given} for {len(images)} images: "
                "it must return one tensor (images, features)"
            )
        return features.flatten(1).float()


def register_extractor(name: str, factory: Callable[[Any], nn.Module]) -> None:
    """Make a network available as `--evaluation.extractors name`; registering a name again replaces its factory.

    Args:
        name: Letters, digits, `_`, `.` and `-`; not the name of a built-in extractor.
        factory: Called with the data module (or None), returns a module that maps uint8 images (B, C, H, W) to
            features (B, F). It is called on every process: random weights are drawn from the same seed on each.

    Raises:
        UsageError: The name is malformed or taken by a built-in extractor.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise UsageError(f"an extractor cannot be called {name!r}: use letters, digits, '_', '.' and '-'")
    if name in PRETRAINED or name in TRAINED:
        raise UsageError(f"the extractor '{name}' is built in: register yours under another name")
    _registered[name] = factory


def extractor_names() -> list[str]:
    """Return the names of all extractors; a trained one also exists for any other data set, under its name."""
    return sorted({*PRETRAINED, *TRAINED, *_registered})


def load_extractor(
    name: str,
    *,
    data: Any = None,
    weights: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FeatureExtractor:
    """Return a feature extractor on the CPU, ready to use.

    Args:
        name: `inception`, `inception_torchvision`, a registered name, or the name of the data set at hand, for a
            classifier that is trained on it once and cached.
        data: Data module; needed by trained extractors, handed to the factory of a registered one.
        weights: Path of the state dict of an Inception network; None downloads it once.
        cache_dir: Folder of trained extractors; default `$FLGEN_CACHE/extractors`, else `~/.cache/flgen/extractors`.

    Raises:
        UsageError: There is no such extractor, it belongs to another data set, or it reads no weights.
        FlgenError: Weights are missing or damaged.
    """
    data_name = getattr(data, "name", None)
    if weights is not None and name not in PRETRAINED:
        raise UsageError(f"the extractor '{name}' reads no weights: leave out --evaluation.weights.{name}")
    with torch.random.fork_rng(devices=[]):  # constructors draw weights: leave the caller's generator alone
        torch.default_generator.manual_seed(0)
        if name in _registered:
            network = _registered[name](data)
            if not isinstance(network, nn.Module):
                raise UsageError(
                    f"the factory of the extractor '{name}' returned a {type(network).__name__}, no module"
                )
        elif name == "inception":
            from flgen.metrics.inception import Inception

            network = Inception(weights)
        elif name == "inception_torchvision":
            from flgen.metrics.inception import TorchvisionInception

            network = TorchvisionInception(weights)
        elif name == data_name:
            from flgen.metrics.trained import trained_extractor

            network = trained_extractor(data, cache_dir)
        else:
            raise UsageError(_no_extractor(name, data_name))
    return FeatureExtractor(name, network)


def _no_extractor(name: str, data_name: str | None) -> str:
    if name in TRAINED and data_name is None:
        return f"the extractor '{name}' is trained on the data set '{name}', which was not given: pass it as data"
    if name in TRAINED:
        return (
            f"the extractor '{name}' is trained on the data set '{name}' and the data set here is '{data_name}': "
            f"use --evaluation.extractors {data_name}"
        )
    names = sorted({*extractor_names(), *([data_name] if data_name else [])})
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return f"there is no extractor '{name}': did you mean '{nearest}'? (available: {', '.join(names)})"
