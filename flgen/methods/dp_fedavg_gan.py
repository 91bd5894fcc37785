"""DP-FedAvg-GAN: Augenstein, McMahan, Ramage, Ramaswamy, Kairouz, Chen, Mathews, Aguera y Arcas, "Generative models for
effective ML on private, decentralized datasets", ICLR 2020, algorithm 1.

Symbols: G and D generator and discriminator with weights theta_G and theta_D, z noise, n local steps, S the clip, sigma
the noise multiplier, K uploads.

server: theta_G, theta_D by He's rule ; v = 0
round t:
  every client receives theta_D, theta_G
  client k: theta <- theta_D ; n times: x real, x~ = G(z), theta <- step on  - ln D(x) - ln(1 - D(x~))
            Delta_k = theta - theta_D ; sends Delta_k min(1, S / ||Delta_k||)
  server: Delta = (sum_k Delta_k + N(0, (sigma S)^2 I)) / K
          v <- beta v + Delta ; theta_D <- theta_D + eta v
          n_G times: theta_G <- AdamStep on  - ln D(G(z))
"""

from __future__ import annotations

from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.methods import generator_training
from flgen.methods.base import ServerMethod
from flgen.privacy.update_privacy import UpdatePrivacy
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData, image_set
    from flgen.federation import optimizer_state, trained_vector
    from flgen.federation.clients import Client, Federation
    from flgen.models import discriminator
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    discriminator = deferred_module("flgen.models.discriminator")
    image_set = deferred_module("flgen.data.image_set")
    optimizer_state = deferred_module("flgen.federation.optimizer_state")
    trained_vector = deferred_module("flgen.federation.trained_vector")

NEEDED = ("generator", "discriminator", "reset_weights")


class DPFedAvgGAN(ServerMethod):
    """A GAN: clients train the discriminator, with differential privacy of clients, and the server the generator.

    Only the discriminator ever meets real images, so what is private of it is private of the generator. What clients
    report for the log (`train/loss`, `privacy/clipped`) is not protected: it is for whoever runs the simulation.

    Args:
        local_steps: Discriminator steps per client and round, n.
        batch_size: Real images per step, and as many fakes.
        optimizer: The clients' optimiser, new in every round: "sgd" or "adam".
        learning_rate: Its learning rate.
        betas: Adam's decays of its two moments, of clients and of the generator.
        server_learning_rate: Share of the averaged update that the discriminator moves by, eta.
        server_momentum: How much of its last movement the discriminator keeps, beta.
        generator_steps: Steps of the generator per round, n_G.
        generator_batch_size: Fakes per step of the generator.
        generator_learning_rate: Of the generator's Adam.
        recalibration_batches: Noise batches of 64 that measure BatchNorm's statistics.
        privacy: How updates are clipped and made noisy; null: not at all.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    generative = True
    incidental = frozenset({"privacy.noise_key"})  # where the secret lies; that it is the same is checked
    has_updates = True
    state_on_every_rank = True  # every rank must know the noise, which says when the budget is spent

    def __init__(
        self,
        local_steps: int = 10,
        batch_size: int = 32,
        optimizer: Literal["sgd", "adam"] = "adam",
        learning_rate: float = 5e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        generator_steps: int = 10,
        generator_batch_size: int = 64,
        generator_learning_rate: float = 5e-4,
        recalibration_batches: int = 100,
        privacy: UpdatePrivacy | None = UpdatePrivacy(),
        topology: Star | None = None,
    ) -> None:
        super().__init__(topology)
        option_ranges.at_least(
            "method",
            1,
            local_steps=local_steps,
            batch_size=batch_size,
            generator_steps=generator_steps,
            recalibration_batches=recalibration_batches,
        )
        option_ranges.at_least("method", 2, generator_batch_size=generator_batch_size)  # BatchNorm needs two
        option_ranges.above_0(
            "method",
            learning_rate=learning_rate,
            server_learning_rate=server_learning_rate,
            generator_learning_rate=generator_learning_rate,
        )
        generator_training.check_decays(betas=betas, server_momentum=server_momentum)
        self.local_steps = local_steps
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.betas = betas
        self.server_learning_rate = server_learning_rate
        self.server_momentum = server_momentum
        self.generator_steps = generator_steps
        self.generator_batch_size = generator_batch_size
        self.generator_learning_rate = generator_learning_rate
        self.recalibration_batches = recalibration_batches
        self.privacy = privacy
        self.budget = None if privacy is None else privacy.budget()

    @property
    def draws_weights(self) -> str:
        """Both networks begin with weights of the run's seed."""
        return "its weights are those of --seed_everything"

    def check(self, federation: Federation) -> None:
        """Refuse a budget that the noise overspends at once, and sums whose rounding no sensitivity counts."""
        super().check(federation)
        if self.budget is not None:
            if self.topology.reduction == "fast" and self.topology.secure_aggregation is None:
                raise UsageError(
                    "--method.topology.reduction fast rounds sums by an amount that the sensitivity of "
                    "--method.privacy does not count: leave it at exact"
                )
            planned = federation.most_rounds(federation.rounds)
            self.budget.begin(federation.streams.seed, planned, len(federation), federation.clients_per_round)

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the model is a GAN of such images, and that the noise's secret can be read."""
        generator_training.checked_generator(model, data, type(self).__name__, NEEDED, "a GAN, such as ImageGAN")
        if self.budget is not None:
            self.budget.check()

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """theta_G, theta_D by the run's seed, the same on every rank ; v = 0."""
        super().setup(federation, model, data, fabric)
        federation.stateless = True
        self.check(federation)
        gan: Any = model
        self.G, self.D = gan.generator, gan.discriminator
        gan.reset_weights(federation.streams.torch("weights"))
        self.g = trained_vector.TrainedVector(self.G.parameters())  # what the resident networks compute with
        self.theta = trained_vector.TrainedVector(self.D.parameters())
        self.theta_G, self.theta_D = self.g.copy(), self.theta.copy()
        self.v = torch.zeros_like(self.theta_D)
        self.adam = torch.optim.Adam([self.g.vector], lr=self.generator_learning_rate, betas=self.betas, fused=True)
        self.moments: dict[str, Tensor] = {}
        self.generator_loss = 0.0

    def download(self, t: int) -> codecs.Payload:
        """theta_D, theta_G."""
        return {"discriminator": codecs.dense(self.theta_D), "generator": codecs.dense(self.theta_G)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """theta <- theta_D ; n steps on real images and fakes ; send Delta_k, clipped."""
        theta_D = download["discriminator"]
        self.theta.load(theta_D)
        self.g.load(download["generator"])
        self.G.train()
        steps = self._client_optimizer()
        z = client.random("noise", t, self.fabric.device)
        reals = client.data.batches(self.batch_size, client.random("reals", t), steps=self.local_steps)
        total = torch.zeros((), device=self.fabric.device)
        for step, (images, _) in enumerate(reals):
            x = image_set.to_unit_range(images)
            with self.fabric.autocast():
                with torch.no_grad():
                    fake = self.G(self.G.noise(self.batch_size, z))
                L = discriminator.discriminator_loss(self.D(x), self.D(fake))
            self.theta.backward(L)
            steps.step()
            total += L.detach()
            self.on_local_step(step + 1, self.local_steps)
        client.metrics = {"train/loss": float(total) / self.local_steps}

        Delta_k = self.theta.vector.detach() - theta_D
        if self.privacy is not None:
            Delta_k, clipped = self.privacy.clip(Delta_k)
            client.metrics["privacy/clipped"] = float(clipped)
        return {"update": codecs.dense(Delta_k)}

    def _client_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD([self.theta.vector], lr=self.learning_rate)
        return torch.optim.Adam([self.theta.vector], lr=self.learning_rate, betas=self.betas, fused=True)

    def update_of(self, download: dict[str, Tensor], upload: codecs.Payload) -> Tensor:
        """Delta_k as it is sent, float64 (d,)."""
        return upload["update"].tensor.double()

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """Delta with its noise ; one step of the discriminator ; n_G steps of the generator."""
        total = uploads.sum()["update"]
        if self.privacy is not None and self.budget is not None:
            star = self.topology
            step = 2.0 ** -(star.secure_aggregation or star).fraction_bits  # updates are summed in fixed point
            std = self.budget.z * self.privacy.sensitivity(total.numel(), step)
            total = self.budget.source.release(total, std, "discriminator", round=t)
        Delta = total / len(uploads)
        self.v = (self.server_momentum * self.v.double() + Delta).to(self.v)
        self.theta_D = (self.theta_D.double() + self.server_learning_rate * self.v.double()).to(self.theta_D)
        self._train_generator(t)

    def _train_generator(self, t: int) -> None:
        """n_G times: theta_G <- AdamStep on -ln D(G(z))."""
        self.theta.load(self.theta_D)
        self.g.load(self.theta_G)
        self.G.train()
        z = self.federation.streams.torch("generator noise", round=t, device=self.fabric.device)
        optimizer_state.load(self.adam, self.moments)
        total = torch.zeros((), device=self.fabric.device)
        for _ in range(self.generator_steps):
            with self.fabric.autocast():
                L = generator_loss(self.D(self.G(self.G.noise(self.generator_batch_size, z))))
            self.g.backward(L)
            self.adam.step()
            total += L.detach()
        optimizer_state.store(self.adam, self.moments)
        self.theta_G = self.g.copy()
        self.generator_loss = float(total) / self.generator_steps

    def round_metrics(self, t: int) -> dict[str, float]:
        """The generator's loss, its mean over the round's steps, and what rounds 1 to t have spent."""
        measured = {"train/generator_loss": self.generator_loss}
        if self.budget is not None:
            measured["privacy/epsilon"] = self.budget.spent(self.federation.most_rounds(t))
        return measured

    def exhausted(self, t: int) -> str:
        """Say so if round t would spend more than the budget."""
        return "" if self.budget is None else self.budget.exhausted(t, self.federation.most_rounds(t))

    def provenance(self) -> dict[str, Any]:
        """What is guaranteed to whom, if anything is."""
        if self.privacy is None or self.budget is None:
            return {}
        return {"privacy": {**self.privacy.record(), **self.budget.record()}}

    def samples(self, count: int, t: int) -> dict[str, Tensor]:
        """Draw images with theta_G, from the noise that Prism's are drawn from."""
        self.g.load(self.theta_G)
        streams, batches = self.federation.streams, self.recalibration_batches
        return {"generator": generator_training.draw_normalised(self.G, count, t, streams, self.fabric, batches)}

    def check_continuation(self, state: dict[str, Any]) -> None:
        """Refuse another cohort or secret than a private run began with."""
        if self.budget is not None:
            self.budget.load_state_dict(state["privacy"])
            self.budget.check()

    def state_dict(self) -> dict[str, Any]:
        """theta_G, theta_D, v, the generator's moments, and what a run that is continued keeps of its privacy."""
        return {
            "generator": self.theta_G,
            "discriminator": self.theta_D,
            "velocity": self.v,
            "moments": self.moments,
            "privacy": {} if self.budget is None else self.budget.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint, for the rounds to come and for whoever holds the networks."""
        self.theta_G, self.theta_D = state["generator"].to(self.theta_G), state["discriminator"].to(self.theta_D)
        self.v = state["velocity"].to(self.v)
        self.moments = {name: moment.to(self.fabric.device) for name, moment in state["moments"].items()}
        if self.budget is not None:
            self.budget.load_state_dict(state["privacy"])
        self.g.load(self.theta_G)
        self.theta.load(self.theta_D)


def generator_loss(fake: Tensor) -> Tensor:
    """Return the mean of -ln D(x~), the loss that does not saturate (Goodfellow et al. 2014), a scalar.

    Args:
        fake: Logits of generated images (B,).
    """
    return torch.nn.functional.softplus(-fake.float()).mean()
