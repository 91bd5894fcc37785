"""What a client minimises when it trains a generator: losses that the configuration can name.

A loss object holds settings and networks, never anything of a client. What belongs to one client is its *state*, a
dict of tensors that `prepare` makes once from the client's images and that a call may update in place. A method
keeps one state per client, checkpoints it, and moves it like any other client state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, cast

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.data.client_data import ClientData
    from flgen.models.vgg import VggFeatures
else:
    torch = deferred_module("torch")

_MEDIAN_SAMPLE = 512  # images whose pairwise distances give a client's median


class Loss(ABC):
    """A client's objective for generated images.

    Attributes:
        real_batch: Number of real images each step needs; 0 if the client's state says all about its images.
    """

    real_batch: int = 0

    @abstractmethod
    def prepare(self, data: ClientData, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the state of one client, made from its real images.

        Args:
            data: The client's images, uint8 (n, C, H, W).
            generator: Shuffles the images and draws initial values.

        Returns:
            Tensors on the device of the images. `distance` (0-d) is for the log: the value, at the last step, of the
            distance that the loss stands for.
        """

    @abstractmethod
    def __call__(self, fake: Tensor, state: dict[str, Tensor], real: Tensor | None = None) -> Tensor:
        """Return the scalar to minimise for one batch.

        Args:
            fake: Generated images (B, C, H, W) in [-1, 1]; gradients flow through them.
            state: The client's state, updated in place.
            real: `real_batch` real images, uint8 (R, C, H, W), if the loss asks for them.
        """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Values of this loss's options, per preset of the method, for options left at None."""

    def adopt(self, preset: str) -> None:
        """Fill in the options that were left to the method's preset (`reference`, `paper` or `fixed`)."""
        if self.presets and preset not in self.presets:
            raise UsageError(f"{type(self).__name__} has no preset {preset!r}: choose one of {', '.join(self.presets)}")
        for option, value in self.presets.get(preset, {}).items():
            if getattr(self, option) is None:
                setattr(self, option, value)

    def load(self) -> None:  # noqa: B027 - most losses need nothing from outside
        """Get what the loss needs from outside (weights), so that a lack of it is known before a run begins."""


class KernelMMD(Loss):
    """Squared maximum mean discrepancy on pixels, with a mixture of Gaussian kernels.

    Needs no network. Each step compares a fake batch with a real batch.

    Args:
        bandwidths: Standard deviations of the kernels, as multiples of the median distance between two images of the
            client.
        real_batch: Real images per step.
        unbiased: Leave out the pairs of an image with itself; the loss can then be slightly negative.

    Raises:
        UsageError: No bandwidth, one that is not positive, or fewer than one real image.
    """

    def __init__(
        self,
        bandwidths: list[float] = [0.15, 0.3, 0.6],  # noqa: B006 - copied, and the help shows it
        real_batch: int = 64,
        unbiased: bool = True,
    ) -> None:
        if not bandwidths or min(bandwidths) <= 0:
            raise UsageError(f"--model.loss.bandwidths {bandwidths}: give one or more positive numbers")
        if real_batch < 1:
            raise UsageError(f"--model.loss.real_batch {real_batch}: it must be at least 1")
        self.bandwidths = list(bandwidths)
        self.real_batch = real_batch
        self.unbiased = unbiased

    def prepare(self, data: ClientData, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `bandwidths` (k,) in pixel units and `distance`, the squared discrepancy of the last step."""
        from flgen.models.kernels import median_distance

        if data.samples < 2:
            raise UsageError(
                "KernelMMD needs at least two images per client: change --partition or the clients' number"
            )
        images, _ = next(iter(data.batches(min(data.samples, _MEDIAN_SAMPLE), generator, epochs=1)))
        median = median_distance(_symmetric(images).flatten(1))
        relative = torch.tensor(self.bandwidths, device=images.device)
        # Clients with identical images have a median of zero; one grey level then stands in for it.
        return {"bandwidths": relative * median.clamp_min(1 / 127.5), "distance": torch.zeros_like(median)}

    def __call__(self, fake: Tensor, state: dict[str, Tensor], real: Tensor | None = None) -> Tensor:
        """Return the estimate of the squared discrepancy between `fake` and `real`."""
        from flgen.models.kernels import squared_mmd

        if real is None:
            raise ValueError("KernelMMD compares with real images: pass `real_batch` of them")
        loss = squared_mmd(fake.flatten(1), _symmetric(real).flatten(1), state["bandwidths"], self.unbiased)
        state["distance"].copy_(loss.detach())
        return loss


class VggMoments(Loss):
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
    ) -> None:
        if batch_size < 2:
            raise UsageError(f"--model.loss.batch_size {batch_size}: it must be at least 2")
        self.weights = weights
        self.mode, self.real_range, self.matching, self.v_init = mode, real_range, matching, v_init
        self.v_lr = v_lr
        self.batch_size = batch_size
        self._features: VggFeatures | None = None

    def load(self) -> None:
        """Load the VGG's weights.

        Raises:
            FlgenError: They are not to be had.
        """
        from flgen.models.vgg import load_features

        if self._features is None:
            self.adopt("fixed")  # for who uses the loss without a method
            self._features = load_features(self.weights, cast(Any, self.mode))

    def prepare(self, data: ClientData, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the client's moments `target` (2, D) and, for `ama`, the moving average `v` (2, D) with Adam's state.

        Row 0 is the mean of each feature, row 1 its variance.

        Raises:
            UsageError: The images are not 1 or 3 channels of at least 16x16 pixels, or there is only one.
            FlgenError: The weights are not to be had.
        """
        from flgen.models.moments import StreamingMoments
        from flgen.models.vgg import vgg_input

        if data.samples < 2:
            raise UsageError(
                "VggMoments needs at least two images per client: change --partition or the clients' number"
            )
        stream = StreamingMoments()
        with torch.no_grad():
            for images, _ in data.batches(self.batch_size, generator, epochs=1):
                network = self._network(images)
                stream.add(network(vgg_input(_symmetric(images), cast(Any, self.real_range))))
        target = stream.moments()
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
            UsageError: The batch is too small for a variance.
        """
        from flgen.models.moments import feature_moments, linearised_loss, moment_distance, moving_average_step
        from flgen.models.vgg import vgg_input

        parts = 2 if self.matching == "two_batch" else 1
        if len(fake) < 2 * parts:
            raise UsageError(f"matching {self.matching} needs batches of at least {2 * parts} images, not {len(fake)}")
        target = state["target"]
        features = self._network(fake)(vgg_input(fake, "imagenet"))
        if self.matching == "two_batch":
            half = len(fake) // 2
            one = feature_moments([feature[:half] for feature in features])
            other = feature_moments([feature[half:] for feature in features])
            state["distance"].copy_(moment_distance(target, (one + other) / 2))
            return (linearised_loss(target - other, target, one) + linearised_loss(target - one, target, other)) / 2
        moments = feature_moments(features)
        difference = target - moments.detach()
        state["distance"].copy_(moment_distance(target, moments))
        if self.matching == "instant":
            return linearised_loss(difference, target, moments)
        moving_average_step(
            state["v"], state["v_first"], state["v_second"], state["v_step"], difference, learning_rate=self.v_lr
        )
        return linearised_loss(state["v"], target, moments)

    def _network(self, images: Tensor) -> VggFeatures:
        """Return the feature network on the device of `images`, after checking that it can look at them."""
        from flgen.models.vgg import SMALLEST_IMAGE

        if images.shape[1] not in (1, 3) or min(images.shape[2:]) < SMALLEST_IMAGE:
            channels, height, width = images.shape[1:]
            raise UsageError(
                f"VggMoments cannot look at {channels}-channel images of {height}x{width}: it needs 1 or 3 channels "
                f"and at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels (--model.loss KernelMMD takes any)"
            )
        self.load()
        assert self._features is not None
        return self._features.to(images.device)


def _symmetric(images: Tensor) -> Tensor:
    """Map uint8 images to [-1, 1]."""
    return images.float().div_(127.5).sub_(1)
