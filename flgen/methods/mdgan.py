"""MD-GAN: Hardy, Le Merrer, Sericola, "MD-GAN: Multi-Discriminator Generative Adversarial Networks for Distributed
Datasets", IPDPS 2019, with one pair of batches for all clients.

server: G ; client k: D_k
round t:
    server: X_d, X_g <- G(noise)
    client k: L times  D_k <- Adam step on real images against X_d
              sends F_k = d l(X_g) / d X_g,  l(x) = - log D_k(x), or log(1 - D_k(x))
    server: F = 1/K sum_k F_k ; G <- Adam step along  1/B sum_i F_i d x_i / d G
    every m E / b rounds, clients: D_k moves on to another client
"""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.methods.remote_discriminators import (
    GeneratorLoss,
    ImageType,
    RemoteDiscriminators,
    image_loss,
    image_loss_slope,
)
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.federation.clients import Client
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")


class MDGAN(RemoteDiscriminators):
    """One generator against the mean of the clients' discriminators, which move from client to client.

    The paper sends k <= K batches and gives each client two of them; here all get the same two, so that the server
    needs no more than the sum of what comes back. Discriminators move without their Adam moments: whoever gets one
    goes on with its own.

    Args:
        local_steps: Steps of a discriminator per round, L; the generator takes one.
        batch_size: Real images, and generated ones, per step, b; also the images that are judged.
        fake_batches: Batches in X_d, which local steps use in turn; the paper has one.
        generator_loss: What the generator minimises: "non_saturating" - log D, or the paper's "saturating" log(1 - D).
        swap_epochs: E: discriminators move on every m E / b rounds, m the mean number of samples of a client; null:
            never.
        generator_learning_rate: Of the generator's Adam.
        discriminator_learning_rate: Of the discriminators' Adam.
        betas: Adam's decays of its two moments, of both.
        image_dtype: How images and gradients of images travel, "float32" or "float16".
        recalibration_batches: Noise batches of 64 by which BatchNorm is calibrated before images are drawn.
        topology: How answers reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    def __init__(
        self,
        local_steps: int = 1,
        batch_size: int = 64,
        fake_batches: int = 1,
        generator_loss: GeneratorLoss = "non_saturating",
        swap_epochs: float | None = 1.0,
        generator_learning_rate: float = 5e-4,
        discriminator_learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        image_dtype: ImageType = "float32",
        recalibration_batches: int = 100,
        topology: Star | None = None,
    ) -> None:
        super().__init__(
            local_steps,
            batch_size,
            fake_batches,
            generator_learning_rate,
            discriminator_learning_rate,
            betas,
            image_dtype,
            recalibration_batches,
            topology,
        )
        option_ranges.above_0("method", swap_epochs=swap_epochs)
        self.generator_loss: GeneratorLoss = generator_loss
        self.swap_epochs = swap_epochs

    def answer(self, client: Client, X_g: Tensor, t: int) -> codecs.Payload:
        """F_k = d l(X_g) / d X_g."""
        logits, gradients = self.judge_images(X_g)
        client.metrics["train/generator_loss"] = float(image_loss(logits, self.generator_loss).mean())
        F_k = image_loss_slope(logits, self.generator_loss).view(-1, 1, 1, 1) * gradients
        return {"feedback": codecs.dense(F_k, getattr(torch, self.image_dtype))}

    def feedback(self, uploads: Uploads) -> Tensor:
        """F = 1/K sum_k F_k."""
        return uploads.mean()["feedback"]

    def hand_over(self, t: int) -> dict[int, int]:
        """Return who hands its discriminator to whom after round t, one circle through all clients; nobody in most."""
        clients = sorted(self.federation.clients, key=lambda client: client.key)
        if self.swap_epochs is None or len(clients) < 2:
            return {}
        m = sum(client.samples for client in clients) / len(clients)
        if t % max(1, round(m * self.swap_epochs / self.batch_size)):
            return {}
        order = self.federation.streams.numpy("hand-over", round=t).permutation(len(clients)).tolist()
        circle = [clients[place].id for place in order]
        return dict(zip(circle, [*circle[1:], circle[0]], strict=True))

    def handed_over(self, state: dict[str, Tensor]) -> codecs.Payload:
        """D_k."""
        return {"discriminator": codecs.dense(state["discriminator"])}
