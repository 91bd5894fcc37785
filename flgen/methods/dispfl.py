"""DisPFL: Dai, Shen, He, Tian, Tao, "DisPFL: Towards Communication-Efficient Personalized Federated Learning via
Decentralized Sparse Training", ICML 2022, by the rules of the authors' code (dispfl.md).

Symbols of the specification: w_k weights of client k, m_k its newest mask, s_k its support mask, the one that w_k was
trained under; N_k whom it hears, itself included; a_l active elements of layer l; alpha_t prune rate; T rounds.

    w_k = w_0 m_k ; s_k = m_k                                   a_l ones in layer l, by ERK densities
    round t, each client k, everybody reads what the others had at its start:
      1  wbar = sum_{j in N_k} w_j / sum_{j in N_k} s_j         0 where nobody has the weight
      2  x = wbar m_k                                           on the newest mask
      3  s_k = m_k
      4  test x                                                 "aggregated"
      5  x <- E epochs of masked SGD from x
      6  test x                                                 "trained"
      7  w_k = x ; in each layer q = ceil(alpha_t a_l): clear the q smallest |w_k| of m_k, then set q of its zeros,
         those of the largest gradient or random ones           w_k stays as it is
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.federation.training_options import PUBLISHED, LocalTraining
from flgen.masks.sparsity import Sparsity
from flgen.methods.personal_models import PersonalModels
from flgen.topology.peers import PeerTopology

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation.clients import Client, Federation
    from flgen.masks import prune_regrow
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    prune_regrow = deferred_module("flgen.masks.prune_regrow")


class Layer(NamedTuple):
    """One masked parameter: its name, its place in the flat vector of all masked weights (P,), its size n_l."""

    name: str
    place: slice
    size: int


class DisPFL(PersonalModels):
    """Every client trains a sparse model of its own and shows it, weights and mask, to its neighbours.

    Args:
        training: How clients train.
        sparsity: How sparse the models are, and how their masks move.
        search: How connections are regrown: "random", by "gradient" on one batch, or not at all ("none": the first
            masks stay).
        search_augmented: Whether the batch of the gradient is augmented like a training batch.
        buffers: Whether BatchNorm's statistics stay with their client ("local") or are averaged ("mean").
        init: Whether all clients begin with the module's own initial weights, or each with a draw of its own.
        topology: Who reads from whom.
    """

    def __init__(
        self,
        training: LocalTraining = PUBLISHED,
        sparsity: Sparsity = Sparsity(),
        search: Literal["random", "gradient", "none"] = "random",
        search_augmented: bool = True,
        buffers: Literal["local", "mean"] = "local",
        init: Literal["shared", "independent"] = "shared",
        topology: PeerTopology | None = None,
    ) -> None:
        super().__init__(training, init, topology)
        self.sparsity = sparsity
        self.search = search
        self.search_augmented = search_augmented
        self.buffers = buffers

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Refuse a density or a pattern that does not fit the model."""
        self.last_parameters(model)

    def last_parameters(self, model: LightningModule) -> list[str]:
        """Settle a_l of every layer; the layers that some client does not hold in full are masked and come last."""
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        self.active = self.sparsity.active(shapes)
        self.layers: list[Layer] = []
        self.P = 0
        for name in shapes:
            n_l = math.prod(shapes[name])
            if any(a.get(name, n_l) < n_l for a in self.active):
                self.layers.append(Layer(name, slice(self.P, self.P + n_l), n_l))
                self.P += n_l
        return [layer.name for layer in self.layers]

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take w_0 and the layers' densities."""
        super().setup(federation, model, data, fabric)
        self.first = len(self.resident.weights) - self.P  # where the masked weights begin
        self.T = self.sparsity.anneal_rounds or federation.rounds

    def active_of(self, client: Client) -> dict[str, int]:
        """Return a_l by layer: the client's capacity."""
        return self.active[client.key % len(self.active)]

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_k = w_0 m_k ; s_k = m_k."""
        state = super().initial_state(client)
        device = self.fabric.device
        m_k = torch.ones(self.P, dtype=torch.bool, device=device)
        if self.sparsity.initial_masks == "shared":
            draws = self.federation.streams.torch("masks", device=device)
        else:
            draws = client.random("masks", 0, device)
        for name, place, n_l in self.layers:
            m_k[place] = prune_regrow.random_mask(n_l, self.active_of(client)[name], draws)
        state["weights"][self.first :] *= m_k
        return {**state, "mask": m_k, "support": m_k.clone()}

    def outgoing(self, client: Client, t: int) -> codecs.Payload:
        """(w_k, s_k): the support travels with the weights, since a weight may be exactly 0."""
        w_k, s_k = client.state["weights"], client.state["support"]
        payload = {"dense": codecs.dense(w_k[: self.first]), "sparse": codecs.sparse(w_k[self.first :], s_k)}
        if self.buffers == "mean" and "buffers" in client.state:
            payload["buffers"] = codecs.dense(client.state["buffers"])
        return payload

    def mix(self, client: Client, inbox: Mapping[int, dict[str, Tensor]], t: int) -> None:
        """Steps 1 to 4: count-weighted mean, projection on the newest mask, test."""
        m_k, x = client.state["mask"], self.resident.weights
        self.mix_buffers(client, inbox)
        wbar = self.aggregate(inbox)
        self.wbar = wbar
        x.copy_(wbar)
        x[self.first :] *= m_k
        client.state["support"] = m_k.clone()
        self.report(client, "aggregated")

    def aggregate(self, inbox: Mapping[int, dict[str, Tensor]]) -> Tensor:
        """Return wbar (d,): of each weight, the mean over those who have it (section 3.1)."""
        wbar = torch.zeros_like(self.resident.weights)
        counts = torch.uint8 if len(inbox) < 2**8 else torch.int32
        cnt = torch.zeros(self.P, dtype=counts, device=wbar.device)
        dense, masked = wbar[: self.first], wbar[self.first :]
        for j in inbox:
            dense += inbox[j]["dense"]
            masked += inbox[j]["sparse"]
            cnt += inbox[j]["sparse.support"]
        dense /= len(inbox)
        masked /= cnt.clamp_(min=1)
        return wbar

    def mix_buffers(self, client: Client, inbox: Mapping[int, dict[str, Tensor]]) -> None:
        """Load the client's buffers, or their mean over the neighbourhood."""
        self.load_buffers(client.state)
        if self.buffers == "mean" and "buffers" in client.state:
            self.resident.buffers.copy_(torch.stack([inbox[j]["buffers"] for j in inbox]).mean(0))

    def client_step(self, client: Client, t: int) -> None:
        """Steps 5 to 7: masked SGD, test, mask search."""
        self.train_masked(client, t)
        m_k = self.search_mask(client, t) if self.P and self.search != "none" else client.state["mask"]
        drift = float((m_k != client.state["mask"]).sum()) / max(self.P, 1)
        client.metrics["mask/drift"] = client.metrics.get("mask/drift", 0.0) + drift
        client.metrics["mask/density"] = (int(m_k.sum()) + self.first) / len(self.resident.weights)
        client.state = {**self.model_state(), "mask": m_k, "support": client.state["support"]}

    def train_masked(self, client: Client, t: int) -> None:
        """x <- E epochs of masked SGD, then test x."""
        x, s_k = self.resident.weights[self.first :], client.state["support"]
        factors = s_k.to(x)  # products of floats are three times faster than of floats and bits
        by_layer = self.resident.split_last(factors)
        mask_first = self.sparsity.gradient_mask == "before_clip"
        self.resident.train(
            client,
            t,
            self.on_local_step,
            on_gradient=(lambda: self.resident.mask_gradients(by_layer)) if mask_first else None,
            after_step=None if mask_first else (lambda: x.mul_(factors)),
            active=self.active_of(client),
        )
        x *= factors  # under a masked gradient a zero stays one; this makes sure
        self.report(client, "trained")

    def search_mask(self, client: Client, t: int) -> Tensor:
        """Return the next m_k (P,): prune by magnitude, regrow by gradient or at random (section 5)."""
        m_k, w_k = client.state["mask"], self.resident.weights[self.first :]
        g = self.regrow_gradient(client, t) if self.search == "gradient" else None
        draws = client.random("regrow", t, self.fabric.device)
        new = m_k.clone()
        for place, q in self.moves(client, t):
            kept = prune_regrow.prune_smallest(m_k[place], w_k[place], q)
            if g is None:
                new[place] = prune_regrow.regrow_random(kept, q, draws)
            else:
                new[place] = prune_regrow.regrow_largest(kept, g[place], q)
        return new

    def moves(self, client: Client, t: int) -> Iterator[tuple[slice, int]]:
        """Yield the place of each layer and q = ceil(alpha_t a_l); a full layer would regrow just what it has lost."""
        for name, place, n_l in self.layers:
            a_l = self.active_of(client)[name]
            if a_l < n_l:
                yield place, prune_regrow.positions_moved(self.prune_rate(t), a_l)

    def regrow_gradient(self, client: Client, t: int) -> Tensor:
        """Return the dense gradient at the trained weights, on one batch (P,)."""
        return self.resident.gradient(client, t, augmented=self.search_augmented)

    def prune_rate(self, t: int) -> float:
        """alpha_t; the specification counts rounds from 0."""
        return prune_regrow.prune_rate(min(t - 1, self.T), self.T, self.sparsity.anneal_factor)

    def round_metrics(self, t: int) -> dict[str, float]:
        """alpha_t."""
        return {"mask/prune_rate": self.prune_rate(t) if self.search != "none" else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """T, and for whoever reads a checkpoint where each layer stands in the masks."""
        layers = [(layer.name, layer.size) for layer in self.layers]
        return {"layers": layers, "parameters": len(self.resident.weights), "anneal_rounds": self.T}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep to the T that the run began with, however many rounds it is extended to."""
        self.T = state["anneal_rounds"]
