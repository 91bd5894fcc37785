"""FedFOMO: Zhang, Sapra, Fidler, Yeung, Alvarez, "Personalized Federated Learning with First Order Model Optimization",
ICLR 2021, as in DisPFL's comparison (dispfl.md, section 7).

w_k(0) ; p_k = 0 ; a tenth of each client's samples is its validation split, L_val the loss summed over it
round t, each client k:
    picks n peers: those of the highest p_k, or with probability 1/2 random ones
    u_k <- E epochs of local SGD from w_k(t-1)
    for i in peers and k:  theta_i = w_i(t-1), theta_k = u_k
        omega_i = (L_val(w_k(t-1)) - L_val(theta_i)) / ||theta_i - w_k(t-1)||
    w_k(t) = w_k(t-1) + sum_i omega_i+ (theta_i - w_k(t-1))          omega_i+ = max(omega_i, 0) / their sum
    p_k <- p_k + omega
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import PUBLISHED, LocalTraining
from flgen.methods.personal_models import PersonalModels
from flgen.topology.peers import FullyConnected, PeerTopology

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.federation.clients import Client, Federation
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")


class FedFOMO(PersonalModels):
    """Every client weighs its peers' models by what they are worth on data that it holds back.

    If no model is better than the client's last one it keeps that, and its training of the round is lost.

    Args:
        training: How clients train.
        neighbours: Number n of peers that a client reads from per round.
        exploration: Probability of a round with random peers.
        validation_fraction: Share of a client's training samples that is held back to weigh models.
        init: Whether all clients begin with the module's own initial weights, or each with a draw of its own.
        topology: Whom a client may choose among.

    Raises:
        UsageError: A number is out of its range.
    """

    def __init__(
        self,
        training: LocalTraining = PUBLISHED,
        neighbours: int = 10,
        exploration: float = 0.5,
        validation_fraction: float = 0.1,
        init: Literal["shared", "independent"] = "shared",
        topology: PeerTopology | None = None,
    ) -> None:
        super().__init__(training, init, topology or FullyConnected())
        option_ranges.at_least("method", 1, neighbours=neighbours)
        if not 0 <= exploration <= 1:
            raise UsageError(f"--method.exploration is {exploration}: give a probability from 0 to 1")
        option_ranges.shares("method", validation_fraction=validation_fraction)
        self.neighbours = neighbours
        self.exploration = exploration
        self.validation_fraction = validation_fraction

    def check(self, federation: Federation) -> None:
        """Refuse clients that have nothing to hold back beside what they train on."""
        super().check(federation)
        federation.check_split("FedFOMO")

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_k(0) and p_k = 0; scores are kept by the peers' keys."""
        return {**super().initial_state(client), "scores": torch.zeros(len(self.federation), dtype=torch.float64)}

    def choose(self, client: Client, candidates: tuple[int, ...], t: int) -> tuple[int, ...]:
        """Pick n peers by score, or at random."""
        keys = sorted(self.federation.clients[j].key for j in candidates)
        n, draws = min(self.neighbours, len(keys)), client.random("peers", t)
        if float(torch.rand(1, generator=draws)) < self.exploration:
            chosen = [keys[i] for i in torch.randperm(len(keys), generator=draws)[:n]]
        else:
            p_k = client.state["scores"]
            chosen = sorted(keys, key=lambda key: (-float(p_k[key]), key))[:n]
        return tuple(sorted(other.id for other in self.federation.clients if other.key in chosen))

    def outgoing(self, client: Client, t: int) -> codecs.Payload:
        """w_k(t-1), with the buffers that belong to it."""
        parts = [client.state["weights"], *([client.state["buffers"]] if "buffers" in client.state else [])]
        return {"model": codecs.dense(torch.cat(parts))}

    def mix(self, client: Client, inbox: Mapping[int, dict[str, Tensor]], t: int) -> None:
        """Begin from w_k(t-1); what the peers sent is weighed after training."""
        self.inbox: Mapping[int, dict[str, Tensor]] = inbox
        self.resident.vector.copy_(inbox[client.id]["model"])
        self.load_buffers({name: client.state[name] for name in ("counters",) if name in client.state})

    def client_step(self, client: Client, t: int) -> None:
        """Train, weigh, move."""
        d, model = len(self.resident.weights), self.resident.vector
        rest, validation = client.split(self.validation_fraction)
        w_k = model.clone()
        L_k = self.resident.summed_loss(validation)
        self.resident.train(client, t, self.on_local_step, data=rest)
        self.report(client, "trained")
        u_k = model.clone()

        omega: dict[int, float] = {}
        for i in self.inbox:
            theta_i = u_k if i == client.id else self.inbox[i]["model"]
            distance = float((theta_i[:d] - w_k[:d]).norm())
            model.copy_(theta_i)
            # A model whose loss is beyond float32 here is no better: it must not take the client down with it.
            gain = L_k - self.resident.summed_loss(validation) if distance else 0.0
            omega[i] = gain / distance if distance and math.isfinite(gain) else 0.0

        total = sum(max(value, 0.0) for value in omega.values())
        model.copy_(w_k)
        for i, value in omega.items():
            if value > 0:
                theta_i = u_k if i == client.id else self.inbox[i]["model"]
                model.add_(theta_i - w_k, alpha=value / total)
        self.report(client, "aggregated")

        p_k = client.state["scores"]
        for i, value in omega.items():
            p_k[self.federation.clients[i].key] += value
        client.state = {**self.model_state(), "scores": p_k}
        self.inbox = {}  # what peers sent is not needed any more

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test the model that the client holds, which is one after mixing."""
        tested = super().evaluate_client(client, download, t)
        return {name.replace("_trained", "_aggregated"): value for name, value in tested.items()}
