"""FedGen for networks whose feature extractors differ: Zhu, Hong, Zhou, "Data-Free Knowledge Distillation for
Heterogeneous Federated Learning", ICML 2021, with the head as the part that is shared.

server: w-_1, a head h ; a generator g(eps, y) of features z
round t, each client k of the cohort:
    head of w_k <- w-_t ; w_k <- E epochs on  CE(f_k(x), y)                                alone in the first round
        + CE( h(g(eps, y^)), y^ )
    sends w-_k, the head of w_k, and in its own first round how often it has each label
server:
    w-_{t+1} = sum_k a_k w-_k ,  a_k = n_k / n
    100 times:  g <- Adam step on  CE( sum_k a_k h_k(g(eps, y)), y )
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods import distillation, fedgen
from flgen.methods.lgfedavg import LGFedAvg
from flgen.methods.own_networks import Fidelity
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import flat_parameters, resident
    from flgen.federation.clients import Client, Federation
    from flgen.models import feature_generator
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    feature_generator = deferred_module("flgen.models.feature_generator")
    flat_parameters = deferred_module("flgen.federation.flat_parameters")


class FedGenHeads(LGFedAvg):
    """LG-FedAvg with a generator of features that carries to each client what the others know (fedktl.md, section 5.2).

    Every network must have features of one width and a head of the same shape. The server trains the generator against
    the clients' heads and sends it from round 2 on, with the label counts of all clients, of which labels are drawn;
    clients send theirs in the clear. `accuracy_aggregated` is that of a client's extractor under the new average head,
    `accuracy_trained` that of its network as it trained it last.

    Args:
        training: How clients train; generated batches are of the same size B, on clients and server.
        variant: "htfllib" as above: the generator answers to the weighted mean of the heads' logits. "original": it
            answers to each head by the share of a label that its client holds, with a reward for diversity; clients
            weigh what is generated, and also draw their predictions on x to those on g(eps, y) of the same label.
        hidden: Width of the generator.
        noise: Elements of eps, drawn uniformly from 0 to 1.
        generator_steps: Steps of the generator per round.
        generator_learning_rate: Of its Adam; of "original" in the first round.
        generator_weight_decay: Of its Adam.
        alpha: Of "original": weight of the cross-entropy on generated features before any decay.
        beta: Of "original": weight of the divergence between predictions before any decay.
        diversity: Of "original": weight of the diversity term.
        decay: Of "original": factor per round of alpha, beta and the generator's learning rate.
        init: Whether each client draws initial weights of its own, or takes those that its network was built with.
        fidelity: "corrected", or the published code's order of samples and equal beginnings; its generator, which was
            trained and never sent, stays mended.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    collection: Collection = "gather"
    needs_single_uploads: ClassVar[str] = "its generator learns from every client's head and label counts"

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        variant: Literal["htfllib", "original"] = "htfllib",
        hidden: int = 512,
        noise: int = 32,
        generator_steps: int = 100,
        generator_learning_rate: float = 0.1,
        generator_weight_decay: float = 0.0,
        alpha: float = 10.0,
        beta: float = 10.0,
        diversity: float = 1.0,
        decay: float = 0.98,
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, init, fidelity, topology)
        if training.batch_size < 2:
            raise UsageError(
                f"--method.training.batch_size is {training.batch_size}: give 2 or more, FedGenHeads generates as many "
                "features at once, and its generator has BatchNorm"
            )
        option_ranges.at_least("method", 1, hidden=hidden, noise=noise, generator_steps=generator_steps)
        option_ranges.at_least(
            "method",
            0,
            generator_weight_decay=generator_weight_decay,
            alpha=alpha,
            beta=beta,
            diversity=diversity,
        )
        option_ranges.above_0("method", generator_learning_rate=generator_learning_rate)
        if not 0 < decay <= 1:
            raise UsageError(f"--method.decay is {decay}: give a factor above 0, at most 1")
        self.variant = variant
        self.hidden = hidden
        self.noise = noise
        self.generator_steps = generator_steps
        self.generator_learning_rate = generator_learning_rate
        self.generator_weight_decay = generator_weight_decay
        self.alpha = alpha
        self.beta = beta
        self.diversity = diversity
        self.decay = decay

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """w-_1 ; g by the run's seed, the same on every rank."""
        super().setup(federation, model, data, fabric)
        first = self.residents.number(0)
        self.h = feature_generator.FlatHead(first.module, first.last)
        G = fedgen.initial_generator(federation.streams, data.classes, self.d, self.hidden, self.noise)
        self.G = G.to(fabric.device)
        self.Theta_g = sum(parameter.numel() for parameter in G.parameters())
        self.g = flat_parameters.flatten_model(self.G)  # what the resident generator computes with
        self.g_t = self.g.clone()
        self.adam = torch.optim.Adam(
            self.G.parameters(), lr=self.generator_learning_rate, weight_decay=self.generator_weight_decay
        )
        # Samples of each client and label, as far as clients have said it (N, classes).
        self.counts = torch.zeros(len(federation), data.classes, dtype=torch.int64, device=fabric.device)

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_k, and that the server has not been told the client's label counts."""
        return {**super().initial_state(client), "counted": torch.zeros(1, dtype=torch.bool)}

    def download(self, t: int) -> codecs.Payload:
        """w-_t ; once g has been trained, g, its BatchNorm's statistics, and how often there is each label."""
        if not self.counts.any():
            return super().download(t)
        return {
            **super().download(t),
            "generator": codecs.dense(self.g_t[: self.Theta_g]),
            "generator_statistics": codecs.dense(self.g_t[self.Theta_g :]),
            "label_counts": codecs.dense(self.counts.sum(dim=0).to(torch.int32)),
        }

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Take the common head, train on own and on generated features, send the head."""
        counted = bool(client.state["counted"])
        head = self.head(self.train(client, download, t))
        client.state["counted"] = torch.ones(1, dtype=torch.bool)
        sent = {"head": codecs.dense(head)}
        if not counted:
            sent["label_counts"] = codecs.dense(client.data.label_counts.to(head.device, torch.int32))
        return sent

    def local_loss(
        self, at: resident.ResidentModel, client: Client, download: dict[str, Tensor], t: int
    ) -> Callable[[tuple[Tensor, Tensor], int], Tensor] | None:
        """Return a client's loss of a batch, which looks at generated features too, once there is a generator."""
        if "generator" not in download:
            return None
        self.g.copy_(torch.cat([download["generator"], download["generator_statistics"]]))
        self.G.eval()
        network: Any = at.module
        draws = client.random("generated features", t)
        alpha_t, beta_t = self.strengths(t)
        counts, B = download["label_counts"], self.training.batch_size

        def loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
            x, y = batch
            f = network.head(network.features(x))
            supervised = torch.nn.functional.cross_entropy(f, y)
            network.log("train/loss", supervised)
            y_hat = self.some_labels(counts, B, draws)
            L = supervised + alpha_t * fedgen.generated_cross_entropy(network.head, self.G, y_hat, draws)
            if beta_t:
                L = L + beta_t * fedgen.agreement(network.head, self.G, f, y, draws)
            return L

        return loss

    def strengths(self, t: int) -> tuple[float, float]:
        """Return alpha and beta of a round: 1 and 0, or those of "original", which fall but never below 10^-4."""
        if self.variant == "htfllib":
            return 1.0, 0.0
        alpha_t, beta_t = (fedgen.regularisation(strength, self.decay, t - 1) for strength in (self.alpha, self.beta))
        return alpha_t, beta_t

    def some_labels(self, counts: Tensor, n: int, draws: torch.Generator) -> Tensor:
        """Return labels drawn from the pooled histogram, or in "original" each that exists as likely as any other.

        Args:
            counts: Samples of each label (classes,).
            n: Number of labels.
            draws: CPU generator.
        """
        if self.variant == "original":
            return fedgen.uniform_labels((counts > 0).nonzero().squeeze(1), n, draws)
        return torch.multinomial(counts.double().cpu(), n, replacement=True, generator=draws).to(counts.device)

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w-_{t+1}, weighted by n_k ; g learns what the clients' heads take for which label."""
        received = distillation.received_in_order(uploads, self.federation)
        for client, sent in received:
            if "label_counts" in sent:
                self.counts[client.key] = sent["label_counts"].to(self.counts)
        w = torch.stack([sent["head"] for _, sent in received]).to(self.w_bar)
        samples = torch.tensor([client.samples for client, _ in received], dtype=torch.float64, device=w.device)
        a = samples / samples.sum()
        self.w_bar = distillation.sample_weighted_mean(received, "head").to(self.w_bar)
        self.generator_loss = self.train_generator(t, w, a, self.counts[[client.key for client, _ in received]])
        self.participants = len(uploads)

    def train_generator(self, t: int, w: Tensor, a: Tensor, counts: Tensor) -> float:
        """Take g's steps of one round; return the mean loss.

        Args:
            t: The round.
            w: The head of each client of the round (clients, p_h).
            a: Its share of their samples (clients,).
            counts: Their samples of each label, int64 (clients, classes).
        """
        original = self.variant == "original"
        draws = self.federation.streams.torch("generator", round=t)
        omega = fedgen.label_shares(counts)
        pooled = (counts if original else self.counts).sum(dim=0)  # nobody of the round answers for other labels
        for group in self.adam.param_groups:
            group["lr"] = self.generator_learning_rate * (self.decay ** (t - 1) if original else 1)
        self.g.copy_(self.g_t)
        self.h.eval()

        def loss(eps: Tensor, z: Tensor, y: Tensor) -> Tensor:
            logits = torch.stack([self.h(w_k, z).float() for w_k in w])
            if not original:
                return ensemble_loss(logits, a, y)
            terms = fedgen.teacher_losses(list(logits), omega, y)
            return sum(terms, start=self.diversity * fedgen.diversity_loss(eps, z))

        def labels() -> Tensor:
            return self.some_labels(pooled, self.training.batch_size, draws)

        mean_loss = fedgen.take_steps(self.G, self.adam, self.generator_steps, labels, loss, draws)
        self.g_t = self.g.clone()
        return mean_loss

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """N p_h up, N (p_h + Theta_g) down; BatchNorm's statistics and label counts are not in it."""
        p_h = len(self.w_bar)
        return participants * p_h, participants * (p_h + self.Theta_g)

    def round_metrics(self, t: int) -> dict[str, float]:
        """Mean loss of the generator's steps, and the formula's traffic."""
        return {"generator/loss": self.generator_loss, **self.formula_metrics(self.participants)}

    def state_dict(self) -> dict[str, Any]:
        """w-_{t+1}, g, its optimiser, and the label counts that clients have sent."""
        return {
            **super().state_dict(),
            "generator": self.g_t,
            "generator_optimizer": self.adam.state_dict(),
            "label_counts": self.counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        super().load_state_dict(state)
        self.g_t = state["generator"].to(self.g)
        self.g.copy_(self.g_t)
        self.adam.load_state_dict(state["generator_optimizer"])
        self.counts = state["label_counts"].to(self.counts)


def ensemble_loss(logits: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """Return CE( sum_k a_k h_k(z), y ), the mean over features z (fedktl.md, section 5.2).

    Args:
        logits: What each client's head says about them (clients, B, classes).
        a: Share of the samples that each client has (clients,).
        y: The labels that they were made for, int64 (B,).
    """
    return torch.nn.functional.cross_entropy((a.to(logits).view(-1, 1, 1) * logits).sum(dim=0), y)
