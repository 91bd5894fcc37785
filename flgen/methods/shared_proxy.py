"""What methods share whose clients train, beside a network of their own, a copy of a proxy that all have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation import model_group
from flgen.federation.training_options import LocalTraining
from flgen.methods.own_networks import Fidelity, OwnNetworks
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import local_training, resident, side_steps
    from flgen.federation.clients import Client, Federation
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    local_training = deferred_module("flgen.federation.local_training")
    resident = deferred_module("flgen.federation.resident")
    side_steps = deferred_module("flgen.federation.side_steps")

Losses = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]
"""From inputs (B, ...) and labels int64 (B,) to the losses of the client's network and of the proxy."""


class SharedProxy(OwnNetworks):
    """Clients with networks of their own, and a proxy theta of one architecture that carries what they learn.

    Both are trained at once, each on its own loss and by its own optimiser, and each gradient is clipped by itself.
    Floating-point buffers of the proxy (BatchNorm's) are averaged as its weights are, and travel beside them as an
    entry of their own, `buffers`, which the published formulas leave out. `accuracy_trained` is that of a client's own
    network as it trained it last, `accuracy_proxy` that of the proxy as the server sends it.

    Args:
        training: How clients train; the published clients clip gradients at 10.
        proxy: The proxy's architecture, by its place in --model, from 0.
        init: Whether each client, and the proxy, draw initial weights of their own, or take those that their network
            was built with.
        fidelity: "corrected", or what the published code does: besides the order of samples and equal beginnings, both
            losses train both networks, divergences are divided by the number of classes, and every client keeps the
            proxy's buffers for itself.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    def __init__(
        self,
        training: LocalTraining = LocalTraining(clip_norm=10.0),
        proxy: int = 0,
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, init, fidelity, topology)
        option_ranges.at_least("method", 0, proxy=proxy)
        self.proxy = proxy

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check the networks, and that the proxy is one of them."""
        super().prepare(model, data)
        networks = len(model_group.networks_of(model))
        if self.proxy >= networks:
            raise UsageError(
                f"--method.proxy is {self.proxy}, but --model has {networks} network{'s' * (networks > 1)}: count them "
                "from 0"
            )

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """theta_1, the same on every rank, and the resident module in which the hosted clients' copies take turns."""
        super().setup(federation, model, data, fabric)
        network: Any = self.residents.networks[self.proxy]
        network.fabric = None  # what an earlier run left there cannot be copied
        self.common = resident.ResidentModel(copy.deepcopy(network), data, fabric, self.training)
        if self._first_weights == "independent":
            self.common.reset(federation.streams.seed_for("proxy"))
        self.theta = self.common.weights  # what the resident proxy computes with
        self.theta_t = self.theta.clone()
        self.buffers_t = self.common.buffers.clone()
        self._counters_1 = self.common.counters.clone()
        self._buffers_1 = self.buffers_t.clone()

    def expected_work(self, client: Client) -> float:
        """A client's work is its number of samples times the parameters of its network and of the proxy."""
        return client.samples * (self.residents.parameters_of(client) + len(self.theta))

    @property
    def shares_buffers(self) -> bool:
        """Whether the proxy has floating-point buffers that are averaged over clients."""
        return len(self.buffers_t) > 0 and self.fidelity == "corrected"

    def buffers_beside(self, buffers: Tensor) -> codecs.Payload:
        """Return what is sent of some buffers beside the weights."""
        return {"buffers": codecs.dense(buffers)} if self.shares_buffers else {}

    def load_proxy(self, client: Client, theta: Tensor, download: dict[str, Tensor]) -> None:
        """Let the resident proxy begin at some weights, with the server's buffers or those that the client kept."""
        self.theta.copy_(theta)
        self.common.buffers.copy_(download.get("buffers", client.state.get("proxy_buffers", self._buffers_1)))
        self.common.counters.copy_(self._counters_1)

    def kept_buffers(self) -> dict[str, Tensor]:
        """Return what a client keeps of the proxy's buffers: nothing, if these are averaged."""
        if self.shares_buffers or not len(self.buffers_t):
            return {}
        return {"proxy_buffers": self.common.buffers.clone()}

    def train_together(
        self, client: Client, t: int, losses: Losses, beside: torch.optim.Optimizer | None = None
    ) -> None:
        """Train the client's network and the proxy as they stand, each on its own loss of the same batches.

        Args:
            client: Whose network its resident module holds.
            t: The round.
            losses: From a batch to both losses.
            beside: Over other tensors that the losses depend on; its steps are taken with theirs.
        """
        at, data = self.residents.of(client), self.training_data(client)
        optimizer = local_training.only_optimizer(self.common.module)
        for group in optimizer.param_groups:
            group["lr"] *= self.common.learning_rate_factor(t)
        self.common.module.train()
        steps = side_steps.side_steps(
            optimizer, *([] if beside is None else [beside]), clip_norm=self.training.clip_norm
        )

        def loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
            own, common = losses(*batch)
            return own + common

        at.train(client, t, self.on_local_step, data=data, loss=loss, after_step=steps)
        self.common.add_flops(client, self.training.epochs * data.samples)

    def proxy_received(self, client: Client, download: dict[str, Tensor]) -> Tensor:
        """Return theta_t, the weights that a client begins a round with (theta_p,)."""
        return download["proxy"]

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test the client's network as it was trained, then the proxy as it is sent next."""
        metrics = super().evaluate_client(client, download, t)
        self.load_proxy(client, self.proxy_received(client, download), download)
        return metrics | self.test(client, self.common, download, "proxy")

    def state_dict(self) -> dict[str, Any]:
        """theta_{t+1}, and the buffers beside it."""
        return {"proxy": self.theta_t, "buffers": self.buffers_t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the proxy of a checkpoint."""
        self.theta_t = state["proxy"].to(self.theta)
        self.buffers_t = state["buffers"].to(self.common.buffers)


def divergence(taught: Tensor, teaching: Tensor, fidelity: Fidelity = "corrected") -> Tensor:
    """Return KL( softmax(teaching) || softmax(taught) ), the mean over samples, which trains the taught alone.

    Args:
        taught: Logits (B, C).
        teaching: Logits (B, C), a constant; with "reference" they get gradients too, and the mean is over all B * C
            elements (fedktl.md, section 8, defects 20 and 21).
        fidelity: Which of the two.
    """
    reference = fidelity == "reference"
    target = torch.softmax(teaching if reference else teaching.detach(), dim=1)
    kl = torch.nn.functional.kl_div(torch.log_softmax(taught, dim=1), target, reduction="batchmean")
    return kl / taught.shape[1] if reference else kl
