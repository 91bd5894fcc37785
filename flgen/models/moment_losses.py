"""Losses that match moments of deep features (PRISM, sections 3.2, 3.3 and 6.2).

mu_k, var_k (or, released once with noise, m1, m2) of client k's images are all that is ever used of them:
a, b = the same of a batch of fakes ; v <- AdamStep(v towards target - [a; b]) ; L = <v, target - [a; b]>
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

from flgen.data.digits import Digits
from flgen.data.image_data import ImageData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.models.losses import Loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.data import image_set
    from flgen.data.client_data import ClientData
    from flgen.metrics import trained
    from flgen.models import moments, statistics_cache, vgg
    from flgen.models.classifier_features import ClassifierFeatures
    from flgen.models.vgg import VggFeatures
else:
    torch = deferred_module("torch")
    image_set = deferred_module("flgen.data.image_set")
    moments = deferred_module("flgen.models.moments")
    statistics_cache = deferred_module("flgen.models.statistics_cache")
    trained = deferred_module("flgen.metrics.trained")
    vgg = deferred_module("flgen.models.vgg")

log = logging.getLogger("flgen")

Matching = Literal["ama", "instant", "two_batch"]
Start = Literal["zero", "random"]


class MomentMatching(Loss):
    """Matches moments of features of the fakes to those of a client's images, which are read once.

    The moments are mean and variance. With a `release` they are the means of bounded features and bounded squares of
    features, and what is kept of the client's images is their noisy release.

    Args:
        matching: What the differences of moments are multiplied with: ama, a moving average of them; instant, those
            of the same batch; two_batch, those of the other half of the batch, which is unbiased.
        v_init: Start of the moving average: zero, or random U(-1/sqrt(D), 1/sqrt(D)).
        v_lr: Adam's learning rate of the moving average.
        batch_size: Real images per batch when their moments are taken.
        cache_dir: Folder in which the clients' moments are kept for later runs; None keeps none.

    Raises:
        UsageError: The batch size is less than 2.
    """

    can_release = True

    mode: Literal["eval", "train"] | None = "eval"
    """Whether the network's batch normalisation uses its own statistics, or those of each batch."""

    def __init__(
        self, matching: Matching | None, v_init: Start | None, v_lr: float, batch_size: int, cache_dir: str | None
    ) -> None:
        if batch_size < 2:
            raise UsageError(f"--model.loss.batch_size {batch_size}: it must be at least 2")
        self.matching, self.v_init, self.v_lr = matching, v_init, v_lr
        self.batch_size = batch_size
        self.cache_dir = cache_dir

    @abstractmethod
    def features(self, images: Tensor, *, real: bool = False) -> list[Tensor]:
        """Return what the network sees in images: non-negative tensors (B, ...), one for each layer.

        Args:
            images: (B, C, H, W) in [-1, 1]; gradients flow through them.
            real: Whether they are a client's.

        Raises:
            UsageError: The network cannot look at such images.
        """

    @abstractmethod
    def feature_recipe(self) -> dict[str, Any]:
        """Return all that the features of given real images depend on, as values that JSON has, for a cache's key."""

    def check_private(self) -> None:
        """Refuse a network in whose eyes one record changes the others.

        Raises:
            UsageError: Its batch normalisation uses the statistics of each batch.
        """
        if self.mode == "train":
            raise UsageError(
                "--model.loss.mode train: one image changes the features of its whole batch, so that no noise of "
                "--method.privacy hides it: use --model.loss.mode eval"
            )

    def prepare(self, data: ClientData, generator: torch.Generator, client: int = 0) -> dict[str, Tensor]:
        """Return the client's moments `target` (2, D) and, for `ama`, the moving average `v` (2, D) with Adam's state.

        Row 0 is the mean of each feature, row 1 its variance; with a release, m1 and m2 with their noise.

        Raises:
            UsageError: The network cannot look at the images, there is only one, there are too few for a release, or
                no release would protect them.
            FlgenError: The network's weights are not to be had.
        """
        if data.samples < 2:
            raise UsageError(
                f"{type(self).__name__} needs at least two images per client: change --partition or the clients' number"
            )
        self.load()
        with torch.no_grad():
            if self.release is not None:
                target = self._released_means(data, generator, client)
            elif self.cache_dir is not None:
                target = self._cached_moments(data, generator, self.cache_dir)
            else:
                target = self._moments(data, generator)
        state = {"target": target, "distance": target.new_zeros(())}
        if self.matching == "ama":
            state["v"] = torch.zeros_like(target)
            if self.v_init == "random":
                bound = target.shape[1] ** -0.5
                state["v"] = torch.empty(target.shape).uniform_(-bound, bound, generator=generator).to(target.device)
            state["v_first"], state["v_second"] = torch.zeros_like(target), torch.zeros_like(target)
            state["v_step"] = torch.zeros((), dtype=torch.int64, device=target.device)
        return state

    def __call__(self, fake: Tensor, state: dict[str, Tensor], real: Tensor | None = None) -> Tensor:
        """Return the matching loss; with `ama` it takes one step of the moving average first.

        Raises:
            UsageError: The batch is too small for its moments.
        """
        parts = 2 if self.matching == "two_batch" else 1
        least = parts if self.release is not None else 2 * parts
        if len(fake) < least:
            raise UsageError(f"matching {self.matching} needs batches of at least {least} images, not {len(fake)}")
        target = state["target"]
        features = self.features(fake)
        if self.matching == "two_batch":
            half = len(fake) // 2
            one = self._moments_of_batch([feature[:half] for feature in features])
            other = self._moments_of_batch([feature[half:] for feature in features])
            state["distance"].copy_(moments.moment_distance(target, (one + other) / 2))
            crossed = moments.linearised_loss(target - other, target, one)
            return (crossed + moments.linearised_loss(target - one, target, other)) / 2
        ours = self._moments_of_batch(features)
        difference = target - ours.detach()
        state["distance"].copy_(moments.moment_distance(target, ours))
        if self.matching == "instant":
            return moments.linearised_loss(difference, target, ours)
        moments.moving_average_step(
            state["v"], state["v_first"], state["v_second"], state["v_step"], difference, learning_rate=self.v_lr
        )
        return moments.linearised_loss(state["v"], target, ours)

    def _moments_of_batch(self, features: Sequence[Tensor]) -> Tensor:
        """Return what stands against `target` for a batch of fakes, (2, D)."""
        if self.release is None:
            return moments.feature_moments(features)
        return self.release.bounded_sums(features) / len(features[0])

    def _real_features(self, data: ClientData, generator: torch.Generator) -> Iterator[list[Tensor]]:
        """Yield the features of all of a client's images, batch by batch."""
        for images, _ in data.batches(self.batch_size, generator, epochs=1):
            yield self.features(image_set.to_unit_range(images), real=True)

    def _moments(self, data: ClientData, generator: torch.Generator) -> Tensor:
        """Return mu_k and var_k."""
        stream = moments.StreamingMoments()
        for features in self._real_features(data, generator):
            stream.add(features)
        return stream.moments()

    def _released_means(self, data: ClientData, generator: torch.Generator, client: int) -> Tensor:
        """Return [m1; m2] + N(0, (z S)^2); what it is made from is forgotten."""
        assert self.release is not None
        self.check_private()
        n_k, layers = data.samples, 0
        sums: Tensor | None = None
        self.release.check_records(n_k, client)
        for features in self._real_features(data, generator):
            self.release.check_features(features)
            batch = self.release.bounded_sums(features, torch.float64)
            sums = batch if sums is None else sums.add_(batch)
            layers = len(features)
        assert sums is not None
        return self.release.release(sums.div_(n_k), n_k, client, layers)

    def _cached_moments(self, data: ClientData, generator: torch.Generator, folder: str) -> Tensor:
        """Return mu_k and var_k from the disk, or put them there; the generator ends in the same state either way."""
        cache, before, ordered = statistics_cache.StatisticsCache(folder), generator.get_state(), self.mode == "train"
        first, _ = next(iter(data.in_order(1)))
        batches = (images for images, _ in data.batches(self.batch_size, generator, epochs=1))
        key = {
            "images": statistics_cache.digest_of_images(batches, ordered=ordered),
            "batch_size": self.batch_size if ordered else None,
            "features": self.feature_recipe(),
            "arithmetic": statistics_cache.arithmetic_of(first.device),
        }
        target = cache.read(key)
        if target is None:
            generator.set_state(before)
            target = self._moments(data, generator)
            cache.write(key, target)
        return target.to(first.device)


class VggMoments(MomentMatching):
    """Matches mean and variance of VGG19-BN features to those of the client's images (PRISM, section 3).

    The client's images are read once; afterwards only their moments are used. Settings left at null are those of the
    method's preset.

    Args:
        weights: imagenet (torchvision's, downloaded once), the path of a state dict, or random (for trials).
        mode: Batch normalisation of the VGG: eval uses its own statistics, train those of each batch.
        real_range: Input range of real colour images: imagenet as for the fakes, symmetric [-1, 1] as the authors do.
        matching: What the differences of moments are multiplied with: ama, a moving average of them; instant, those
            of the same batch; two_batch, those of the other half of the batch, which is unbiased.
        v_init: Start of the moving average: zero, or random U(-1/sqrt(D), 1/sqrt(D)).
        v_lr: Adam's learning rate of the moving average.
        batch_size: Real images per batch when their moments are taken.
        cache_dir: Folder in which the clients' moments are kept, so that a later run on the same images need not take
            them again. They are statistics of private images, in the clear: a private run wants null, which keeps none.

    Raises:
        UsageError: The batch size is less than 2.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "reference": {"mode": "train", "real_range": "symmetric", "matching": "ama", "v_init": "random"},
        # What the paper prints could not be read. This takes its description at its word: an MMD whose kernel is a
        # pretrained VGG, used as such networks are meant to be, without a moving average.
        "paper": {"mode": "eval", "real_range": "imagenet", "matching": "instant", "v_init": "zero"},
        "fixed": {"mode": "eval", "real_range": "imagenet", "matching": "ama", "v_init": "zero"},
    }

    def __init__(
        self,
        weights: str = "imagenet",
        mode: Literal["eval", "train"] | None = None,
        real_range: Literal["imagenet", "symmetric"] | None = None,
        matching: Literal["ama", "instant", "two_batch"] | None = None,
        v_init: Literal["zero", "random"] | None = None,
        v_lr: float = 1e-5,
        batch_size: int = 64,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(matching, v_init, v_lr, batch_size, cache_dir)
        self.weights = weights
        self.mode, self.real_range = mode, real_range
        self._vgg: VggFeatures | None = None
        self._digest: str | None = None

    def load(self) -> None:
        """Load the VGG's weights.

        Raises:
            FlgenError: They are not to be had.
        """
        if self._vgg is None:
            self.adopt("fixed")  # for who uses the loss without a method
            self._vgg = vgg.load_features(self.weights, cast(Any, self.mode))

    def features(self, images: Tensor, *, real: bool = False) -> list[Tensor]:
        """Return the 16 ReLU outputs, each (B, channels, h, w) (section 3.1)."""
        network = self._network(images)
        return network(vgg.vgg_input(images, cast(Any, self.real_range if real else "imagenet")))

    def feature_recipe(self) -> dict[str, Any]:
        """Return the weights' digest, the mode and the input range."""
        self.load()
        assert self._vgg is not None
        if self._digest is None:
            self._digest = statistics_cache.digest_of(self._vgg.weights)
        return {"network": "vgg19_bn", "weights": self._digest, "mode": self.mode, "real_range": self.real_range}

    def _network(self, images: Tensor) -> VggFeatures:
        """Return the feature network on the device of `images`, after checking that it can look at them."""
        if images.shape[1] not in (1, 3) or min(images.shape[2:]) < vgg.SMALLEST_IMAGE:
            channels, height, width = images.shape[1:]
            raise UsageError(
                f"VggMoments cannot look at {channels}-channel images of {height}x{width}: it needs 1 or 3 channels "
                f"and at least {vgg.SMALLEST_IMAGE}x{vgg.SMALLEST_IMAGE} pixels (--model.loss KernelMMD takes any)"
            )
        self.load()
        assert self._vgg is not None
        return self._vgg.to(images.device)


class ClassifierMoments(MomentMatching):
    """Matches mean and variance of a small classifier's features to those of the client's images.

    For images that no pretrained network knows, or where a VGG costs too much. The classifier is trained once on the
    training images of a data set of its own, and cached (`$FLGEN_CACHE/extractors`). Nothing protects those images: if
    the run is to be private, that data set must be public and share no image with the run's. Images of other sizes are
    resized to that data set's. Settings left at null are those of the method's preset.

    Args:
        data: The public data set that the classifier is trained on; null is Digits.
        layers: all ReLU outputs, as of a VGG, or those of the last, the penultimate layer, alone.
        matching: What the differences of moments are multiplied with: ama, a moving average of them; instant, those
            of the same batch; two_batch, those of the other half of the batch, which is unbiased.
        v_init: Start of the moving average: zero, or random U(-1/sqrt(D), 1/sqrt(D)).
        v_lr: Adam's learning rate of the moving average.
        batch_size: Real images per batch when their moments are taken.
        cache_dir: Folder in which the clients' moments are kept, so that a later run on the same images need not take
            them again. They are statistics of private images, in the clear: a private run wants null, which keeps none.

    Raises:
        UsageError: The batch size is less than 2.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        preset: {option: values[option] for option in ("matching", "v_init")}
        for preset, values in VggMoments.presets.items()
    }

    def __init__(
        self,
        data: ImageData | None = None,
        layers: Literal["all", "last"] = "all",
        matching: Literal["ama", "instant", "two_batch"] | None = None,
        v_init: Literal["zero", "random"] | None = None,
        v_lr: float = 1e-5,
        batch_size: int = 64,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(matching, v_init, v_lr, batch_size, cache_dir)
        self.data = Digits() if data is None else data
        self.layers: Literal["all", "last"] = layers
        self._classifier: ClassifierFeatures | None = None
        self._digest: str | None = None

    def public_data(self) -> ImageData:
        """Read the classifier's data set, and return it.

        Raises:
            FlgenError: Its files are missing or damaged.
        """
        try:
            self.data.prepare_data()
            self.data.setup()
        except FlgenError as error:
            # A data set knows its options by the name of the section that the run's data have.
            raise type(error)(str(error).replace("--data.", "--model.loss.data.")) from error
        return self.data

    def load(self) -> None:
        """Read the classifier's data set and get the classifier from the cache, or train it.

        Raises:
            UsageError: The data set cannot be classified.
            FlgenError: Its files are missing or damaged.
        """
        from flgen.models.classifier_features import ClassifierFeatures

        if self._classifier is not None:
            return
        self.adopt("fixed")  # for who uses the loss without a method
        log.info(
            "--model.loss sees images through a classifier of '%s': if the run is to be private, that data set must "
            "be public",
            self.data.name,
        )
        data = self.public_data()
        with torch.random.fork_rng(devices=[]):  # constructors draw weights, which the trained ones replace
            torch.default_generator.manual_seed(0)
            extractor = trained.trained_extractor(data, option="--model.loss.data")
        self._classifier = ClassifierFeatures(extractor, self.layers)

    def features(self, images: Tensor, *, real: bool = False) -> list[Tensor]:
        """Return the chosen ReLU outputs: (B, channels, h, w) of each convolution, (B, 64) of the penultimate layer."""
        self.load()
        assert self._classifier is not None
        if images.shape[1] not in (1, self._classifier.channels):
            raise UsageError(
                f"ClassifierMoments looks through a classifier of '{self.data.name}', of {self._classifier.channels} "
                f"channel(s), at images of {images.shape[1]}: choose another --model.loss.data"
            )
        return self._classifier.to(images.device)(images)

    def feature_recipe(self) -> dict[str, Any]:
        """Return the digest of the weights, with the normalisation and size of the images, and the layers."""
        self.load()
        assert self._classifier is not None
        if self._digest is None:
            self._digest = statistics_cache.digest_of(self._classifier.weights)
        size = [self.data.channels, self.data.image_size]
        return {"network": "classifier", "weights": self._digest, "images": size, "layers": self.layers}
