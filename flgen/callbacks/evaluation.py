"""Evaluation: how good are the images that the method draws, or how accurate its model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from flgen.data.image_data import ImageData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flgen.data.labelled_data import LabelledData
    from flgen.metrics import extractors as extractor_registry
    from flgen.metrics import features as feature_extraction
    from flgen.metrics import fidelity
    from flgen.topology.channel import Channel
else:
    torch = deferred_module("torch")
    extractor_registry = deferred_module("flgen.metrics.extractors")
    feature_extraction = deferred_module("flgen.metrics.features")
    fidelity = deferred_module("flgen.metrics.fidelity")

SERVER_RANK = 0


class Evaluation:
    """When and how a run is evaluated.

    Args:
        every: Evaluate after round 1, after every so many rounds, and after the last one.
        images: Number of generated images, and at most as many real ones.
        extractors: Names of feature extractors; each gives its own FID, KID and so on. None means the small
            classifier that is trained on the data set in use and named after it (digits, mnist, ...).
        neighbours: k of precision, recall, density and coverage.
        reference: Which split of the data set the generated images are compared with.
        weights: Path of the weights by extractor, for those that do not train their own (inception,
            inception_torchvision); without one they are downloaded once.
        cache_dir: Where trained extractors are kept; None means ~/.cache/flgen.
        batch_size: Images per extractor batch.
        grid: Number of images in a sample grid.
        personal: Whether every client's model is tested on test data of the client's own, for methods that have such.
        gradient_diversity: Whether every round measures how far apart the clients' updates lie (diversity/gradient, its
            product with the cohort's size, mean cosine), for methods whose clients send weights to a server. The server
            itself could not measure it under secure aggregation; here it looks over the clients' shoulders.
    """

    def __init__(
        self,
        every: int = 5,
        images: int = 1000,
        extractors: list[str] | None = None,
        neighbours: int = 5,
        reference: Literal["test", "train"] = "test",
        weights: dict[str, str] | None = None,
        cache_dir: str | None = None,
        batch_size: int = 256,
        grid: int = 64,
        personal: bool = True,
        gradient_diversity: bool = False,
    ) -> None:
        for option, value in {"every": every, "images": images, "batch_size": batch_size, "grid": grid}.items():
            if value < 1:
                raise UsageError(f"--evaluation.{option} is {value}: give 1 or more")
        self.every = every
        self.images = images
        self.extractors = extractors
        self.neighbours = neighbours
        self.reference = reference
        self.weights = weights
        self.cache_dir = cache_dir
        self.batch_size = batch_size
        self.grid = grid
        self.personal = personal
        self.gradient_diversity = gradient_diversity
        self._loaded: dict[str, nn.Module] = {}
        self._real: dict[str, Tensor] = {}

    def due(self, t: int, rounds: int) -> bool:
        """Return whether round t of `rounds` ends with an evaluation."""
        return t == 1 or t % self.every == 0 or t == rounds

    def prepare(self, data: LabelledData) -> None:
        """Load the extractors (and train the data set's own on first use), before any process is started.

        Raises:
            UsageError: Data that are no images, unknown extractor, or too few images for the neighbours asked for.
            FlgenError: Weights that cannot be had.
        """
        if not isinstance(data, ImageData):
            raise UsageError(
                f"--data {type(data).__name__} holds {data.noun}, but generated images are compared with images: give "
                "--data a set of images"
            )
        names = self.extractors if self.extractors is not None else [data.name]
        weights = self.weights or {}
        unused = set(weights) - set(names)
        if unused:
            raise UsageError(
                f"--evaluation.weights.{min(unused)} is given, but --evaluation.extractors is {', '.join(names)}: "
                "name the same extractor in both"
            )
        real = len(getattr(data, self.reference))
        if names and self.neighbours >= min(self.images, real):
            raise UsageError(
                f"--evaluation.neighbours is {self.neighbours}: it must be less than the number of images compared "
                f"({self.images} generated, {real} real)"
            )
        self._loaded = {
            name: extractor_registry.load_extractor(
                name, data=data, weights=weights.get(name), cache_dir=self.cache_dir
            )
            for name in names
        }

    def measure(
        self,
        samples: Mapping[str, Tensor] | None,
        data: LabelledData,
        channel: Channel,
        device: torch.device,
        seed: int,
    ) -> dict[str, float]:
        """Return the fidelity of generated images; every rank must call it and extracts features of its share.

        Args:
            samples: On the server: uint8 images (n, C, H, W) by kind, the headline kind first. None elsewhere.
            data: Where the real images come from.
            channel: Joins the ranks.
            device: Where features are computed.
            seed: Of KID's subsets.

        Returns:
            On the server: `fid/<extractor>` and its siblings for the headline kind, and
            `test/<kind>/fid/<extractor>` and so on for every kind. Nothing elsewhere.
        """
        kinds = channel.agree(None if samples is None else list(samples))[SERVER_RANK]
        metrics: dict[str, float] = {}
        for name, extractor in self._loaded.items() if kinds else ():
            extractor.to(device)
            if name not in self._real:
                real = getattr(data, self.reference).images[: self.images]
                self._real[name] = self._features(extractor, real, channel, device)
            for kind in kinds:
                fake = self._features(extractor, self._share(samples, kind, channel), channel, device)
                if channel.rank != SERVER_RANK:
                    continue
                values = fidelity.fidelity(self._real[name], fake, k=self.neighbours, seed=seed)
                named = fidelity.fidelity_metrics(values, name)
                if kind == kinds[0]:
                    metrics.update(named)
                metrics.update({f"test/{kind}/{metric}": value for metric, value in named.items()})
        return metrics

    def _share(self, samples: Mapping[str, Tensor] | None, kind: str, channel: Channel) -> Tensor:
        """Give every rank the server's images of one kind."""
        images = None if samples is None else samples[kind]
        shape = channel.agree(None if images is None else tuple(images.shape))[SERVER_RANK]
        message = None if images is None else images.contiguous().view(-1)
        return channel.broadcast(message, SERVER_RANK).view(shape)

    def _features(self, extractor: nn.Module, images: Tensor, channel: Channel, device: torch.device) -> Tensor:
        """Return the features of all images on the server; batches are fixed, so the bits are, too."""
        shard = (channel.rank, channel.world_size)
        part = feature_extraction.extract_features(
            extractor, images, batch_size=self.batch_size, device=device, shard=shard
        )
        parts = channel.gather_tensors(part, SERVER_RANK)
        if channel.rank != SERVER_RANK:
            return part
        return feature_extraction.interleave(parts, len(images), self.batch_size)
