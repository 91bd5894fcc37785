"""FedGen: Zhu, Hong, Zhou, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", ICML 2021.

server: w_1 ; a generator G(eps, y) of features z
round t, r = t - 1, each client k of the cohort:
    w <- w_t ; E epochs on  CE(f(x), y)                                                    alone in the first round
        + (B_g / B) alpha_r CE( h(G(y^)), y^ ) + beta_r KL( sg softmax h(G(y)) || softmax f(x) )
    sends w_k, and how often it has each label
server:
    w_{t+1} = sum_k (n_k / n) w_k
    50 times:  G <- Adam step on  sum_k omega_{k,y} CE( h_k(G(y)), y )
        + eta_div exp( - mean_ij ||eps_i - eps_j||^2 / d_eps * ||z_i - z_j||_1 / d_z )
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods import distillation
from flgen.methods.fedavg import FedAvg
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import flat_parameters
    from flgen.federation.clients import Client, Federation
    from flgen.federation.streams import RandomStreams
    from flgen.models import feature_generator
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    feature_generator = deferred_module("flgen.models.feature_generator")
    flat_parameters = deferred_module("flgen.federation.flat_parameters")


class FedGen(FedAvg):
    """FedAvg with a generator of features that carries to each client what the others know (gptfl.md, section 6.8).

    The module must have `features`, from a batch to z (B, d_z), and `head`, from z to logits; its local loss is
    cross-entropy on those. Generator and labels are sent down from round 2 on. Clients send their label counts in the
    clear. The defaults are the published ones for CIFAR; those for MNIST are hidden 256, noise 32, features 32.

    Args:
        training: How clients train; published are 20 epochs in batches of 32.
        features: Elements of z that the head is known to take, d_z; null takes what the module has.
        hidden: Width of the generator.
        noise: Elements of eps, d_eps.
        generated_batch_size: Generated features per step, B_g, on clients and server.
        generator_steps: Steps of the generator per round.
        generator_learning_rate: Of its Adam, in the first round.
        generator_weight_decay: Of its Adam.
        decay: Factor per round of the generator's learning rate, and of alpha and beta.
        diversity: Weight of the diversity term, eta_div.
        strength: alpha_r and beta_r before any decay; they never fall below 10^-4.
        regularised_epochs: Local epochs, the first ones, in which clients look at generated features.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    collection: Collection = "gather"
    needs_single_uploads = "its generator learns from every client's last layer and label counts"

    def __init__(
        self,
        training: LocalTraining = LocalTraining(epochs=20, batch_size=32),
        features: int | None = None,
        hidden: int = 512,
        noise: int = 64,
        generated_batch_size: int = 32,
        generator_steps: int = 50,
        generator_learning_rate: float = 3e-4,
        generator_weight_decay: float = 1e-2,
        decay: float = 0.98,
        diversity: float = 1.0,
        strength: float = 10.0,
        regularised_epochs: int = 20,
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, topology=topology)
        option_ranges.at_least(
            "method", 1, features=features, hidden=hidden, noise=noise, generator_steps=generator_steps
        )
        if generated_batch_size < 2:
            raise UsageError(
                f"--method.generated_batch_size is {generated_batch_size}: give 2 or more, the generator has BatchNorm"
            )
        option_ranges.at_least(
            "method",
            0,
            generator_weight_decay=generator_weight_decay,
            diversity=diversity,
            strength=strength,
            regularised_epochs=regularised_epochs,
        )
        option_ranges.above_0("method", generator_learning_rate=generator_learning_rate)
        if not 0 < decay <= 1:
            raise UsageError(f"--method.decay is {decay}: give a factor above 0, at most 1")
        self.features = features
        self.hidden = hidden
        self.noise = noise
        self.generated_batch_size = generated_batch_size
        self.generator_steps = generator_steps
        self.generator_learning_rate = generator_learning_rate
        self.generator_weight_decay = generator_weight_decay
        self.decay = decay
        self.diversity = diversity
        self.strength = strength
        self.regularised_epochs = regularised_epochs

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the module has a head that takes features of this size."""
        distillation.feature_size(model, data, self.features, "FedGen")

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """w_1 ; G by the run's seed, the same on every rank."""
        super().setup(federation, model, data, fabric)
        size = distillation.feature_size(model, data, self.features, "FedGen")
        G = initial_generator(federation.streams, data.classes, size, self.hidden, self.noise)
        self.G = G.to(fabric.device)
        self.g = flat_parameters.flatten_model(self.G)  # what the resident generator computes with
        self.g_t = self.g.clone()
        self.head = feature_generator.Head(model)
        self.adam = torch.optim.Adam(
            self.G.parameters(), lr=self.generator_learning_rate, weight_decay=self.generator_weight_decay
        )
        self.known = torch.zeros(data.classes, dtype=torch.bool, device=fabric.device)  # labels that G has seen

    def download(self, t: int) -> codecs.Payload:
        """w_t ; from round 2 on G, and for which labels it has been trained."""
        if t == 1:
            return super().download(t)
        return {**super().download(t), "generator": codecs.dense(self.g_t), "labels": codecs.bits(self.known)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """w <- w_t; E epochs of regularised training; send w and the label counts."""
        self.load(download["weights"])
        loss = self.regularised_loss(client, download, t) if "generator" in download else None
        self.resident.train(client, t, self.on_local_step, loss=loss)
        counts = client.data.label_counts.to(self.w.device)
        return {"weights": codecs.dense(self.w), "label_counts": codecs.dense(counts)}

    def regularised_loss(
        self, client: Client, download: dict[str, Tensor], t: int
    ) -> Callable[[tuple[Tensor, Tensor], int], Tensor]:
        """Return a client's loss of a batch, which looks at generated features in the first epochs."""
        self.g.copy_(download["generator"])
        self.G.eval()
        model: Any = self.model
        labels = download["labels"].nonzero().squeeze(1)
        draws = client.random("generated features", t)
        B_g, steps_per_epoch = self.generated_batch_size, -(-client.samples // self.training.batch_size)
        alpha_r = beta_r = regularisation(self.strength, self.decay, t - 1)
        ratio = B_g / self.training.batch_size

        def loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
            x, y = batch
            f = model.head(model.features(x))
            supervised = torch.nn.functional.cross_entropy(f, y)
            model.log("train/loss", supervised)
            if step // steps_per_epoch >= self.regularised_epochs:
                return supervised
            y_hat = uniform_labels(labels, B_g, draws)
            generated = generated_cross_entropy(model.head, self.G, y_hat, draws)
            kl = agreement(model.head, self.G, f, y, draws)
            return supervised + ratio * alpha_r * generated + beta_r * kl

        return loss

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w_{t+1} = sum_k (n_k / n) w_k ; G learns what the clients' heads take for which label."""
        received = distillation.received_in_order(uploads, self.federation)
        self.generator_loss = self.train_generator(
            t,
            torch.stack([sent["weights"] for _, sent in received]),
            torch.stack([sent["label_counts"] for _, sent in received]),
        )
        self.w_t = distillation.sample_weighted_mean(received).to(self.w)

    def train_generator(self, t: int, w: Tensor, counts: Tensor) -> float:
        """Take G's steps of one round; return the mean loss.

        Args:
            t: The round.
            w: What each client sent (clients, d + b).
            counts: Samples of each client and label, int64 (clients, classes).
        """
        heads = [flat_parameters.named_parts(w_k, self._tensors_of_head()) for w_k in w]
        omega = label_shares(counts)
        labels = (counts.sum(dim=0) > 0).nonzero().squeeze(1)
        self.known[labels] = True
        draws = self.federation.streams.torch("generator", round=t)
        self.g.copy_(self.g_t)
        self.head.eval()
        for group in self.adam.param_groups:
            group["lr"] = self.generator_learning_rate * self.decay ** (t - 1)

        def loss(eps: Tensor, z: Tensor, y: Tensor) -> Tensor:
            diverse = self.diversity * diversity_loss(eps, z)
            logits = [torch.func.functional_call(self.head, h_k, (z,)).float() for h_k in heads]
            return sum(teacher_losses(logits, omega, y), start=diverse)

        def some_labels() -> Tensor:
            return uniform_labels(labels, self.generated_batch_size, draws)

        mean_loss = take_steps(self.G, self.adam, self.generator_steps, some_labels, loss, draws)
        self.g_t = self.g.clone()
        return mean_loss

    def _tensors_of_head(self) -> dict[str, Tensor]:
        """The module's tensors by the names that they have below `head`, in the order of a client's vector."""
        floating = {name: buffer for name, buffer in self.head.named_buffers() if buffer.is_floating_point()}
        return {**dict(self.head.named_parameters()), **floating}

    def round_metrics(self, t: int) -> dict[str, float]:
        """Mean loss of the generator's steps, and alpha_r."""
        strength = regularisation(self.strength, self.decay, t - 1) if t > 1 else 0.0
        return {"generator/loss": self.generator_loss, "generator/strength": strength}

    def state_dict(self) -> dict[str, Any]:
        """w_{t+1}, G, its optimiser, and the labels it has been trained for."""
        return {
            **super().state_dict(),
            "generator": self.g_t,
            "generator_optimizer": self.adam.state_dict(),
            "labels": self.known,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        super().load_state_dict(state)
        self.g_t = state["generator"].to(self.g)
        self.g.copy_(self.g_t)
        self.adam.load_state_dict(state["generator_optimizer"])
        self.known = state["labels"].to(self.known)


def regularisation(strength: float, decay: float, r: int) -> float:
    """Return alpha_r = beta_r = max(10^-4, strength * decay^r), with rounds r from 0 (section 6.8)."""
    return max(1e-4, strength * decay**r)


def label_shares(counts: Tensor) -> Tensor:
    """Return omega_{k,y}, the share of label y that client k holds, float32 (clients, classes); 0 where nobody has y.

    Args:
        counts: Samples of each client and label, int64 (clients, classes).
    """
    return (counts.double() / counts.sum(dim=0).clamp(min=1)).float()


def initial_generator(
    streams: RandomStreams, classes: int, features: int, hidden: int, noise: int
) -> feature_generator.FeatureGenerator:
    """Return a generator whose weights follow from the run's seed, on the CPU.

    Args:
        streams: The run's random streams.
        classes: Number of labels.
        features: Elements of z, d_z.
        hidden: Width between its two linear layers.
        noise: Elements of eps, d_eps.
    """
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(streams.seed_for("generator"))
        return feature_generator.FeatureGenerator(classes, features, hidden, noise)


def take_steps(
    G: feature_generator.FeatureGenerator,
    optimizer: torch.optim.Optimizer,
    steps: int,
    labels: Callable[[], Tensor],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    draws: torch.Generator,
) -> float:
    """Train a generator; return the mean loss of its steps.

    Args:
        G: The generator.
        optimizer: Over its parameters.
        steps: Number of steps.
        labels: Returns the labels of a step, int64 (B,).
        loss: Takes noise (B, d_eps), features made of it (B, d_z) and their labels (B,).
        draws: CPU generator, source of the noise.
    """
    G.train()
    losses = []
    for _ in range(steps):
        y = labels()
        eps, z = G.draw(y, draws)
        L = loss(eps, z, y)
        optimizer.zero_grad()
        L.backward()
        optimizer.step()
        losses.append(L.detach())
    return float(torch.stack(losses).mean())


def uniform_labels(labels: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Return some of the labels (n,), each as likely as any other, int64 (count,)."""
    return labels[torch.randint(len(labels), (count,), generator=draws).to(labels.device)]


def teacher_losses(logits: Sequence[Tensor], omega: Tensor, y: Tensor) -> list[Tensor]:
    """Return mean_j omega_{k,y_j} CE( logits_kj, y_j ) for each client k.

    Args:
        logits: What each client's head says about generated features (B, classes).
        omega: Share of each label that each client holds (clients, classes).
        y: The labels that the features were made for, int64 (B,).
    """
    cross_entropy = torch.nn.functional.cross_entropy
    return [
        (omega_k[y] * cross_entropy(said, y, reduction="none")).mean()
        for said, omega_k in zip(logits, omega, strict=True)
    ]


def generated_cross_entropy(
    head: Callable[[Tensor], Tensor], G: feature_generator.FeatureGenerator, y_hat: Tensor, draws: torch.Generator
) -> Tensor:
    """Return CE( h(G(eps, y^)), y^ ), whose gradient stops at the features.

    Args:
        head: From features (B, d_z) to logits (B, classes).
        G: The generator.
        y_hat: Labels, int64 (B,).
        draws: CPU generator, source of the noise.
    """
    with torch.no_grad():
        z_hat = G.draw(y_hat, draws)[1]
    return torch.nn.functional.cross_entropy(head(z_hat), y_hat)


def agreement(
    head: Callable[[Tensor], Tensor],
    G: feature_generator.FeatureGenerator,
    f: Tensor,
    y: Tensor,
    draws: torch.Generator,
) -> Tensor:
    """Return KL( sg softmax h(G(eps, y)) || softmax f ), the mean over samples.

    Args:
        head: From features (B, d_z) to logits (B, classes).
        G: The generator.
        f: Logits of a client's own samples (B, classes).
        y: Their labels, int64 (B,).
        draws: CPU generator, source of the noise.
    """
    with torch.no_grad():
        target = torch.softmax(head(G.draw(y, draws)[1]).float(), dim=1)
    return torch.nn.functional.kl_div(torch.log_softmax(f.float(), dim=1), target, reduction="batchmean")


def diversity_loss(eps: Tensor, z: Tensor) -> Tensor:
    """Return exp( - mean_ij ||eps_i - eps_j||^2 / d_eps * ||z_i - z_j||_1 / d_z ): far noise, far features.

    Args:
        eps: Noise (B, d_eps).
        z: Features made of it (B, d_z).
    """
    noise = (eps.unsqueeze(0) - eps.unsqueeze(1)).square().mean(dim=2)
    features = torch.cdist(z, z, p=1) / z.shape[1]
    return torch.exp(-(noise * features).mean())
