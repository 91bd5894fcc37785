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
    from flgen.federation import residents
    from flgen.federation.clients import Client, Federation
else:
    residents = deferred_module("flgen.federation.residents")


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
        clients = len(federation)
        self.residents = residents.Residents(
            model, data, fabric, self.training, clients, self.last_parameters, self.init
        )
        if len(self.residents.networks) == 1:
            self.resident = self.residents.number(0)

    def last_parameters(self, model: LightningModule) -> list[str]:
        """Return the names of the parameters that shall stand last in the vector of weights."""
        return []

    def expected_work(self, client: Client) -> float:
        """A client's work is its number of samples."""
        return client.samples

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_0, or a draw of the client's own."""
        return self.residents.initial_state(client)

    def model_state(self) -> dict[str, Tensor]:
        """Return copies of the resident module's weights, and of its buffers if it has any."""
        return residents.state_of(self.resident)

    def load_buffers(self, state: dict[str, Tensor]) -> None:
        """Let the resident module go on with a client's buffers."""
        residents.load_buffers(self.resident, state)

    def report(self, client: Client, point: Literal["aggregated", "trained"]) -> None:
        """Test the client's resident module on the client's own test data, if this round is evaluated."""
        if self.evaluated:
            client.metrics.update(self.residents.of(client).test_client(client, point))

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test the model that the client trained last."""
        return self.residents.load(client).test_client(client, "trained")
