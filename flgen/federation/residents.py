"""The resident modules of one rank, one per architecture: clients with the same network take turns in one module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal

from torch import Tensor

from flgen.data import LabelledData
from flgen.deferred import TYPE_CHECKING
from flgen.federation.model_group import ModelGroup, networks_of
from flgen.federation.resident import ResidentModel
from flgen.federation.training_options import LocalTraining

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric

    from flgen.federation.clients import Client

Init = Literal["independent", "shared"]


class Residents:
    """Finds each client's resident module, made when the first client of its architecture needs it.

    Args:
        model: One network for all, or a group; on its device.
        data: Where inputs come from.
        fabric: For precision and backward.
        training: How clients train.
        clients: Number of clients of the federation.
        last: Returns the names of the parameters of a network that come last among its weights.
        init: Whether each client begins with a draw of its own, or with its network's own initial weights.
        joins_single_samples: Whether a last batch of one sample joins the batch before it.

    Attributes:
        networks: One module per architecture.
        first_states: What each network stood at first of which there is a resident module, by architecture; with
            independent draws nothing.
    """

    def __init__(
        self,
        model: LightningModule,
        data: LabelledData,
        fabric: Fabric,
        training: LocalTraining,
        clients: int,
        last: Callable[[LightningModule], Collection[str]] = lambda network: (),
        init: Init = "shared",
        joins_single_samples: bool = False,
    ) -> None:
        self.networks = networks_of(model)
        self._group = model if isinstance(model, ModelGroup) else None
        self._about = data, fabric, training
        self._clients = clients
        self._init = init
        self._joins_single_samples = joins_single_samples
        self._last = last
        self._made: dict[int, ResidentModel] = {}
        self.first_states: dict[int, dict[str, Tensor]] = {}

    def architecture_of(self, client: Client) -> int:
        """Return the number of a client's network, from 0."""
        return 0 if self._group is None else self._group.architecture_of(client.key, self._clients)

    def number(self, architecture: int) -> ResidentModel:
        """Return the resident module of an architecture, counted from 0."""
        if architecture not in self._made:
            data, fabric, training = self._about
            network = self.networks[architecture]
            self._made[architecture] = made = ResidentModel(
                network, data, fabric, training, self._last(network), self._joins_single_samples
            )
            if self._init == "shared":
                self.first_states[architecture] = state_of(made)
        return self._made[architecture]

    def of(self, client: Client) -> ResidentModel:
        """Return the resident module of a client's architecture, as whoever was there last has left it."""
        return self.number(self.architecture_of(client))

    def load(self, client: Client) -> ResidentModel:
        """Return the resident module of a client's architecture with the weights of the client's state."""
        resident = self.of(client)
        resident.weights.copy_(client.state["weights"])
        load_buffers(resident, client.state)
        return resident

    def state(self, client: Client) -> dict[str, Tensor]:
        """Return copies of the weights of a client's resident module, and of its buffers if it has any.

        Its gradients are given back: those of every architecture at once would be as large as all networks.
        """
        resident = self.of(client)
        resident.module.zero_grad()
        return state_of(resident)

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """Return what a client begins with: a draw of its own, or its network's own initial weights."""
        resident = self.of(client)
        if self._init == "shared":
            return {name: tensor.clone() for name, tensor in self.first_states[self.architecture_of(client)].items()}
        resident.reset(client.streams.seed_for("initial weights", client=client.key))
        return state_of(resident)

    def parameters_of(self, client: Client) -> int:
        """Return the number of parameters of a client's network, without making it resident."""
        return sum(p.numel() for p in self.networks[self.architecture_of(client)].parameters())


def load_buffers(resident: ResidentModel, state: Mapping[str, Tensor]) -> None:
    """Let a resident module go on with the buffers of a state, if it has any."""
    if "buffers" in state:
        resident.buffers.copy_(state["buffers"])
    if "counters" in state:
        resident.counters.copy_(state["counters"])


def state_of(resident: ResidentModel) -> dict[str, Tensor]:
    """Return copies of the weights of a resident module, and of its buffers if it has any."""
    kept = {"weights": resident.weights, "buffers": resident.buffers, "counters": resident.counters}
    return {name: tensor.clone() for name, tensor in kept.items() if name == "weights" or tensor.numel()}
