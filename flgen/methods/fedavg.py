"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.

server: w_1
round t, each client k of the cohort: w <- w_t ; E epochs of the module's own optimiser on its data ; send w
server: w_{t+1} = sum_k p_k w_k ; p_k = n_k / n
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.federation.training_options import LocalTraining
from flgen.methods.base import ServerMethod
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.data.client_data import ClientData
    from flgen.federation import resident
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    resident = deferred_module("flgen.federation.resident")


class FedAvg(ServerMethod):
    """Average the weights that clients trained on their own data (gptfl.md, section 6.1).

    A method that is FedAvg but for a term in the local gradient overrides `on_gradient`; one that is FedAvg but for
    the server's step overrides `server_update`.

    On each client's own test data it reports `accuracy_aggregated`, the new average's; with `keep_personal`,
    `accuracy_trained`, that of the model that the client itself trained last (w_1 before its first time), which may
    be many rounds old; with `fine_tune`, after the last round, `accuracy_fine_tuned`.

    Args:
        training: How clients train.
        weighting: What a client counts in the average: its number of "samples", p_k = n_k / n, or as much as any other
            ("uniform"), p_k = 1 / |S|, as in the code of the authors of GPT-FL.
        keep_personal: Whether each client keeps the model it trained last, to be tested.
        fine_tune: Whether every client trains the last average once more on its own data, to be tested and then
            thrown away: at the last round's learning rate ("annealed"), or at the first one's ("reset").
        topology: How uploads reach the server.
    """

    collection: Collection = "sample_weighted_sum"
    personal = True
    has_updates = True
    server_learning_rate: float = 1.0
    """Share of the way from w_t to the average that the server goes, eta_g."""

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        weighting: Literal["samples", "uniform"] = "samples",
        keep_personal: bool = False,
        fine_tune: Literal["none", "annealed", "reset"] = "none",
        topology: Star | None = None,
    ) -> None:
        super().__init__(topology)
        self.training = training
        self.weighting = weighting
        if weighting == "uniform":
            self.collection = "sum"
        self.keep_personal = keep_personal
        self.fine_tune = fine_tune

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take the module's own initial weights as w_1, the same on every rank."""
        super().setup(federation, model, data, fabric)
        federation.stateless = not self.keep_personal
        self.resident = resident.ResidentModel(model, data, fabric, self.training)
        self.w = self.resident.vector  # what the resident module computes with
        self.w_1 = self.w_t = self.w.clone()
        self.counters_1 = self.resident.counters.clone()

    def expected_work(self, client: Client) -> float:
        """A client's work is its number of samples."""
        return client.samples

    def download(self, t: int) -> codecs.Payload:
        """w_t."""
        return {"weights": codecs.dense(self.w_t)}

    def load(self, weights: Tensor) -> None:
        """Let the resident module begin at some weights (d + b,), its integer buffers at the server's own values.

        Those are BatchNorm's counters: an average of them means nothing, and a client must not go on counting where
        another one of its process stopped.
        """
        self.w.copy_(weights)
        self.resident.counters.copy_(self.counters_1)

    def on_gradient(self, client: Client, download: dict[str, Tensor]) -> Callable[[], object] | None:
        """Return what is done to the gradient of each local step, before clipping; None does nothing."""
        return None

    def training_data(self, client: Client) -> ClientData:
        """Return what a client trains on: all that it has."""
        return client.data

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """w <- w_t; E epochs of local training; send w."""
        self.load(download["weights"])
        self.resident.train(
            client,
            t,
            self.on_local_step,
            data=self.training_data(client),
            on_gradient=self.on_gradient(client, download),
        )
        if self.keep_personal:
            client.state = {"weights": self.w}
        return {"weights": codecs.dense(self.w)}

    def update_of(self, download: dict[str, Tensor], upload: codecs.Payload) -> Tensor:
        """Delta_k = w_k - w_t, without buffers, float64 (d,)."""
        d = len(self.resident.weights)
        return upload["weights"].tensor[:d].double() - download["weights"][:d].double()

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w_{t+1}, from sum_k p_k w_k."""
        self.w_t = self.server_update(uploads.mean()["weights"]).to(self.w)

    def server_update(self, mean: Tensor) -> Tensor:
        """Return w_{t+1} = w_t + eta_g (sum_k p_k w_k - w_t); of floating-point buffers the average.

        Args:
            mean: sum_k p_k w_k, float64 (d + b,).
        """
        if self.server_learning_rate == 1:
            return mean  # to the bit, which w_t + (mean - w_t) is not
        d = len(self.resident.weights)
        w_t = self.w_t[:d]
        return torch.cat([w_t + self.server_learning_rate * (mean[:d] - w_t), mean[d:]])

    def evaluate(self, t: int) -> dict[str, float]:
        """Return the module's own test metrics with w_{t+1} on the test split, or nothing if it has none."""
        self.w.copy_(self.w_t)
        return self.resident.test_split()

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test w_{t+1}, and the client's own models if it has any."""
        self.load(download["weights"])
        metrics = self.resident.test_client(client, "aggregated")
        if self.fine_tune != "none" and t == self.federation.rounds:
            first = 1 if self.fine_tune == "reset" else t
            self.resident.train(client, t, lambda done, steps: None, purpose="fine tuning", decay_round=first)
            metrics |= self.resident.test_client(client, "fine_tuned")
        if self.keep_personal:
            self.w.copy_(client.state.get("weights", self.w_1))
            metrics |= self.resident.test_client(client, "trained")
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """w_{t+1}; where clients keep models of their own also w_1, which those have who never took part."""
        return {"weights": self.w_t, "first": self.w_1} if self.keep_personal else {"weights": self.w_t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint, for the rounds to come and for whoever holds the module."""
        self.w_t = state["weights"].to(self.w)
        self.w_1 = state.get("first", self.w_1).to(self.w)
        self.w.copy_(self.w_t)
