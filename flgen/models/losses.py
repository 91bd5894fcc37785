"""What a client minimises when it trains a generator: losses that the configuration can name.

A loss object holds settings and networks, never anything of a client. What belongs to one client is its *state*, a
dict of tensors that `prepare` makes once from the client's images and that a call may update in place. A method
keeps one state per client, checkpoints it, and moves it like any other client state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.data import LabelledData, image_set
    from flgen.data.client_data import ClientData
    from flgen.privacy.statistics_release import StatisticsRelease
else:
    torch = deferred_module("torch")
    image_set = deferred_module("flgen.data.image_set")

_MEDIAN_SAMPLE = 512  # images whose pairwise distances give a client's median


class Loss(ABC):
    """A client's objective for generated images.

    Attributes:
        real_batch: Number of real images each step needs; 0 if the client's state says all about its images.
        release: How a client's statistics are bounded and made noisy before they are kept; None leaves them as they
            are. A method whose run is private sets it before the first `prepare`.
        cache_dir: Folder in which the loss keeps statistics of clients' images, as they are; None keeps none. A private
            run refuses one.
    """

    can_release: ClassVar[bool] = False
    """Whether all that the loss learns of a client's images can be released once, with noise, by `release`."""

    real_batch: int = 0
    release: StatisticsRelease | None = None
    cache_dir: str | None = None

    @abstractmethod
    def prepare(self, data: ClientData, generator: torch.Generator, client: int = 0) -> dict[str, Tensor]:
        """Return the state of one client, made from its real images.

        Args:
            data: The client's images, uint8 (n, C, H, W).
            generator: Shuffles the images and draws initial values.
            client: Whose images they are; names the noise of its release.

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

    def check_private(self) -> None:
        """Refuse settings under which a release of statistics would not protect the images.

        Raises:
            UsageError: The loss looks at real images in every step.
        """
        if not self.can_release:
            raise UsageError(
                f"--model.loss {type(self).__name__} looks at real images in every step, so that no release of "
                "statistics protects them: use --model.loss VggMoments or ClassifierMoments, or leave out "
                "--method.privacy"
            )

    def public_data(self) -> LabelledData | None:
        """Return the data set, loaded, that the loss's network is trained on by flgen, None if it is not.

        Nothing protects its training samples: a private run's own data set must share none of them.
        """
        return None


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

    def prepare(self, data: ClientData, generator: torch.Generator, client: int = 0) -> dict[str, Tensor]:
        """Return `bandwidths` (k,) in pixel units and `distance`, the squared discrepancy of the last step."""
        from flgen.models.kernels import median_distance

        if data.samples < 2:
            raise UsageError(
                "KernelMMD needs at least two images per client: change --partition or the clients' number"
            )
        images, _ = next(iter(data.batches(min(data.samples, _MEDIAN_SAMPLE), generator, epochs=1)))
        median = median_distance(image_set.to_unit_range(images).flatten(1))
        relative = torch.tensor(self.bandwidths, device=images.device)
        # Clients with identical images have a median of zero; one grey level then stands in for it.
        return {"bandwidths": relative * median.clamp_min(1 / 127.5), "distance": torch.zeros_like(median)}

    def __call__(self, fake: Tensor, state: dict[str, Tensor], real: Tensor | None = None) -> Tensor:
        """Return the estimate of the squared discrepancy between `fake` and `real`."""
        from flgen.models.kernels import squared_mmd

        if real is None:
            raise ValueError("KernelMMD compares with real images: pass `real_batch` of them")
        if self.unbiased and len(fake) < 2:
            raise UsageError("KernelMMD compares generated images with each other: raise --method.batch_size to 2")
        loss = squared_mmd(
            fake.flatten(1), image_set.to_unit_range(real).flatten(1), state["bandwidths"], self.unbiased
        )
        state["distance"].copy_(loss.detach())
        return loss
