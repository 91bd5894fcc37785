"""What methods share whose clients each keep a network of their own behind a server, of any architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, cast

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.federation import model_group
from flgen.federation.training_options import LocalTraining
from flgen.methods.base import ServerMethod
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.data import client_data as client_data_module
    from flgen.federation import resident, residents
    from flgen.federation.clients import Client, Federation
    from flgen.methods import distillation
else:
    torch = deferred_module("torch")
    client_data_module = deferred_module("flgen.data.client_data")
    distillation = deferred_module("flgen.methods.distillation")
    resident = deferred_module("flgen.federation.resident")
    residents = deferred_module("flgen.federation.residents")

Fidelity = Literal["corrected", "reference"]


class OwnNetworks(ServerMethod):
    """A star whose clients each have a network w_k, which stays with them.

    A network has `features`, from a batch to z (B, d), and `head`, from z to logits (B, classes); if the method looks
    at logits alone, any classifier will do. On each client's own test data `accuracy_trained` is that of the network as
    the client trained it last.

    Args:
        training: How clients train.
        init: Whether each client draws initial weights of its own, or takes those that its network was built with.
        fidelity: "corrected", or what the published code does: samples are never shuffled, the last ones that fill no
            batch are left out, and clients with the same network begin alike (fedktl.md, section 8).
        topology: How uploads reach the server; under secure aggregation it sees sums over clients alone.
    """

    accepts_mixed = True
    personal = True
    shares_features: ClassVar[bool] = True
    """Whether features or heads of different networks meet, so that all features must be of one width."""
    shares_head: ClassVar[bool] = False
    """Whether clients share the weights of their heads, which then must be alike."""

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(topology)
        self.training = training
        self.init = init
        self.fidelity = fidelity

    @property
    def draws_weights(self) -> str:
        """With independent weights every client has a draw of its own."""
        return "--method.init independent" if self._first_weights == "independent" else ""

    @property
    def _first_weights(self) -> Literal["independent", "shared"]:
        return "shared" if self.fidelity == "reference" else self.init

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check every network, and that what the method shares of them is alike."""
        self._check_networks(model, data)
        if self.shares_head:
            check_equal_heads(model, self.d, type(self).__name__)

    def _check_networks(self, model: LightningModule, data: LabelledData) -> None:
        if self.shares_features:
            self.d = feature_width(model, data, type(self).__name__)
            return
        for network in model_group.networks_of(model):
            distillation.check_logits(network, data)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """A resident module for each architecture."""
        super().setup(federation, model, data, fabric)
        self._check_networks(model, data)
        self.residents = residents.Residents(
            model,
            data,
            fabric,
            self.training,
            len(federation),
            last=lambda network: head_parameters(network, self.d) if self.shares_features else (),
            init=self._first_weights,
            joins_single_samples=True,
        )
        self.C = data.classes

    def head(self, at: resident.ResidentModel) -> Tensor:
        """Return the parameters of a resident module's head, a view (p_h,)."""
        p_h = sum(parameter.numel() for name, parameter in at.module.named_parameters() if name in at.last)
        return at.weights[len(at.weights) - p_h :]

    def expected_work(self, client: Client) -> float:
        """A client's work is its number of samples times the parameters of its network."""
        return client.samples * self.residents.parameters_of(client)

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_k of the client's own network."""
        return self.residents.initial_state(client)

    def training_data(self, client: Client) -> client_data_module.ClientData:
        """Return what a client trains on: all that it has, or as published the full batches of a fixed order."""
        if self.fidelity == "reference":
            return FixedOrder(client.data, self.training.batch_size)
        return client.data

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test the network that the client trained last."""
        return self.test(client, self.residents.load(client), download, "trained")

    def test(
        self, client: Client, at: resident.ResidentModel, download: dict[str, Tensor], point: str
    ) -> dict[str, float]:
        """Test a resident module as it stands on a client's own data, as the method predicts."""
        return at.test_client(client, point, self.predictor(at, download))

    def predictor(self, at: resident.ResidentModel, download: dict[str, Tensor]) -> Callable[[Tensor], Tensor] | None:
        """Return what maps inputs (B, ...) to predicted classes (B,); None leaves it to the module's `test_step`."""
        return None

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """Return the numbers that all participants together send and receive in a round, by formula (section 6).

        Args:
            participants: Number of clients in the round, N.
            pairs: Classes that each of them holds, summed, sum_i C_i.
        """
        raise TypeError(f"{type(self).__name__} has no formula")

    def formula_metrics(self, participants: int, pairs: int = 0) -> dict[str, float]:
        """Return the formula's numbers under the names that stand beside the counted ones in metrics.csv."""
        up, down = self.published_scalars(participants, pairs)
        return {"comm/up_scalars_formula": up, "comm/down_scalars_formula": down}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: networks stay with the clients."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


class FixedOrder:
    """A client's data as the published code goes through them: unshuffled, without an incomplete last batch.

    Args:
        data: All of the client's data.
        batch_size: Samples per batch; a client with fewer trains on nothing.
    """

    def __init__(self, data: client_data_module.ClientData, batch_size: int) -> None:
        self._data = data
        self._batch_size = batch_size

    @property
    def samples(self) -> int:
        return self._data.samples // self._batch_size * self._batch_size

    @property
    def label_counts(self) -> Tensor:
        return self._data.label_counts

    def batches(
        self, batch_size: int, generator: Any, *, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        client_data_module.check_request(self._data.samples, batch_size, steps, epochs)
        for _ in range(epochs or 0):
            yield from self.in_order(batch_size)

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        full = (batch for batch in self._data.in_order(self._batch_size) if len(batch[1]) == self._batch_size)
        yield from full

    def split(self, held_back: int, generator: Any) -> Any:
        return self._data.split(held_back, generator)


def head_parameters(network: LightningModule, d: int) -> list[str]:
    """Return the names of the parameters of a network's head: those that its logits depend on, given the features.

    Args:
        network: On any device.
        d: Width of its features.

    Raises:
        UsageError: There are none.
    """
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    training, head = network.training, cast("Any", network).head
    network.eval()
    logits = head(torch.zeros(1, d, device=next(iter(named.values())).device))
    network.train(training)
    if not logits.requires_grad:
        raise UsageError(
            f"--model {type(network).__name__} has a head without parameters: its clients would have nothing to learn "
            "there; let its last layer be the head"
        )
    gradients = torch.autograd.grad(logits.sum(), list(named.values()), allow_unused=True)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]


def feature_width(model: LightningModule, data: LabelledData, method: str) -> int:
    """Return d, the number of elements that every network's `features` gives its `head`.

    Args:
        model: One network or a group, on any device.
        data: Where inputs come from.
        method: Who asks, for messages.

    Raises:
        UsageError: A network lacks one of the two, they do not fit together, or the networks differ in width.
    """
    networks = model_group.networks_of(model)
    widths = [distillation.feature_size(network, data, None, method) for network in networks]
    if len(set(widths)) > 1:
        raise UsageError(
            f"--model: {method} needs features of one width from every network, but they give "
            f"{', '.join(map(str, widths))}: make them alike (feature_width)"
        )
    return widths[0]


def check_equal_heads(model: LightningModule, d: int, method: str) -> None:
    """Refuse a group whose heads have different parameters.

    Raises:
        UsageError: They have.
    """
    shapes = []
    for network in model_group.networks_of(model):
        parameters = dict(network.named_parameters())
        shapes.append([tuple(parameters[name].shape) for name in head_parameters(network, d)])
    for other in shapes:
        if other != shapes[0]:
            raise UsageError(
                f"--model: {method} shares the heads of the networks, but their parameters have different shapes "
                f"({shapes[0]} and {other}): give every network the same head, or choose another method"
            )
