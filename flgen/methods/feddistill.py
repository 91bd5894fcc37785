"""FedDistill, or FD: Jeong, Oh, Kim, Park, Bennis, Kim, "Communication-Efficient On-Device Machine Learning: Federated
Distillation and Augmentation under Non-IID Private Data", arXiv 1811.11479, without its augmentation.

round t, each client k of the cohort, with a network o_k of its own:
    E epochs of SGD on  CE( o_k(x), y ) + gamma D( o_k(x), g^y )                  without g in round 1
    l_k^c = mean of o_k(x) over the x of class c in these steps ; send (l_k^c, c) for each class that it holds
server:
    g^c = mean over the clients that hold c of l_k^c ; n_c of them
with leave-one-out client k learns from  g_{-k}^c = (n_c g^c - l_k^c) / (n_c - 1)  in place of g^c
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods import distillation
from flgen.methods.own_networks import Fidelity, OwnNetworks
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import resident
    from flgen.federation.clients import Client, Federation
    from flgen.methods import class_vectors
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    class_vectors = deferred_module("flgen.methods.class_vectors")
    codecs = deferred_module("flgen.wire.codecs")

Distance = Literal["mse", "ce_softmax"]


class FedDistill(OwnNetworks):
    """Clients with different networks learn from the mean logits that others give a class (fedktl.md, section 5.6).

    Networks meet in their logits alone, so that any classifiers will do. A class that nobody holds in a round keeps its
    last mean logits; a sample whose class has none yet takes its own logits as its target, which moves nothing.
    Cross-entropy with the raw logits as targets, to which the published code changed, is not offered: they are no
    distribution, and that loss has no lower bound.

    Args:
        training: How clients train.
        gamma: Weight of the second term.
        distance: D: "mse" of the logits, with which published tables were made, or "ce_softmax", the cross-entropy with
            softmax(g).
        leave_one_out: Whether a client's own logits are taken out of what it learns from, as first published. The
            server then also sends from how many clients each mean is, and of which round.
        init: Whether each client draws initial weights of its own, or takes those that its network was built with.
        fidelity: "corrected", or the published code's order of samples and equal beginnings.
        topology: How uploads reach the server; under secure aggregation it sees sums over clients alone.

    Raises:
        UsageError: `gamma` is below 0.
    """

    shares_features: ClassVar[bool] = False

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        gamma: float = 1.0,
        distance: Distance = "mse",
        leave_one_out: bool = False,
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, init, fidelity, topology)
        option_ranges.at_least("method", 0, gamma=gamma)
        self.gamma = gamma
        self.distance: Distance = distance
        self.leave_one_out = leave_one_out
        self.summed = self.topology.secure_aggregation is not None
        self.collection = "sum" if self.summed else "gather"

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """No class has mean logits yet."""
        super().setup(federation, model, data, fabric)
        self.g = torch.zeros(self.C, self.C, device=fabric.device)
        self.holders = torch.zeros(self.C, dtype=torch.int32, device=fabric.device)  # n_c ; 0: never seen
        self.made_in = torch.zeros_like(self.holders)  # the round that g^c is of

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_k ; with leave-one-out also l_k, and the round in which the client sent it, none yet."""
        state = super().initial_state(client)
        if self.leave_one_out:
            state |= {"logits": torch.zeros_like(self.g), "sent_in": torch.zeros_like(self.made_in)}
        return state

    def download(self, t: int) -> codecs.Payload:
        """g^c of every class that has one; nothing in the first round."""
        known = self.holders > 0
        if not known.any():
            return {}
        table = class_vectors.send_table("mean_logits", self.g, known)
        if not self.leave_one_out:
            return table
        return {**table, "holders": codecs.dense(self.holders), "made_in": codecs.dense(self.made_in)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Train towards what others say of a class, send what the client said of its own."""
        at = self.residents.load(client)
        said: list[tuple[Tensor, Tensor]] = []
        loss = self.local_loss(at, self.targets(client, download), said)
        at.train(client, t, self.on_local_step, data=self.training_data(client), loss=loss)
        l_k, n_k = class_vectors.class_means(said, self.C, nothing=self.g[:0])
        held = n_k > 0
        client.state = self.residents.state(client)
        if self.leave_one_out:
            client.state |= {"logits": l_k.to(self.g), "sent_in": held.to(self.made_in) * t}
        return class_vectors.send("logits", l_k, held, self.summed)

    def targets(self, client: Client, download: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return what a client learns from, float32 (C, C), and for which classes there is such, bool (C,)."""
        if "mean_logits" not in download:
            return None
        g, known = class_vectors.receive_table("mean_logits", download)
        if not self.leave_one_out:
            return g, known
        # Its own logits are in the mean if that is of the round in which it sent them.
        own = known & (client.state["sent_in"] == download["made_in"])
        return without_own(g, download["holders"], client.state["logits"], own)

    def local_loss(
        self,
        at: resident.ResidentModel,
        targets: tuple[Tensor, Tensor] | None,
        said: list[tuple[Tensor, Tensor]],
    ) -> Callable[[tuple[Tensor, Tensor], int], Tensor]:
        """Return a client's loss of a batch, which also notes the logits of each."""
        model: Any = at.module

        def loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
            x, y = batch
            o = model(x)
            said.append((o.detach(), y))
            ce = torch.nn.functional.cross_entropy(o, y)
            model.log("train/loss", ce)
            if targets is None:
                return ce
            D = distillation_loss(o, y, *targets, self.distance)
            model.log("train/distillation_loss", D)
            return ce + self.gamma * D

        return loss

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """g^c and n_c of the classes that somebody holds."""
        received = class_vectors.receive("logits", uploads, self.federation, self.C, self.summed)
        held = received.held.to(self.g.device)
        self.g = torch.where(held.unsqueeze(1), received.means.to(self.g), self.g)
        self.holders = torch.where(held, received.holders.to(self.holders), self.holders)
        self.made_in = torch.where(held, torch.full_like(self.made_in, t), self.made_in)
        self.participants, self.pairs = len(uploads), received.pairs

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """sum_i C C_i up, N C^2 down."""
        return self.C * pairs, participants * self.C**2

    def round_metrics(self, t: int) -> dict[str, float]:
        """The formula's traffic."""
        return self.formula_metrics(self.participants, self.pairs)

    def state_dict(self) -> dict[str, Any]:
        """g, from how many clients, and of which round."""
        return {"logits": self.g, "holders": self.holders, "made_in": self.made_in}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        self.g = state["logits"].to(self.g)
        self.holders = state["holders"].to(self.holders)
        self.made_in = state["made_in"].to(self.made_in)


def distillation_loss(o: Tensor, y: Tensor, g: Tensor, known: Tensor, distance: Distance) -> Tensor:
    """Return D(o, g^y) of a batch; a sample whose class has no g has its own logits as target, and no gradient.

    Args:
        o: Logits (B, C).
        y: Labels, int64 (B,).
        g: Mean logits of each class (C, C).
        known: Whether a class has such, bool (C,).
        distance: "mse" is the mean over all B C elements, "ce_softmax" the mean over samples of
            - sum_c softmax(g^y)_c log softmax(o)_c.
    """
    target = torch.where(known[y].unsqueeze(1), g[y], o.detach())
    if distance == "mse":
        return torch.nn.functional.mse_loss(o, target)
    return distillation.soft_cross_entropy(o, torch.softmax(target, dim=1))


def without_own(g: Tensor, n: Tensor, l_k: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return g_{-k}^c (C, C), and whether anybody else stands behind it, bool (C,).

    Args:
        g: Mean logits of each class (C, C).
        n: Number of clients behind each, int (C,); 0 where there is no mean.
        l_k: A client's own logits (C, C).
        own: Whether they are in the mean, bool (C,).
    """
    others = (n - own.to(n)).unsqueeze(1)
    left = (n.unsqueeze(1) * g - l_k) / others.clamp(min=1)
    return torch.where(own.unsqueeze(1), left, g), others.squeeze(1) > 0
