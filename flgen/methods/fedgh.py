"""FedGH: Yi, Wang, Liu, Shi, Yu, "FedGH: Heterogeneous Federated Learning with Generalized Global Header", ACM
Multimedia 2023.

server: w-_1, a head h
round t, each client i of the cohort:
    head of w_i <- w-_t ; w_i <- E epochs on CE
    P_i^c = mean of f_i(x) over its samples of class c ; send (P_i^c, c) for each c that it holds
server:
    w-_{t+1} <- E_s epochs of SGD from w-_t on CE( h(P_i^c), c ), over all (P_i^c, c)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods.lgfedavg import LGFedAvg
from flgen.methods.own_networks import Fidelity
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation.clients import Client, Federation
    from flgen.methods import class_vectors
    from flgen.models import feature_generator
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    class_vectors = deferred_module("flgen.methods.class_vectors")
    feature_generator = deferred_module("flgen.models.feature_generator")


class FedGH(LGFedAvg):
    """LG-FedAvg whose server trains the common head, on the clients' class means of features (fedktl.md, section 5.3).

    Every network must have features of one width and a head of the same shape. `accuracy_aggregated` is that of a
    client's extractor under the new common head, `accuracy_trained` that of its network as it trained it last. Under
    secure aggregation the server trains on the mean of each class over the clients that hold it.

    Args:
        training: How clients train; the server's batches are of the same size B.
        server_learning_rate: Of the server's SGD.
        server_epochs: Passes over all class means, E_s.
        init: Whether each client draws initial weights of its own, or takes those that its network was built with.
        fidelity: "corrected", or the published code's order of samples and equal beginnings.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    collection: Collection = "gather"

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        server_learning_rate: float = 0.01,
        server_epochs: int = 1,
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, init, fidelity, topology)
        option_ranges.above_0("method", server_learning_rate=server_learning_rate)
        option_ranges.at_least("method", 1, server_epochs=server_epochs)
        self.server_learning_rate = server_learning_rate
        self.server_epochs = server_epochs
        self.summed = self.topology.secure_aggregation is not None
        if self.summed:
            self.collection = "sum"

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take the first network's own head as w-_1, and its form as h."""
        super().setup(federation, model, data, fabric)
        first = self.residents.number(0)
        self.h = feature_generator.FlatHead(first.module, first.last)

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Take the common head, train, send the class means of the features."""
        at = self.train(client, download, t)
        z = at.in_eval(self.training_data(client), cast("Any", at.module).features)
        P, n = class_vectors.class_means(z, self.C, nothing=at.weights.new_zeros(0, self.d))
        return class_vectors.send("prototypes", P, n > 0, self.summed)

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w-_{t+1}, trained on all class means."""
        received = class_vectors.receive("prototypes", uploads, self.federation, self.C, self.summed)
        self.h.eval()
        self.w_bar, self.head_loss = train_head(
            self.h,
            self.w_bar,
            received.rows.to(self.w_bar),
            received.labels.to(self.w_bar.device),
            learning_rate=self.server_learning_rate,
            batch_size=self.training.batch_size,
            epochs=self.server_epochs,
            draws=self.federation.streams.torch("class means", round=t),
        )
        self.participants, self.pairs = len(uploads), received.pairs

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """d sum_i C_i up, N p_h down."""
        return self.d * pairs, participants * len(self.w_bar)

    def round_metrics(self, t: int) -> dict[str, float]:
        """Mean loss of the server's steps, and the formula's traffic."""
        return {"head/loss": self.head_loss, **self.formula_metrics(self.participants, self.pairs)}


def train_head(
    h: Callable[[Tensor, Tensor], Tensor],
    w: Tensor,
    P: Tensor,
    c: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    draws: torch.Generator,
) -> tuple[Tensor, float]:
    """Return a head trained by SGD on class means, and the mean loss of the steps; 0 where there is nothing to learn.

    Args:
        h: Maps the head's parameters (p_h,) and features (B, d) to logits (B, classes).
        w: Parameters to begin with (p_h,); they stay as they are.
        P: Class means (M, d).
        c: The class of each, int64 (M,).
        learning_rate: Of SGD.
        batch_size: Class means per step; the last batch of a pass may be smaller.
        epochs: Passes over all of them, each in an order of its own.
        draws: CPU generator, source of the order.

    Source: fedktl.md, section 5.3.
    """
    trained = w.clone().requires_grad_()
    sgd = torch.optim.SGD([trained], lr=learning_rate)
    losses: list[Tensor] = []
    for _ in range(epochs if len(c) else 0):
        for rows in torch.randperm(len(c), generator=draws).to(c.device).split(batch_size):
            loss = torch.nn.functional.cross_entropy(h(trained, P[rows]), c[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.detach())
    return trained.detach(), float(torch.stack(losses).mean()) if losses else 0.0
