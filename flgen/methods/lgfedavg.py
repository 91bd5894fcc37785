"""LG-FedAvg: Liang et al., "Think Locally, Act Globally: Federated Learning with Local and Global Representations",
arXiv 2001.01523, with the head as the global part.

server: w-_1, a head
round t, each client k of the cohort: head of w_k <- w-_t ; w_k <- E epochs on CE ; send the head of w_k
server: w-_{t+1} = sum_k (n_k / n) head of w_k
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.methods.own_networks import OwnNetworks
from flgen.topology.star import Collection

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import resident
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    codecs = deferred_module("flgen.wire.codecs")


class LGFedAvg(OwnNetworks):
    """Average the heads of networks whose feature extractors differ (fedktl.md, section 5.1).

    Every network must have a head of the same shape. `accuracy_aggregated` is that of a client's extractor under the
    new average head, `accuracy_trained` that of its network as it trained it last.

    Args:
        training: How clients train.
        init: Whether each client draws initial weights of its own, or takes those that its network was built with.
        fidelity: "corrected", or the published code's order of samples and equal beginnings.
        topology: How uploads reach the server.
    """

    collection: Collection = "sample_weighted_sum"
    shares_head: ClassVar[bool] = True

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take the first network's own head as w-_1."""
        super().setup(federation, model, data, fabric)
        self.w_bar = self.head(self.residents.number(0)).clone()

    def download(self, t: int) -> codecs.Payload:
        """w-_t."""
        return {"head": codecs.dense(self.w_bar)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Take the common head, train, send the head."""
        return {"head": codecs.dense(self.head(self.train(client, download, t)))}

    def train(self, client: Client, download: dict[str, Tensor], t: int) -> resident.ResidentModel:
        """Let w_k take the common head, then E epochs of SGD; the client keeps it. Return the module that holds it."""
        at = self.residents.load(client)
        self.head(at).copy_(download["head"])
        loss = self.local_loss(at, client, download, t)
        at.train(client, t, self.on_local_step, data=self.training_data(client), loss=loss)
        client.state = self.residents.state(client)
        return at

    def local_loss(
        self, at: resident.ResidentModel, client: Client, download: dict[str, Tensor], t: int
    ) -> Callable[[tuple[Tensor, Tensor], int], Tensor] | None:
        """Return a client's loss of a batch and its number; None is that of its network's own `training_step`."""
        return None

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w-_{t+1}, weighted by n_k."""
        self.w_bar = uploads.mean()["head"].to(self.w_bar)
        self.participants = len(uploads)

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test the client's network as it was trained, then with the new common head."""
        metrics = super().evaluate_client(client, download, t)
        at = self.residents.of(client)
        self.head(at).copy_(download["head"])
        return metrics | self.test(client, at, download, "aggregated")

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """N p_h up, N p_h down."""
        return participants * len(self.w_bar), participants * len(self.w_bar)

    def round_metrics(self, t: int) -> dict[str, float]:
        """The formula's traffic."""
        return self.formula_metrics(self.participants)

    def state_dict(self) -> dict[str, Any]:
        """w-_{t+1}."""
        return {"head": self.w_bar}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the head of a checkpoint."""
        self.w_bar = state["head"].to(self.w_bar)
