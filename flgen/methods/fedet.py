"""Fed-ET: Cho, Manoel, Joshi, Sim, Dimitriadis, "Heterogeneous Ensemble Knowledge Transfer for Training Large Models in
Federated Learning", IJCAI 2022.

server: its own model f, and x, which clients train ; a representation layer that both have
round t: the cohort trains x as in FedAvg, each client sends w_k
server:
    f's representation layer <- mean of the clients' ones
    for each public o, from the logits s_k(o):
        alpha_k = Var_c[s_k] / sum_j Var_c[s_j] ; s = sum_k alpha_k s_k ; y^ = argmax s
        s_div = sum of alpha_k s_k over the k with argmax s_k != y^, alpha renormalised among them
    f <- SGD on CE(f(o), y^) + lambda KL( softmax(s_div) || softmax(f(o)) )
    x <- sum_k (n_k / n) w_k ; x's representation layer <- f's
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from flgen.data.labelled_data import LabelledData
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

    from flgen.data import client_data
    from flgen.federation.clients import Federation
    from flgen.topology.star import Uploads
else:
    torch = deferred_module("torch")


class FedET(FedAvg):
    """FedAvg beside a server's model that learns from the clients' weighted consensus (gptfl.md, section 6.7).

    The module's `forward` must return logits (B, classes). Server and clients have one architecture, --model, as in
    the comparison of GPT-FL. `test/accuracy` is that of the server's model f, `test/accuracy_aggregated` that of the
    clients' common x. Representation layers are averaged with equal weights, x with n_k.

    Args:
        training: How clients train.
        public_data: The unlabelled samples; its labels are not read.
        representation: Shell patterns of the names of the shared parameters, such as "linear.*"; null takes the last
            linear layer before the classifier, or the classifier where it is the only linear layer.
        diversity: Weight of the term for those who disagree, lambda.
        distillation_steps: SGD steps per round.
        distillation_batch_size: Samples per step.
        distillation_learning_rate: Of SGD.
        topology: How uploads reach the server.

    Raises:
        UsageError: No public data, or a number is out of its range.
    """

    collection: Collection = "gather"
    needs_single_uploads = "its server runs every client's model on the public data and weighs what each says"

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        public_data: LabelledData | None = None,
        representation: list[str] | None = None,
        diversity: float = 0.05,
        distillation_steps: int = 128,
        distillation_batch_size: int = 64,
        distillation_learning_rate: float = 5e-3,
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, topology=topology)
        self.public_data = distillation.required(public_data, "FedET")
        option_ranges.at_least(
            "method", 1, distillation_steps=distillation_steps, distillation_batch_size=distillation_batch_size
        )
        option_ranges.at_least("method", 0, diversity=diversity)
        option_ranges.above_0("method", distillation_learning_rate=distillation_learning_rate)
        self.representation = representation
        self.diversity = diversity
        self.distillation_steps = distillation_steps
        self.distillation_batch_size = distillation_batch_size
        self.distillation_learning_rate = distillation_learning_rate

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the module is a classifier with such a layer, and load the public data."""
        distillation.check_logits(model, data)
        representation_parameters(model, self.representation)
        distillation.load_public_data(self.public_data, data)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take the module's own initial weights as f and as x."""
        super().setup(federation, model, data, fabric)
        shared = representation_parameters(model, self.representation)
        parts = [torch.full((p.numel(),), name in shared) for name, p in model.named_parameters()]
        parts.append(torch.zeros(len(self.resident.buffers), dtype=torch.bool))
        self.is_shared = torch.cat(parts).to(self.w.device)  # (d + b,): where the representation layer lies
        self.f = self.w_t.clone()

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """The server's model learns from the clients', then gives its representation layer to x."""
        received = distillation.received_in_order(uploads, self.federation)
        rows = distillation.shuffled_rows(self.public_data, self.federation.streams.torch("public samples", round=t))
        needed = self.distillation_steps * self.distillation_batch_size  # by no step more
        o = distillation.unlabelled(self.public_data, rows[:needed], self.w.device)

        s, layers = [], torch.zeros((), dtype=torch.float64, device=self.w.device)
        for _, sent in received:
            self.load(sent["weights"])
            s.append(distillation.logits_on(self.resident, o))
            layers = layers + sent["weights"].double() / len(received)
        self.load(torch.where(self.is_shared, layers.to(self.w), self.f))
        self.transferred = self.transfer(t, o, torch.stack(s))
        self.f = self.w.clone()
        x = distillation.sample_weighted_mean(received).to(self.w)
        self.w_t = torch.where(self.is_shared, self.f, x)

    def transfer(self, t: int, samples: client_data.TensorClientData, s: Tensor) -> dict[str, float]:
        """Train the server's weights on what clients say; return what that looked like.

        Args:
            t: The round.
            samples: The public samples of this round.
            s: Logits of every client, (clients, n, classes).
        """
        streams = self.federation.streams
        alpha, consensus = weighted_consensus(s)
        y_hat = consensus.argmax(dim=1)
        s_div, disagreed = disagreement(s, alpha, y_hat)
        order = streams.torch("public batches", round=t)
        loss = distillation.train_on_server(
            self.resident,
            torch.optim.SGD(self.model.parameters(), lr=self.distillation_learning_rate),
            samples.batches(self.distillation_batch_size, order, steps=self.distillation_steps),
            lambda x, o: transfer_loss(
                self.model(self.data.standardize(x)), y_hat[o], s_div[o], disagreed[o], self.diversity
            ),
            seed=streams.seed_for("distillation", round=t),
        )
        return {"distillation/loss": loss, "distillation/disagreement": float(disagreed.double().mean())}

    def round_metrics(self, t: int) -> dict[str, float]:
        """Mean loss of the server's steps, and the share of public samples on which somebody disagreed."""
        return dict(self.transferred)

    def evaluate(self, t: int) -> dict[str, float]:
        """Return the module's own test metrics with f on the test split, or nothing if it has none."""
        self.load(self.f)
        return self.resident.test_split()

    def state_dict(self) -> dict[str, Any]:
        """x and f."""
        return {**super().state_dict(), "server": self.f}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take x and f of a checkpoint; whoever holds the module gets f."""
        super().load_state_dict(state)
        self.f = state["server"].to(self.w)
        self.load(self.f)


def representation_parameters(model: LightningModule, patterns: list[str] | None) -> list[str]:
    """Return the names of the parameters that server and clients share.

    Raises:
        UsageError: A pattern names nothing, or there is no linear layer to take by default.
    """
    names = [name for name, _ in model.named_parameters()]
    if patterns is None:
        linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
        if not linear:
            raise UsageError(
                f"--model {type(model).__name__} has no linear layer to share: name parameters by "
                "--method.representation"
            )
        patterns = [f"{linear[-2:][0]}.*"]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"--method.representation has {pattern!r}, which names no parameter; there are {', '.join(names)}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def weighted_consensus(s: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha (clients, n) and sum_k alpha_k s_k (n, classes): who is sure of itself counts more (section 6.7).

    Where no client prefers any class, all count alike.

    Args:
        s: Logits of every client (clients, n, classes).
    """
    confidence = s.var(dim=2)
    total = confidence.sum(dim=0)
    alpha = torch.where(total > 0, confidence / total.where(total > 0, torch.ones_like(total)), 1 / len(s))
    return alpha, (alpha.unsqueeze(2) * s).sum(dim=0)


def disagreement(s: Tensor, alpha: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Return s_div (n, classes), and whether anybody of weight disagrees, bool (n,); s_div is 0 where nobody does.

    Args:
        s: Logits of every client (clients, n, classes).
        alpha: Weights of the clients (clients, n).
        y_hat: Labels of the consensus (n,).
    """
    others = alpha * (s.argmax(dim=2) != y_hat)
    total = others.sum(dim=0)
    disagreed = total > 0
    renormalised = others / total.where(disagreed, torch.ones_like(total))
    return (renormalised.unsqueeze(2) * s).sum(dim=0), disagreed


def transfer_loss(f: Tensor, y_hat: Tensor, s_div: Tensor, disagreed: Tensor, diversity: float) -> Tensor:
    """Return the mean of CE(f, y^) + lambda KL( softmax(s_div) || softmax(f) ), without KL where all agree.

    Args:
        f: Logits of the server's model (B, classes).
        y_hat: Labels of the consensus (B,).
        s_div: Logits of those who disagree (B, classes).
        disagreed: Whether there are any (B,).
        diversity: lambda.
    """
    log_f = torch.log_softmax(f.to(s_div.dtype), dim=1)
    log_div = torch.log_softmax(s_div, dim=1)
    agreement = torch.nn.functional.nll_loss(log_f, y_hat)
    kl = (log_div.exp() * (log_div - log_f)).sum(dim=1)
    return agreement + diversity * (kl * disagreed).mean()
