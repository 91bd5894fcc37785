"""A GAN of linear maps, whose gradients can be written down, and a plain loop that trains one without a federation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from digit_trial import digit_trial
from lightning import LightningModule
from torch import Tensor, nn

from flgen.data.image_set import to_unit_range
from flgen.federation.streams import RandomStreams

PIXELS = 64


class LinearGenerator(nn.Module):
    """Noise (B, 3) times a matrix (3, 64), as images of 8 x 8."""

    image_size, channels = 8, 1

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, PIXELS))

    def forward(self, noise: Tensor) -> Tensor:
        return (noise @ self.w).view(-1, 1, 8, 8)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, 3, generator=generator)

    def reset_weights(self, generator: torch.Generator) -> None:
        self.w.data.copy_(torch.randn(3, PIXELS, generator=generator) / 10)

    def recalibrate(self, generator: torch.Generator, batches: int) -> None:
        self.eval()


class LinearDiscriminator(nn.Module):
    """The inner product of an image and a vector (64,): its gradient is that vector, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(PIXELS))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.v

    def reset_weights(self, generator: torch.Generator) -> None:
        self.v.data.copy_(torch.randn(PIXELS, generator=generator) / 10)


class LinearGAN(LightningModule):
    """Both."""

    image_size, channels = 8, 1

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = LinearGenerator(), LinearDiscriminator()


def gan_trial(method: Any, clients: int, **options: Any) -> Any:
    """Return a trial of a method on a linear GAN whose clients hold a few digits each."""
    return digit_trial(method, clients, LinearGAN(), **options)


def judged_noise(method: Any, t: int) -> Tensor:
    """Return the noise of the images that clients judge in round t, (B, 3)."""
    streams: RandomStreams = method.federation.streams
    return torch.randn(method.batch_size, 3, generator=streams.torch("X_g", round=t))


def discriminators(trial: Any) -> list[Tensor]:
    """Return every client's discriminator as it is, (64,)."""
    return [trial.state(client.id)["discriminator"] for client in trial.job.federation.clients]


def plain_gan(
    trial: Any,
    rounds: int,
    discriminator_loss: Callable[[LinearDiscriminator, Tensor, Tensor, torch.Generator], Tensor],
    generator_loss: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Train the networks of the only client of a trial by two Adams; return generator (3, 64) and discriminator (64,).

    Args:
        trial: Of the method whose options and random streams are taken.
        rounds: Steps of the generator.
        discriminator_loss: Of the discriminator, real images, generated ones, and a generator for its draws.
        generator_loss: Of the logits of generated images.
    """
    method, (client,) = trial.method, trial.job.federation.clients
    streams, B = method.federation.streams, method.batch_size
    G, D = LinearGenerator(), LinearDiscriminator()
    G.reset_weights(streams.torch("weights"))
    D.reset_weights(client.random("discriminator", 0))
    adam_G = torch.optim.Adam(G.parameters(), lr=method.generator_learning_rate, betas=method.betas)
    adam_D = torch.optim.Adam(D.parameters(), lr=method.discriminator_learning_rate, betas=method.betas)
    for t in range(1, rounds + 1):
        with torch.no_grad():
            fakes = [G(G.noise(B, streams.torch(f"X_d {j}", round=t))) for j in range(method.fake_batches)]
        draws = client.random("discriminator steps", t)
        reals = client.data.batches(B, client.random("reals", t), steps=method.local_steps)
        for step, (images, _) in enumerate(reals):
            adam_D.zero_grad()
            discriminator_loss(D, to_unit_range(images), fakes[step % len(fakes)], draws).backward()
            adam_D.step()
        adam_G.zero_grad()
        generator_loss(D(G(judged_noise(method, t)))).backward()
        adam_G.step()
    return G.w.detach(), D.v.detach()


def cross_entropy(D: LinearDiscriminator, real: Tensor, fake: Tensor, draws: torch.Generator) -> Tensor:
    """Return - mean log D(x) - mean log(1 - D(x'))."""
    return -torch.sigmoid(D(real)).log().mean() - (1 - torch.sigmoid(D(fake))).log().mean()
