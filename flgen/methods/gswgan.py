"""GS-WGAN: Chen, Orekondy, Fritz, "GS-WGAN: A Gradient-Sanitized Approach for Learning Differentially Private
Generators", NeurIPS 2020, unconditional.

server: G ; client k: D_k, warmed up on its own images against a generator that it throws away
round t, one client k:
    server: X_d, X_g <- G(noise)
    client k: L times  D_k <- Adam step on  mean D_k(x') - mean D_k(x) + lambda mean (||d D_k(x^)/d x^|| - 1)^2
              F_i = clip_C( - d D_k(x_i) / d x_i ) for each x_i of X_g
              sends F + N(0, (z Delta)^2 I),  Delta = 2 C sqrt(B)
    server: G <- Adam step along  1/B sum_i F_i d x_i / d G

What is promised. F comes from one discriminator, which depends on all records of its client. Whatever these are, F is B
vectors of norm at most C, so changing them moves it by at most Delta = 2 C sqrt(B) in L2: z is the noise multiplier of
the whole answer, and a client's whole data set is protected, against the server too. Clients hold different records, so
an answer spends on its own client alone; the answers of a client compose exactly as Gaussian mechanisms; the client
asked most often counts. That everybody knows who was asked is assumed, and nothing is gained from the draw.

The authors add N(0, (2 C sigma)^2), so their sigma is z sqrt(B) here. Their accounting takes the B images of an answer
as B releases of one image each, every one amplified by a draw of its own. But all images of an answer come from one
draw; and a discriminator trains only when it is drawn, so that what it says later tells something about earlier draws,
which amplification by sampling takes for independent of all else. Their epsilon is therefore not reported. Their noise
can be had: noise_multiplier = sigma / sqrt(B), with the epsilon that it does guarantee.
"""

from __future__ import annotations

import copy
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.methods.remote_discriminators import ImageType, RemoteDiscriminators
from flgen.privacy.gradient_privacy import GradientPrivacy
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
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    images = deferred_module("flgen.data.image_set")
    optimizer_state = deferred_module("flgen.federation.optimizer_state")
    trained_vector = deferred_module("flgen.federation.trained_vector")


class GSWGAN(RemoteDiscriminators):
    """One generator against the clients' Wasserstein critics, of which it sees clipped and noisy gradients alone.

    `train/discriminator_loss` and `privacy/clipped` come from clients without noise, and checkpoints hold their
    discriminators: for simulations.

    The paper asks one client per step: --trainer.clients_per_round 1. Of several the mean is taken. With the paper's
    settings private training needs thousands of clients: at ten, noise drowns the gradients.

    Args:
        local_steps: Steps of a discriminator per round, L; the generator takes one.
        batch_size: Real images, and generated ones, per step, B; also the images that are judged.
        fake_batches: Batches in X_d, which local steps use in turn.
        warm_up_steps: Steps of a client's own generator, L discriminator steps each, before its first answer.
        gradient_penalty: lambda.
        privacy: How gradients are clipped and made noisy; null: not at all.
        generator_learning_rate: Of the generator's Adam.
        discriminator_learning_rate: Of the discriminators' Adam.
        betas: Adam's decays of its two moments, of both.
        image_dtype: How images and gradients of images travel, "float32" or "float16".
        recalibration_batches: Noise batches of 64 by which BatchNorm is calibrated before images are drawn.
        topology: How answers reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    incidental = frozenset({"privacy.noise_key"})  # where the secret lies; that it is the same is checked
    state_on_every_rank = True  # clients of every rank draw noise by the z that the run began with

    def __init__(
        self,
        local_steps: int = 5,
        batch_size: int = 32,
        fake_batches: int = 5,
        warm_up_steps: int = 50,
        gradient_penalty: float = 10.0,
        privacy: GradientPrivacy | None = GradientPrivacy(),
        generator_learning_rate: float = 5e-4,
        discriminator_learning_rate: float = 5e-4,
        betas: tuple[float, float] = (0.5, 0.9),
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
        option_ranges.at_least("method", 0, warm_up_steps=warm_up_steps, gradient_penalty=gradient_penalty)
        self.warm_up_steps = warm_up_steps
        self.gradient_penalty = gradient_penalty
        self.privacy = privacy
        self.budget = None if privacy is None else privacy.budget()

    def check(self, federation: Federation) -> None:
        """Refuse a budget that the noise overspends at once."""
        super().check(federation)
        if self.budget is not None:
            planned = federation.most_rounds(federation.rounds)
            self.budget.begin(federation.streams.seed, planned, len(federation), federation.clients_per_round)

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the model is a GAN of such images, and that the noise's secret can be read."""
        super().prepare(model, data)
        if self.budget is not None:
            self.budget.check()

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """G, room for one discriminator, and for the generator that one client is warmed up with."""
        super().setup(federation, model, data, fabric)
        self.check(federation)
        if self.warm_up_steps:
            self.own_G = copy.deepcopy(self.G)
            self.own_g = trained_vector.TrainedVector(self.own_G.parameters())

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Warm up before the first answer ; L steps of D_k ; send noisy gradients."""
        if self.warm_up_steps and optimizer_state.PREFIX + "step" not in client.state:
            self.warm_up(client)
        return super().client_step(client, download, t)

    def warm_up(self, client: Client) -> None:
        """Train D_k on the client's images against a generator of its own: nothing is sent, so nothing is spent."""
        self.d_k.load(client.state["discriminator"])
        optimizer_state.load(self.adam_D, client.state)
        self.own_G.reset_weights(client.random("warm-up generator", 0))
        self.own_G.train()
        adam = self.adam(self.own_g, self.generator_learning_rate)
        device, L = self.fabric.device, self.local_steps
        z, draws = client.random("warm-up noise", 0, device), client.random("warm-up steps", 0, device)
        reals = client.data.batches(self.batch_size, client.random("warm-up reals", 0), steps=self.warm_up_steps * L)
        for step, (x, _) in enumerate(reals):
            with self.fabric.autocast():
                fake = self.own_G(self.own_G.noise(self.batch_size, z)).float()
            self.discriminator_step(images.to_unit_range(x), fake.detach(), draws)
            if step % L == L - 1:
                with self.fabric.autocast():
                    loss = -self.D(fake).mean()
                self.own_g.backward(loss)
                adam.step()
            self.on_local_step(step + 1, self.warm_up_steps * L)
        optimizer_state.store(self.adam_D, client.state)
        client.state["discriminator"] = self.d_k.copy()

    def discriminator_loss(self, real: Tensor, fake: Tensor, draws: torch.Generator) -> Tensor:
        """Return mean D(x') - mean D(x) + lambda mean (||d D(x^) / d x^|| - 1)^2, x^ between x and x'.

        Args:
            real: Images x (B, C, H, W) in [-1, 1].
            fake: Generated images x', of the same shape.
            draws: Draws where each x^ lies.
        """
        share = torch.rand(len(real), 1, 1, 1, generator=draws, device=draws.device)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slopes,) = torch.autograd.grad(self.D(between).float().sum(), between, create_graph=True)
        penalty = (slopes.flatten(1).norm(dim=1) - 1).square().mean()
        return self.D(fake).float().mean() - self.D(real).float().mean() + self.gradient_penalty * penalty

    def answer(self, client: Client, X_g: Tensor, t: int) -> codecs.Payload:
        """F_i = clip_C( - d D_k(x_i) / d x_i ) ; send F + N(0, (z Delta)^2)."""
        F = -self.judge_images(X_g)[1]
        if self.privacy is not None and self.budget is not None:
            F, client.metrics["privacy/clipped"] = self.privacy.clip_each(F)
            std = self.budget.z * self.privacy.sensitivity(len(F))
            F = self.budget.source.release(F, std, "feedback", round=t, client=client.key).to(F.dtype)
        return {"feedback": codecs.dense(F, getattr(torch, self.image_dtype))}

    def feedback(self, uploads: Uploads) -> Tensor:
        """F, the mean over the clients of the round."""
        return uploads.mean()["feedback"]

    def exhausted(self, t: int) -> str:
        """Say so if round t would spend more than the budget."""
        return "" if self.budget is None else self.budget.exhausted(t, self.federation.most_rounds(t))

    def round_metrics(self, t: int) -> dict[str, float]:
        """What the client asked most often has spent, and the mean norm of F_i."""
        spent = {} if self.budget is None else {"privacy/epsilon": self.budget.spent(self.federation.most_rounds(t))}
        return {**spent, **super().round_metrics(t)}

    def provenance(self) -> dict[str, Any]:
        """Return what is guaranteed."""
        if self.privacy is None or self.budget is None:
            return {}
        return {"privacy": {**self.privacy.record(self.batch_size), **self.budget.record()}}

    def check_continuation(self, state: dict[str, Any]) -> None:
        """Refuse another cohort or secret than a private run began with."""
        if self.budget is not None:
            self.budget.load_state_dict(state["privacy"])
            self.budget.check()

    def state_dict(self) -> dict[str, Any]:
        """G, its Adam, and what a run that is continued keeps of its privacy."""
        return {**super().state_dict(), "privacy": {} if self.budget is None else self.budget.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds; the noise stays what it was, even if more rounds are planned now."""
        super().load_state_dict(state)
        if self.budget is not None:
            self.budget.load_state_dict(state["privacy"])
