"""FedTGP: Zhang, Liu, Hua, Cao, "FedTGP: Trainable Global Prototypes with Adaptive-Margin-Enhanced Contrastive Learning
for Data and Model Heterogeneity in Federated Learning", AAAI 2024.

server: G, a vector of its own for each class and two layers behind it, which make P^ = G(c)
round t, each client k of the cohort: as in FedProto, with P^ in place of P-
server, from the P_k^c of all clients, phi the Euclidean distance, P-^c their mean:
    delta = min( max_c min_{c'!=c} phi(P-^c, P-^c'), tau )
    G <- 100 epochs of SGD on  - log [ e^{-(phi(P_k^c, P^c) + delta)}
                                       / ( e^{-(phi(P_k^c, P^c) + delta)} + sum_{c'!=c} e^{-phi(P_k^c, P^c')} ) ]
prediction: the class c whose P^c lies nearest to f_k(x)
"""

from __future__ import annotations

from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods.fedproto import FedProto
from flgen.methods.own_networks import Fidelity
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import resident
    from flgen.federation.clients import Client, Federation
    from flgen.methods import class_vectors
    from flgen.topology.star import Uploads
else:
    torch = deferred_module("torch")


class FedTGP(FedProto):
    """FedProto whose server learns prototypes that lie far apart, instead of averaging (fedktl.md, section 5.8).

    `accuracy_trained` is that of the nearest prototype, as in FedProto. Classes that nobody has ever held stand neither
    in the server's loss nor among the prototypes that are sent. Under secure aggregation the server learns from the
    mean prototype of each class. The authors advise 1000 rounds and more, and a `prototypes/loss` below 0.001.

    Args:
        training: How clients train; the server's batches have the size of theirs.
        prototype_weight: Weight of the clients' second term, lambda; published are 10 (HtFLlib) and 0.1 (Li et al.
            2025).
        largest_margin: Bound of the margin, tau.
        server_epochs: Passes of the server over the round's prototypes.
        server_learning_rate: Of its SGD; null takes the clients', that of the first network, with its decay.
        init: Whether each client draws initial weights of its own, or takes those that its network was built with.
        fidelity: "corrected", or what the published code does: besides the order of samples and equal beginnings,
            clients send prototypes of the network with which they began the round.
        topology: How uploads reach the server; under secure aggregation it sees sums over clients alone.

    Raises:
        UsageError: A number is out of its range.
    """

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        prototype_weight: float = 10.0,
        largest_margin: float = 100.0,
        server_epochs: int = 100,
        server_learning_rate: float | None = None,
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, prototype_weight, "uniform", init, fidelity, topology)
        option_ranges.at_least("method", 0, largest_margin=largest_margin)
        option_ranges.at_least("method", 1, server_epochs=server_epochs)
        option_ranges.above_0("method", server_learning_rate=server_learning_rate)
        self.largest_margin = largest_margin
        self.server_epochs = server_epochs
        self.server_learning_rate = server_learning_rate

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """G by the run's seed, the same on every rank."""
        super().setup(federation, model, data, fabric)
        nn, d = torch.nn, self.d
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(federation.streams.seed_for("prototypes"))
            G = nn.Sequential(nn.Embedding(self.C, d), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))
        self.G = G.to(fabric.device)
        self.classes = torch.arange(self.C, device=fabric.device)

    def train(
        self, client: Client, at: resident.ResidentModel, download: dict[str, Tensor], t: int
    ) -> tuple[Tensor, Tensor]:
        """Train a client's network; return P_k (C, d) and the samples behind it, as published from before training."""
        stale = self.prototypes(client, at) if self.fidelity == "reference" else None
        trained = super().train(client, at, download, t)
        return trained if stale is None else stale

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """P^ = G(c), once G has learnt what clients sent."""
        received = self.receive(uploads)
        self.delta = adaptive_margin(received.means, received.held, self.largest_margin)
        self.server_loss = self.train_server(t, received)
        with torch.no_grad():
            self.P_bar = self.G(self.classes)

    def train_server(self, t: int, received: class_vectors.ClassVectors) -> float:
        """Train G on the prototypes of one round; return the mean loss of the last epoch."""
        P, y = received.rows.to(self.P_bar), received.labels.to(self.classes)
        rate = self.server_learning_rate or self.residents.number(0).learning_rate(t)
        sgd = torch.optim.SGD(self.G.parameters(), lr=rate)
        order = self.federation.streams.torch("prototype batches", round=t)
        total = torch.zeros((), device=P.device)
        for _ in range(self.server_epochs if len(P) else 0):
            total.zero_()
            for drawn in torch.randperm(len(P), generator=order).split(self.training.batch_size):
                batch = drawn.to(P.device)
                loss = contrastive_loss(P[batch], y[batch], self.G(self.classes), self.known, self.delta)
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                total += loss.detach() * len(batch)
        return float(total) / max(len(P), 1)

    def round_metrics(self, t: int) -> dict[str, float]:
        """The server's loss, its margin delta, and the formula's traffic."""
        learnt = {"prototypes/loss": self.server_loss, "prototypes/margin": self.delta}
        return learnt | super().round_metrics(t)

    def state_dict(self) -> dict[str, Any]:
        """P^, which classes have one, and G."""
        return {**super().state_dict(), "network": dict(self.G.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        super().load_state_dict(state)
        self.G.load_state_dict(state["network"])


def adaptive_margin(P_bar: Tensor, held: Tensor, tau: float) -> float:
    """Return delta = min( max_c min_{c'!=c} ||P-^c - P-^c'||, tau ); tau where there are not two classes.

    Args:
        P_bar: Mean prototypes of this round (C, d).
        held: Whether somebody holds a class, bool (C,); the others do not count.
        tau: The bound.
    """
    rows = P_bar[held]
    if len(rows) < 2:
        return tau
    gaps = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return min(float(gaps.fill_diagonal_(float("inf")).min(dim=1).values.max()), tau)


def contrastive_loss(P: Tensor, y: Tensor, P_hat: Tensor, known: Tensor, delta: float) -> Tensor:
    """Return the mean over prototypes of  - log softmax_c( - phi(P, P^c) - delta [c = y] )  at c = y.

    Args:
        P: Prototypes of clients (B, d).
        y: Their classes, int64 (B,).
        P_hat: Trainable prototypes (C, d).
        known: Whether a class takes part, bool (C,); those of `y` do.
        delta: The margin.
    """
    # Differences, not the expanded square: that can be negative, and the root of zero would have no gradient.
    phi = torch.cdist(P, P_hat, compute_mode="donot_use_mm_for_euclid_dist")
    margin = delta * torch.nn.functional.one_hot(y, len(P_hat)).to(phi)
    return torch.nn.functional.cross_entropy((-phi - margin).masked_fill(~known, -float("inf")), y)
