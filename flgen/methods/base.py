"""What a method is: a few short functions, with nothing about ranks, processes, bytes or files in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.federation import model_group
from flgen.topology.base import Topology
from flgen.topology.peers import PeerTopology, RandomGraph
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data.labelled_data import LabelledData
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire.codecs import Payload


class Method(ABC):
    """A federated algorithm.

    The trainer calls `setup` once on every rank, then runs rounds t = 1, 2, ... Attributes it sets before
    `setup`: `on_local_step`, to be called after each local step with (steps done, steps in all); a call may
    end the client step early, so leave nothing half done around it.
    """

    topology: Topology
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Values of this method's options, per preset name, for options left at None."""

    generative: ClassVar[bool] = False
    """Whether the method draws images (`samples`), which an evaluation then compares with real ones."""

    personal: ClassVar[bool] = False
    """Whether clients have models that are tested on test data of their own (`evaluate_client`)."""

    accepts_mixed: ClassVar[bool] = False
    """Whether clients may have networks of different architectures (`ModelGroup`)."""

    incidental: ClassVar[frozenset[str]] = frozenset()
    """Options that may differ when a run is continued, since they say how work is done and not what comes out."""

    state_on_every_rank: ClassVar[bool] = False
    """Whether a run that is continued gives every rank the server's state, since clients go on from it, too."""

    has_updates: ClassVar[bool] = False
    """Whether a server sends weights that clients train and send back, so that it has an `update_of`."""

    on_local_step: Callable[[int, int], None]

    @property
    def draws_weights(self) -> str:
        """Say by what option the method draws initial weights itself; empty where it takes those of the module."""
        return ""

    def own_model(self, model: LightningModule) -> LightningModule:
        """Return the model as this method takes it: a group only if its clients may have different networks.

        Raises:
            UsageError: There are several networks, and the method needs one for all.
        """
        if self.accepts_mixed or not isinstance(model, model_group.ModelGroup):
            return model
        if len(model.models) > 1:
            raise UsageError(
                f"--model is a group of {len(model.models)} networks, but {type(self).__name__} needs the same one for "
                "every client: give one --model, or a --method whose clients keep their own (FedKTL, FedProto, Local)"
            )
        (only,) = model_group.networks_of(model)
        return only

    def check(self, federation: Federation) -> None:
        """Refuse a federation that the method or its topology cannot work with, before any process is started."""
        self.topology.check(len(federation))

    def prepare(self, model: LightningModule, data: LabelledData) -> None:  # noqa: B027 - most need nothing
        """Check that model and data fit, and load what a fit needs, before any process is started."""

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take the federation, the resident module (on its device) and the data set; make the server's state."""
        self.federation = federation
        self.model = model
        self.data = data
        self.fabric = fabric

    def expected_work(self, client: Client) -> float:
        """Return a client's work per round, in any unit; ranks are balanced by it."""
        return 1.0

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """Return the state that a client has before its first step; nothing for most."""
        return {}

    def evaluate(self, t: int) -> dict[str, float]:
        """Return metrics of the current model, by name; runs on the server."""
        return {}

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Return metrics of one client on its own test data after round t, by name; runs where it is hosted.

        Args:
            client: With its state.
            download: What the server would send next; nothing between peers.
            t: The round.
        """
        return {}

    def samples(self, count: int, t: int) -> dict[str, Tensor]:
        """Return generated images, uint8 (count, C, H, W), by the kind of model that drew them.

        The first kind is the headline; a method that generates nothing returns nothing. Runs on the server.
        """
        return {}

    def class_pictures(self) -> dict[int, Tensor]:
        """Return the pictures that clients are sent, uint8 (C, H, W), by class; nothing for most.

        Runs on the server.
        """
        return {}

    def provenance(self) -> dict[str, Any]:
        """Return where what the method brings along comes from, plain values by name; nothing for most."""
        return {}

    def round_metrics(self, t: int) -> dict[str, float]:
        """Return what the server learnt about round t besides evaluation (losses, drift, density)."""
        return {}

    def exhausted(self, t: int) -> str:
        """Return why round t must not be run, such as a privacy budget that it would overspend; nothing if it may.

        The same on every rank. The run then ends with the round before, as if it were the last one.
        """
        return ""

    def check_continuation(self, state: dict[str, Any]) -> None:  # noqa: B027 - most may go on anyhow
        """Refuse to go on training from what `state_dict` returned, before anything is started or written."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the server's state: tensors and plain values, enough to go on after a restart."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class ServerMethod(Method):
    """A method on a star: the server sends, the clients work and answer, the server aggregates."""

    topology: Star
    collection: Collection = "sum"
    """What the server needs of the uploads: their sum, their sum weighted by n_k, or each of them."""

    needs_single_uploads: ClassVar[str] = "its server looks at every client's upload by itself"
    """Why a method with collection "gather" cannot do with a sum; the end of a sentence."""

    validates: bool = False
    """Whether `aggregate` leaves several `candidates`, which the clients of the round judge before one is taken."""

    def __init__(self, topology: Star | None = None) -> None:
        self.topology = topology or Star()

    def check(self, federation: Federation) -> None:
        """Refuse secure aggregation of single uploads, or of a cohort in which nobody is hidden."""
        super().check(federation)
        secure_aggregation = self.topology.secure_aggregation
        if secure_aggregation is None:
            return
        if self.collection == "gather":
            raise UsageError(
                f"{type(self).__name__} cannot run under --method.topology.secure_aggregation "
                f"({self.needs_single_uploads}): set it to null"
            )
        if self.validates:
            raise UsageError(
                f"{type(self).__name__} cannot run under --method.topology.secure_aggregation (there are keys for one "
                "upload per client and round, and its clients also judge candidates): set it to null"
            )
        most_samples = max(client.samples for client in federation.clients)
        secure_aggregation.check_cohort(federation.clients_per_round or len(federation), most_samples)

    @abstractmethod
    def download(self, t: int) -> Payload:
        """Return what the server sends to every client of round t."""

    def coding_contexts(self) -> dict[str, Tensor]:
        """Return what server and clients both know now about entries that are coded with contexts, by name.

        It is asked for on every rank, before the download of a round is decoded and again after `take_up`.
        """
        return {}

    def take_up(self, download: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        """Return what clients make of the download, the same for all; called once per rank, before any client step."""
        return download

    @abstractmethod
    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> Payload:
        """Run one client's local work of round t, on what was received, and return its upload."""

    def opening(self) -> Payload:
        """Return what the server sends to every client once, before the first round; nothing for most.

        It must follow from the run's seed and options alone: a run that is continued does not send it again.
        """
        return {}

    def update_of(self, download: dict[str, Tensor], upload: Payload) -> Tensor:
        """Return by how much a client moved the parameters, Delta_k (d,); of a method that `has_updates`.

        Args:
            download: What every client received.
            upload: What this client sends.
        """
        raise TypeError(f"{type(self).__name__} has no updates of common weights")

    @abstractmethod
    def aggregate(self, t: int, uploads: Uploads) -> None:
        """Update the server's state from the uploads of round t."""

    def hand_over(self, t: int) -> dict[int, int]:
        """Return which client gives a part of its state to which after round t, by id; nobody for most.

        The same on every rank; nobody may get two.
        """
        return {}

    def handed_over(self, state: dict[str, Tensor]) -> Payload:
        """Return what a client gives away of its state, under the names that it has there and with the receiver."""
        return {}

    def candidates(self, t: int) -> Payload:
        """Return what the server sends to the clients of round t to be judged; of a method that `validates`."""
        raise TypeError(f"{type(self).__name__} has no candidates")

    def judge(self, client: Client, candidates: dict[str, Tensor], t: int) -> Payload:
        """Return what one client says about the candidates; neither its state nor local steps belong here."""
        raise TypeError(f"{type(self).__name__} has no candidates")

    def settle(self, t: int, judgements: Uploads) -> None:
        """Take one of the candidates, by what the clients said, collected as uploads are."""
        raise TypeError(f"{type(self).__name__} has no candidates")


class PeerMethod(Method):
    """A method without a server: clients read what their neighbours offer, mix it into their own, and train on.

    Everybody reads what the others had at the start of the round. Attributes that the trainer sets: `evaluated`,
    whether clients test their models in this round.
    """

    topology: PeerTopology
    personal = True
    state_on_every_rank = True  # what is common to all
    evaluated: bool = False

    def __init__(self, topology: PeerTopology | None = None) -> None:
        self.topology = topology or RandomGraph()

    def check(self, federation: Federation) -> None:
        """Refuse a cohort: between peers every client has a model of its own and works on it in every round."""
        if federation.clients_per_round not in (None, len(federation)):
            raise UsageError(
                f"--trainer.clients_per_round is {federation.clients_per_round}, but with {type(self).__name__} every "
                "client trains in every round: remove it, or --trainer.participation (--method.topology.active lets "
                "clients miss exchanges)"
            )
        super().check(federation)

    def choose(self, client: Client, candidates: tuple[int, ...], t: int) -> tuple[int, ...]:
        """Return whom a client reads from in round t, of those the topology lets it hear; all of them for most."""
        return candidates

    @abstractmethod
    def outgoing(self, client: Client, t: int) -> Payload:
        """Return what a client offers to whoever reads from it in round t."""

    @abstractmethod
    def mix(self, client: Client, inbox: Mapping[int, dict[str, Tensor]], t: int) -> None:
        """Take in what the neighbours and the client itself offered, by id; nothing in the inbox may be changed."""

    @abstractmethod
    def client_step(self, client: Client, t: int) -> None:
        """Run one client's local work of round t, right after its `mix`, and leave the result in its state."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is common to all clients: nothing for most, their states are kept by themselves."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
