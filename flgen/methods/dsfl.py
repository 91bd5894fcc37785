"""DS-FL: Itahara, Nishio, Koda, Morikura, Yamamoto, "Distillation-Based Semi-Supervised Federated Learning for
Communication-Efficient Collaborative Training With Non-IID Private Data", IEEE Trans. Mobile Computing, 2023.

everybody: w_k = w_1, the server too ; no weights are ever sent
round t, each client k of the cohort:
    w_k <- E_d epochs on (o, p^_{t-1}(o)), o in O_{t-1}                  from round 2 on
    w_k <- E epochs on its own data ; send p_k(o), o in O_t
server:
    p-(o) = 1/|S| sum_k p_k(o) ; p^_t(o) = softmax( p-(o) / T )          entropy-reduction averaging
    w <- E_d epochs on (o, p^_t(o)), o in O_t
"""

from __future__ import annotations

from typing import Any, Literal

from flgen.data.labelled_data import LabelledData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods import distillation
from flgen.methods.base import ServerMethod
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import client_data
    from flgen.federation import local_training, resident
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    local_training = deferred_module("flgen.federation.local_training")
    resident = deferred_module("flgen.federation.resident")


class DSFL(ServerMethod):
    """Clients and server exchange what their models say about public samples, never weights (gptfl.md, section 6.6).

    The module's `forward` must return logits (B, classes). A client learns p^ of the last round when its next turn
    begins, before it trains: of clients that take part in every round the sequence of steps is the published one. O_t
    is drawn from a stream that everybody knows, so its rows are not sent; nor is w_1, which is the module's own.
    `test/accuracy` is that of the server's model, `test/accuracy_trained` that of each client's on its own test data.

    Args:
        training: How clients train on their own data; distillation has its batch size and its learning rate.
        public_data: The unlabelled samples; its labels are not read.
        public_samples: |O_t|, drawn anew in each round; all of them where there are fewer.
        distillation_epochs: Passes over O_t, E_d.
        aggregation: "ERA" sharpens the mean of the clients' probabilities, "SA" takes it as it is.
        temperature: T of ERA; as it divides probabilities and not logits, 0.1 sharpens by at most e^10.
        topology: How uploads reach the server.

    Raises:
        UsageError: No public data, or a number is out of its range.
    """

    collection: Collection = "sum"
    personal = True

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        public_data: LabelledData | None = None,
        public_samples: int = 1000,
        distillation_epochs: int = 5,
        aggregation: Literal["ERA", "SA"] = "ERA",
        temperature: float = 0.1,
        topology: Star | None = None,
    ) -> None:
        super().__init__(topology)
        self.training = training
        self.public_data = distillation.required(public_data, "DSFL")
        option_ranges.at_least("method", 1, public_samples=public_samples, distillation_epochs=distillation_epochs)
        option_ranges.above_0("method", temperature=temperature)
        self.public_samples = public_samples
        self.distillation_epochs = distillation_epochs
        self.aggregation = aggregation
        self.temperature = temperature

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the module is a classifier, and load the public data."""
        distillation.check_logits(model, data)
        distillation.load_public_data(self.public_data, data)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take the module's own initial weights as w_1, the same on every rank."""
        super().setup(federation, model, data, fabric)
        self.resident = resident.ResidentModel(model, data, fabric, self.training)
        self.w = self.resident.vector  # what the resident module computes with
        self.w_1 = self.w_server = self.w.clone()
        self.counters_1 = self.resident.counters.clone()
        self.p_hat: Tensor | None = None

    def expected_work(self, client: Client) -> float:
        """A client's work is its samples in all its epochs, the public ones among them."""
        return client.samples * self.training.epochs + self.public_samples * self.distillation_epochs

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_1."""
        return {"weights": self.w_1.clone()}

    def load(self, weights: Tensor) -> None:
        """Let the resident module stand at some weights (d + b,)."""
        self.w.copy_(weights)
        self.resident.counters.copy_(self.counters_1)

    def open_subset(self, t: int) -> client_data.TensorClientData:
        """O_t, each sample labelled with its position."""
        rows = distillation.shuffled_rows(self.public_data, self.federation.streams.torch("open subset", round=t))
        return distillation.unlabelled(self.public_data, rows[: self.public_samples], self.w.device)

    def download(self, t: int) -> codecs.Payload:
        """p^_{t-1}, one row per sample of O_{t-1}; nothing in the first round."""
        return {} if self.p_hat is None else {"soft_labels": codecs.dense(self.p_hat)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Learn what everybody said, train, and say p_k(o)."""
        self.load(client.state["weights"])
        later = self.training.epochs * -(-client.samples // self.training.batch_size)
        before = 0
        if "soft_labels" in download:
            p_hat, public = download["soft_labels"], self.open_subset(t - 1)
            before = self.distillation_epochs * -(-public.samples // self.training.batch_size)
            self.resident.train(
                client,
                t,
                self.on_local_step,
                epochs=self.distillation_epochs,
                steps_after=later,
                data=public,
                purpose="public batches",
                augmented=False,  # p^ was said about the samples as they are
                loss=lambda batch, _: distillation.soft_cross_entropy(self.model(batch[0]), p_hat[batch[1]]),
            )
        self.resident.train(client, t, self.on_local_step, steps_before=before)
        client.state = {"weights": self.w}
        p_k = torch.softmax(distillation.logits_on(self.resident, self.open_subset(t)), dim=1)
        return {"probabilities": codecs.dense(p_k)}

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """p^_t from the mean over clients; the server's model learns it."""
        p_bar = uploads.mean()["probabilities"]
        p_hat = entropy_reduction(p_bar, self.temperature) if self.aggregation == "ERA" else p_bar
        self.p_hat = p_hat.to(self.w)
        self.load(self.w_server)
        self.distilled = self.distil(t, self.p_hat)
        self.w_server = self.w.clone()

    def distil(self, t: int, p_hat: Tensor) -> float:
        """Train the server's weights on (o, p^_t(o)); return the mean loss."""
        streams = self.federation.streams
        optimizer = local_training.only_optimizer(self.model)
        for group in optimizer.param_groups:
            group["lr"] *= self.resident.learning_rate_factor(t)
        order = streams.torch("public batches", round=t)
        return distillation.train_on_server(
            self.resident,
            optimizer,
            self.open_subset(t).batches(self.training.batch_size, order, epochs=self.distillation_epochs),
            lambda x, o: distillation.soft_cross_entropy(self.model(self.data.standardize(x)), p_hat[o]),
            seed=streams.seed_for("distillation", round=t),
        )

    def round_metrics(self, t: int) -> dict[str, float]:
        """Mean loss of the server's steps, and the entropy of p^_t."""
        assert self.p_hat is not None
        entropy = torch.special.entr(self.p_hat.double()).sum(dim=1).mean()
        return {"distillation/loss": self.distilled, "distillation/entropy_nats": float(entropy)}

    def evaluate(self, t: int) -> dict[str, float]:
        """Return the module's own test metrics with the server's weights on the test split."""
        self.load(self.w_server)
        return self.resident.test_split()

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test the client's own model, as it was when it last spoke."""
        self.load(client.state["weights"])
        return self.resident.test_client(client, "trained")

    def state_dict(self) -> dict[str, Any]:
        """The server's weights, w_1 for clients yet to come, and p^_t."""
        said = {} if self.p_hat is None else {"soft_labels": self.p_hat}
        return {"weights": self.w_server, "first": self.w_1, **said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds, for the rounds to come and for whoever holds the module."""
        self.w_server = state["weights"].to(self.w)
        self.w_1 = state["first"].to(self.w)
        self.p_hat = state["soft_labels"].to(self.w) if "soft_labels" in state else None
        self.load(self.w_server)


def entropy_reduction(p_bar: Tensor, T: float) -> Tensor:
    """Return softmax(p_bar / T): of probabilities, not of logits (section 6.6).

    Args:
        p_bar: Mean over clients of their probabilities (n, classes).
        T: Temperature; below 1 it sharpens.
    """
    return torch.softmax(p_bar / T, dim=1)
