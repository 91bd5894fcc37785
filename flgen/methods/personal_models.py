"""What methods share in which every client has a model of its own and there is no server."""

from __future__ import annotations

from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.federation.training_options import PUBLISHED, LocalTraining
from flgen.methods.base import PeerMethod
from flgen.topology.peers import PeerTopology

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import resident
    from flgen.federation.clients import Client, Federation
else:
    resident = deferred_module("flgen.federation.resident")


class PersonalModels(PeerMethod):
    """A model per client; a client's state holds its weights w_k and its buffers between its turns.

    On each client's own test data `accuracy_aggregated` is that of the model after mixing, `accuracy_trained` that
    after local training.

    Args:
        training: How clients train.
        init: Whether all clients begin with the module's own initial weights, or each with a draw of its own.
        topology: Who reads from whom.
    """

    def __init__(
        self,
        training: LocalTraining = PUBLISHED,
        init: Literal["shared", "independent"] = "shared",
        topology: PeerTopology | None = None,
    ) -> None:
        super().__init__(topology)
        self.training = training
        self.init = init

    @property
    def draws_weights(self) -> str:
        """With independent weights every client has a draw of its own."""
        return "--method.init independent" if self.init == "independent" else ""

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take the module's own initial weights as w_0, the same on every rank."""
        super().setup(federation, model, data, fabric)
        self.resident = resident.ResidentModel(model, data, fabric, self.training, last=self.last_parameters(model))
        self.w_0 = self.resident.vector.clone()
        self.counters_0 = self.resident.counters.clone()

    def last_parameters(self, model: LightningModule) -> list[str]:
        """Return the names of the parameters that shall stand last in the vector of weights."""
        return []

    def expected_work(self, client: Client) -> float:
        """A client's work is its number of samples."""
        return client.samples

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_0, or a draw of the client's own."""
        self.resident.vector.copy_(self.w_0)
        self.resident.counters.copy_(self.counters_0)
        if self.init == "independent":
            self.resident.reset(client.streams.seed_for("initial weights", client=client.key))
        return self.model_state()

    def model_state(self) -> dict[str, Tensor]:
        """Return copies of the resident module's weights, and of its buffers if it has any."""
        kept = {
            "weights": self.resident.weights,
            "buffers": self.resident.buffers,
            "counters": self.resident.counters,
        }
        return {name: tensor.clone() for name, tensor in kept.items() if name == "weights" or tensor.numel()}

    def load_buffers(self, state: dict[str, Tensor]) -> None:
        """Let the resident module go on with a client's buffers."""
        if "buffers" in state:
            self.resident.buffers.copy_(state["buffers"])
        if "counters" in state:
            self.resident.counters.copy_(state["counters"])

    def report(self, client: Client, point: Literal["aggregated", "trained"]) -> None:
        """Test the resident module on the client's own test data, if this round is evaluated."""
        if self.evaluated:
            client.metrics.update(self.resident.test_client(client, point))

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test the model that the client trained last."""
        self.resident.weights.copy_(client.state["weights"])
        self.load_buffers(client.state)
        return self.resident.test_client(client, "trained")
