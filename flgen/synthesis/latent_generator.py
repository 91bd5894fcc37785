"""Frozen image generators with a latent space: `sample_latents(n)` says what is valid, `synthesize(w)` draws it.

Nothing else of a generator is needed to transfer its knowledge: no gradients through it, no discriminator, no classes
(specification of FedKTL, section 2.1).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flgen.data.labelled_data import LabelledData
else:
    torch = deferred_module("torch")

Prior = Literal["learned", "gaussian"]

OPTION = "--method.generator"
"""Where a configuration names the generator; messages say it."""


class LatentGenerator(ABC):
    """A pre-trained generator that maps latents w of length H to images; it is never trained.

    A generator of your own defines `latent_dim`, `image_shape`, `networks`, `draw` and, if valid latents are not
    N(0, I), `sample_latents`. It keeps each option as an attribute of the same name. Sizes are known before `load`;
    latents and images are to be had after it, on the device that it was given.
    """

    prior: ClassVar[Prior] = "gaussian"
    """What the latent space is: the output space of a "learned" mapping network, or "gaussian" noise. It decides about
    kernel bandwidths and about the length of means (section 2.3)."""

    fidelity: Literal["corrected", "reference"] = "corrected"
    """Whether pixels are scaled as they should be, or as the published code does it; the method sets it."""

    batch_size: int = 4
    device: torch.device | str = "cpu"

    @property
    @abstractmethod
    def latent_dim(self) -> int:
        """H, the length of a latent."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images, pixels."""

    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """Return the networks that draw, the same objects at every call.

        Raises:
            FlgenError: They cannot be loaded.
        """

    @abstractmethod
    def draw(self, w: Tensor) -> Tensor:
        """Return the images of one batch.

        Args:
            w: Latents, float32 (b, H) with b at most `batch_size`, on `device`.

        Returns:
            Float tensor (b, channels, height, width); what is beyond [0, 1] is clipped by who calls.
        """

    def learned_from(self) -> str | None:
        """Return the name of the data set that it was trained on; None if that is not known, or if there was none."""
        return None

    def provenance(self) -> dict[str, str | None]:
        """Return what results must say of it: at least name, data, licence and sha256 of the weights; None: unknown."""
        return {"name": type(self).__name__, "data": self.learned_from(), "licence": None, "sha256": None}

    def check(self, data: LabelledData) -> None:
        """Make sure, before any process starts, that it can be used for a federation's data.

        Args:
            data: The data set of the task; it need not be loaded.

        Raises:
            UsageError: It has learned from these data.
            FlgenError: Files or packages are missing.
        """
        theirs = self.learned_from()
        if theirs is not None and is_own_data(theirs, data.name):
            raise UsageError(
                f"{OPTION} {type(self).__name__} was trained on {theirs}, and the clients hold {data.name}: what it "
                "learned from must not be theirs. Train it on other data, or on a public part of these "
                "(--data.part public) while the clients hold the private one"
            )

    def load(self, device: torch.device | str) -> None:
        """Put the networks on a device, frozen and in evaluation mode.

        Raises:
            FlgenError: They cannot be loaded.
        """
        self.device = torch.device(device)
        for network in self.networks():
            network.to(self.device).eval().requires_grad_(False)

    def sample_latents(self, n: int, rng: torch.Generator) -> Tensor:
        """Return valid latents, float32 (n, H) on `device`, without gradient.

        Args:
            n: How many.
            rng: On the CPU, so that every device gets the same random numbers.
        """
        return torch.randn(n, self.latent_dim, generator=rng).to(self.device)

    def synthesize(self, w: Tensor) -> Tensor:
        """Return the images of latents; they follow from w alone, and carry no gradient.

        Args:
            w: float32 (b, H), on any device.

        Returns:
            float32 tensor (b, channels, height, width) in [0, 1] on `device`.

        Raises:
            ValueError: The latents have another shape.
            FlgenError: The generator draws numbers that are not finite.
        """
        if w.ndim != 2 or w.shape[1] != self.latent_dim:
            raise ValueError(f"latents of shape {tuple(w.shape)} for a generator that takes (b, {self.latent_dim})")
        with torch.no_grad():
            latents = w.detach().to(self.device, torch.float32)
            images = torch.cat([self.draw(part).float() for part in latents.split(self.batch_size)])
        if not torch.isfinite(images).all():
            raise FlgenError(
                f"{OPTION} {type(self).__name__} drew pixels that are not finite: its latents are beyond what it "
                "learned, or its precision is too low"
            )
        return images.clamp(0.0, 1.0)


def is_own_data(theirs: str, ours: str) -> bool:
    """Say whether a generator trained on `theirs` has seen the data that clients hold of `ours` (section 2.3).

    Two names are one data set if they differ in nothing but the part, a number before it (of a division that is not
    the usual one), upper case, hyphens, underscores and spaces. Of one data set, divided alike, the public part may
    serve clients who hold the private one; everything else overlaps, or may.
    """
    (their_set, their_division, their_part), (our_set, our_division, our_part) = _parts_of(theirs), _parts_of(ours)
    if their_set != our_set:
        return False
    return their_division != our_division or (their_part, our_part) != ("public", "private")


def _parts_of(name: str) -> tuple[str, str, str]:
    """Return the data set, how it was divided, and which part of it a name means."""
    plain = re.sub(r"[-_ ]+", "-", name.casefold())
    found = re.fullmatch(r"(.+?)(?:-(0\.\d+))?(?:-(public|private))?", plain)
    assert found is not None
    whole, division, part = found.groups()
    return whole.replace("-", ""), division or "", part or "all"
