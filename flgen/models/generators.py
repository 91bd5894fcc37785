"""Image generators that the configuration can name."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from flgen.deferred import TYPE_CHECKING, LightningModule, deferred_module
from flgen.errors import UsageError
from flgen.models.losses import Loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.models.residual import Layers
else:
    torch = deferred_module("torch")


class ResidualGenerator(LightningModule):
    """The network of PRISM's generator (section 2); subclasses say what its layers are.

    Args:
        image_size: Height and width of the images in pixels: a power of two, at least 8; None is 32.
        channels: Channels of the images; None is 1.
        latent: Length of the noise vector.
        width: Channels of the last block; each block before it has twice as many as the next.
        bias: Give every convolution a bias.
        loss: What each client minimises.
        layers: What the network is built of.

    Raises:
        UsageError: The size is not a power of two of at least 8, or another number is not positive.
    """

    def __init__(
        self,
        image_size: int | None,
        channels: int | None,
        latent: int,
        width: int,
        bias: bool,
        loss: Loss | None,
        layers: Layers,
    ) -> None:
        super().__init__()
        from flgen.models.residual import ResidualBlock

        image_size = 32 if image_size is None else image_size
        channels = 1 if channels is None else channels
        if image_size < 8 or image_size.bit_count() != 1:
            raise UsageError(f"--model.image_size {image_size}: it must be a power of two, 8 or more")
        for name, value in {"channels": channels, "latent": latent, "width": width}.items():
            if value < 1:
                raise UsageError(f"--model.{name} {value}: it must be at least 1")
        self.image_size, self.channels, self.latent = image_size, channels, latent
        self.width, self.bias = width, bias
        self.loss = loss

        doublings = image_size.bit_length() - 3  # from 4x4 maps
        widths = [width << (doublings - level) for level in range(doublings + 1)]
        self.first = layers.transposed(latent, widths[0], 4, bias=bias)
        self.blocks = torch.nn.ModuleList(
            ResidualBlock(inputs, outputs, bias, layers) for inputs, outputs in pairwise(widths)
        )
        self.norm = torch.nn.BatchNorm2d(width, affine=False)
        self.last = layers.convolution(width, channels, 3, padding=1, bias=bias)
        self.example_input_array = torch.zeros(2, latent, 1, 1)

    def forward(self, noise: Tensor) -> Tensor:
        """Map noise (B, latent, 1, 1) to images (B, channels, image_size, image_size) in [-1, 1]."""
        maps = self.first(noise)
        for block in self.blocks:
            maps = block(maps)
        return torch.tanh(self.last(torch.relu_(self.norm(maps))))

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw noise N(0, I), (count, latent, 1, 1), on the device of the network."""
        return torch.randn(count, self.latent, 1, 1, generator=generator, device=generator.device).to(self.device)

    def recalibrate(self, generator: torch.Generator, batches: int = 100, batch_size: int = 64) -> None:
        """Measure the running statistics of the model under test, then switch to eval mode (section 1.7).

        The buffers are reset and take the plain average over the batches, with masks of the masking in force.
        Nothing else changes. It needs no data, sends nothing and costs no privacy.

        Args:
            generator: Draws the noise.
            batches: Number of noise batches.
            batch_size: Noise vectors in a batch.
        """
        norms = [module for module in self.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
        self.train()
        try:
            with torch.no_grad():
                for _ in range(batches):
                    self(self.noise(batch_size, generator))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            self.eval()


class ResnetGenerator(ResidualGenerator):
    """PRISM's residual generator: frozen signed weights, of which a learnt mask keeps some (PRISM, section 2).

    It is built with frozen weights of seed 0 and scores of seed 0; `reset_weights` and `reset_scores` draw others.
    Before the first forward choose its masks with `flgen.masks.network` (`sample_masks`, `fix_masks`, ...).

    Args:
        image_size: Height and width of the images in pixels: a power of two, at least 8. Null takes the data set's
            (from Python: 32).
        channels: Channels of the images: 1 for grey, 3 for colour. Null takes the data set's (from Python: 1).
        latent: Length of the noise vector.
        width: Channels of the last block; each block before it has twice as many as the next.
        weight_init: Frozen weights: signed_constant +-sqrt(2/fan_in), me_init +-e/sqrt(k*k*inputs),
            kaiming_normal N(0, 2/fan_in), normal10 N(0, 100).
        score_init: Initial scores: normal N(0, 1), uniform U(-0.1, 0.1), kaiming_uniform U(+-1/sqrt(fan_in)).
        bias: Give every convolution a frozen, masked bias.
        loss: What each client minimises.

    Raises:
        UsageError: The size is not a power of two of at least 8, or another number is not positive.
    """

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        latent: int = 128,
        width: int = 64,
        weight_init: Literal["signed_constant", "me_init", "kaiming_normal", "normal10"] = "signed_constant",
        score_init: Literal["normal", "uniform", "kaiming_uniform"] = "normal",
        bias: bool = False,
        loss: Loss | None = None,
    ) -> None:
        from flgen.models.residual import MASKED

        super().__init__(image_size, channels, latent, width, bias, loss, MASKED)
        self.weight_init, self.score_init = weight_init, score_init
        self.reset_weights(0)
        self.reset_scores(torch.Generator().manual_seed(0))

    def reset_weights(self, weight_seed: int) -> None:
        """Draw the frozen weights that `weight_seed` stands for, the same on every device."""
        from flgen.masks.network import reset_weights

        reset_weights(self, self.weight_init, weight_seed)

    def reset_scores(self, generator: torch.Generator) -> None:
        """Draw initial scores in place."""
        from flgen.masks.network import reset_scores

        reset_scores(self, self.score_init, generator)

    def layer_multiplicity(self) -> dict[str, int]:
        """Return how often the authors' code counts each masked layer: block convolutions twice, others once.

        Their code registers the convolutions of a block under two names (section 2, duplicate-key trap), which
        doubles their share of its mask distance and of its published megabytes.
        """
        from flgen.masks.network import layer_slices

        return {name: 2 if name.startswith("blocks.") else 1 for name in layer_slices(self)}

    def accounting_weights(self) -> Tensor:
        """Return `layer_multiplicity` for each scored weight, uint8 (d,): weights of a mask distance."""
        from flgen.masks.network import layer_slices

        multiplicity = self.layer_multiplicity()
        slices = layer_slices(self)
        counts = [torch.full((place.stop - place.start,), multiplicity[name]) for name, place in slices.items()]
        return torch.cat(counts).to(torch.uint8).to(self.device)
