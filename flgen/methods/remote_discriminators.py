"""What GANs share whose generator stays with the server and whose discriminators stay with the clients.

Symbols: G the generator, D_k the discriminator of client k, X_d generated images that discriminators learn from, X_g
generated images that they judge, L local steps, B images per batch, l a loss of one generated image.

server: G ; client k: D_k
round t:
    server: X_d, X_g <- G(noise)                                    the same for every client
    client k: L times  D_k <- Adam step on real images against X_d
              sends its answer about X_g
    server: F_i = d l(x_i) / d x_i from the answers, for each x_i of X_g
            G <- Adam step along  1/B sum_i F_i d x_i / d G
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.methods import generator_training
from flgen.methods.base import ServerMethod
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.data import image_set as images
    from flgen.federation import optimizer_state, trained_vector
    from flgen.federation.clients import Client, Federation
    from flgen.models import discriminator
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    discriminator = deferred_module("flgen.models.discriminator")
    images = deferred_module("flgen.data.image_set")
    optimizer_state = deferred_module("flgen.federation.optimizer_state")
    trained_vector = deferred_module("flgen.federation.trained_vector")

ImageType = Literal["float32", "float16"]
GeneratorLoss = Literal["non_saturating", "saturating"]


class RemoteDiscriminators(ServerMethod):
    """A generator on the server that learns from what clients say about its images; it never leaves the server.

    A discriminator and its Adam moments are the state of a client, which goes on from them in its next round; the
    server never gets them.

    Args:
        local_steps: Steps of a discriminator per round, L; the generator takes one.
        batch_size: Real images, and generated ones, per step, B; also the images that are judged.
        fake_batches: Batches in X_d, which local steps use in turn; at most L.
        generator_learning_rate: Of the generator's Adam.
        discriminator_learning_rate: Of the discriminators' Adam.
        betas: Adam's decays of its two moments, of both.
        image_dtype: How images and gradients of images travel, "float32" or "float16".
        recalibration_batches: Noise batches of 64 by which BatchNorm is calibrated before images are drawn.
        topology: How answers reach the server.

    Raises:
        UsageError: A number is out of its range, or batches are more than the steps that use them.
    """

    generative = True

    def __init__(
        self,
        local_steps: int,
        batch_size: int,
        fake_batches: int,
        generator_learning_rate: float,
        discriminator_learning_rate: float,
        betas: tuple[float, float],
        image_dtype: ImageType,
        recalibration_batches: int,
        topology: Star | None,
    ) -> None:
        super().__init__(topology)
        option_ranges.at_least(
            "method",
            1,
            local_steps=local_steps,
            batch_size=batch_size,
            fake_batches=fake_batches,
            recalibration_batches=recalibration_batches,
        )
        option_ranges.above_0(
            "method",
            generator_learning_rate=generator_learning_rate,
            discriminator_learning_rate=discriminator_learning_rate,
        )
        generator_training.check_decays(betas=betas)
        if fake_batches > local_steps:
            raise UsageError(
                f"--method.fake_batches is {fake_batches}, --method.local_steps {local_steps}: a step takes one batch, "
                "the others would be sent for nothing; give as many batches as steps, or fewer"
            )
        self.local_steps = local_steps
        self.batch_size = batch_size
        self.fake_batches = fake_batches
        self.generator_learning_rate = generator_learning_rate
        self.discriminator_learning_rate = discriminator_learning_rate
        self.betas = betas
        self.image_dtype = image_dtype
        self.recalibration_batches = recalibration_batches

    @property
    def draws_weights(self) -> str:
        """All weights are those of the run's seed."""
        return "its generator and discriminators are those of --seed_everything"

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the model is a generator and a discriminator of such images."""
        self._checked(model, data)

    def _checked(self, model: LightningModule, data: LabelledData) -> Any:
        needs, use = ("generator", "discriminator"), "a GAN, such as ImageGAN"
        return generator_training.checked_generator(model, data, type(self).__name__, needs, use)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """G by the run's seed, and room for one discriminator at a time."""
        super().setup(federation, model, data, fabric)
        gan = self._checked(model, data)
        self.G, self.D = gan.generator, gan.discriminator
        self.G.reset_weights(federation.streams.torch("weights"))
        self.g = trained_vector.TrainedVector(self.G.parameters())
        self.d_k = trained_vector.TrainedVector(self.D.parameters())
        self.adam_G = self.adam(self.g, self.generator_learning_rate)
        self.adam_D = self.adam(self.d_k, self.discriminator_learning_rate)
        self.feedback_norm = 0.0

    def adam(self, weights: trained_vector.TrainedVector, learning_rate: float) -> torch.optim.Optimizer:
        """Return an Adam over some weights."""
        return torch.optim.Adam([weights.vector], lr=learning_rate, betas=self.betas, fused=True)

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """D_k, drawn for this client."""
        self.D.reset_weights(client.random("discriminator", 0))
        return {"discriminator": self.d_k.copy()}

    def download(self, t: int) -> codecs.Payload:
        """X_d and X_g."""
        dtype = getattr(torch, self.image_dtype)
        with torch.no_grad():
            X_d = torch.cat([self._generated(f"X_d {number}", t) for number in range(self.fake_batches)])
            X_g = self._generated("X_g", t)
        return {"X_d": codecs.dense(X_d, dtype), "X_g": codecs.dense(X_g, dtype)}

    def _generated(self, purpose: str, t: int) -> Tensor:
        """G(noise), float32 (B, C, H, W); the same whenever it is asked for in a round."""
        self.G.train()
        z = self.federation.streams.torch(purpose, round=t, device=self.fabric.device)
        with self.fabric.autocast():
            x: Tensor = self.G(self.G.noise(self.batch_size, z))
        return x.float()

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """L steps of D_k on real images against X_d ; send the answer about X_g."""
        self.d_k.load(client.state["discriminator"])
        optimizer_state.load(self.adam_D, client.state)
        device = self.fabric.device
        X_d = download["X_d"].to(device, torch.float32).split(self.batch_size)
        draws = client.random("discriminator steps", t, device)
        total = torch.zeros((), device=device)
        reals = client.data.batches(self.batch_size, client.random("reals", t), steps=self.local_steps)
        for step, (x, _) in enumerate(reals):
            total += self.discriminator_step(images.to_unit_range(x), X_d[step % len(X_d)], draws)
            self.on_local_step(step + 1, self.local_steps)

        optimizer_state.store(self.adam_D, client.state)
        client.state["discriminator"] = self.d_k.copy()
        client.metrics["train/discriminator_loss"] = float(total) / self.local_steps
        return self.answer(client, download["X_g"].to(device, torch.float32), t)

    def discriminator_step(self, real: Tensor, fake: Tensor, draws: torch.Generator) -> Tensor:
        """Take one Adam step of D_k; return its loss, without gradient."""
        with self.fabric.autocast():
            loss = self.discriminator_loss(real, fake, draws)
        self.d_k.backward(loss)
        self.adam_D.step()
        return loss.detach()

    def discriminator_loss(self, real: Tensor, fake: Tensor, draws: torch.Generator) -> Tensor:
        """Return - mean log D(x) - mean log(1 - D(x')), of real images x and generated ones x'.

        Args:
            real: Images (B, C, H, W) in [-1, 1].
            fake: Generated images, of the same shape.
            draws: Source of whatever the loss draws.
        """
        return discriminator.discriminator_loss(self.D(real), self.D(fake))

    def judge_images(self, X_g: Tensor) -> tuple[Tensor, Tensor]:
        """Return D_k's logits of some images, float32 (B,), and the gradient of each with respect to its image.

        Args:
            X_g: Images (B, C, H, W).
        """
        X_g = X_g.detach().requires_grad_()
        with self.fabric.autocast():
            logits = self.D(X_g).float()
        # No logit depends on another image, so the gradient of their sum holds that of each.
        (gradients,) = torch.autograd.grad(logits.sum(), X_g)
        return logits.detach(), gradients

    @abstractmethod
    def answer(self, client: Client, X_g: Tensor, t: int) -> codecs.Payload:
        """Return what a client sends about X_g (B, C, H, W), by its discriminator as it is now."""

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """F from the answers ; one Adam step of G along it."""
        F = self.feedback(uploads)
        X_g = self._generated("X_g", t)
        self.g.backward(X_g, F.to(X_g) / self.batch_size)
        self.adam_G.step()
        self.feedback_norm = float(F.flatten(1).norm(dim=1).mean())

    @abstractmethod
    def feedback(self, uploads: Uploads) -> Tensor:
        """Return F, the gradient of each judged image's loss with respect to it, (B, C, H, W)."""

    def round_metrics(self, t: int) -> dict[str, float]:
        """Mean norm of F_i: near 0 the generator learns nothing, whatever the reason."""
        return {"train/feedback_norm": self.feedback_norm}

    def samples(self, count: int, t: int) -> dict[str, Tensor]:
        """Draw images with G, from the noise that Prism's are drawn from."""
        streams, batches = self.federation.streams, self.recalibration_batches
        return {"dense": generator_training.draw_normalised(self.G, count, t, streams, self.fabric, batches)}

    def state_dict(self) -> dict[str, Any]:
        """G and its Adam."""
        return {"generator": self.g.copy(), "generator_optimizer": self.adam_G.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        if state["generator"].shape != self.g.vector.shape:
            raise UsageError(
                f"the checkpoint has {state['generator'].numel()} weights, this generator {self.g.vector.numel()}: "
                "give the --model options that wrote it"
            )
        self.g.load(state["generator"])
        self.adam_G.load_state_dict(state["generator_optimizer"])


def image_loss(logits: Tensor, kind: GeneratorLoss) -> Tensor:
    """Return the generator's loss of each judged image (B,): - log D, or log(1 - D).

    Args:
        logits: Log-odds of D (B,).
        kind: "non_saturating" is the first, "saturating" the second.
    """
    softplus = torch.nn.functional.softplus
    return softplus(-logits) if kind == "non_saturating" else -softplus(logits)


def image_loss_slope(logits: Tensor, kind: GeneratorLoss) -> Tensor:
    """Return the derivative of `image_loss` with respect to the logits (B,): D - 1, or - D."""
    D = torch.sigmoid(logits)
    return D - 1 if kind == "non_saturating" else -D
