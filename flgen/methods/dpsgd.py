"""D-PSGD: Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017, with E local
epochs between exchanges as in DisPFL's comparison (dispfl.md, section 7).

round t, each client k:  w <- 1/|N_k| sum_{j in N_k} w_j           N_k: its neighbours and itself
                         w_k <- E epochs of local SGD from w
"""

from __future__ import annotations

from collections.abc import Mapping

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.methods.personal_models import PersonalModels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.federation.clients import Client
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")


class DPSGD(PersonalModels):
    """Average with the neighbours' weights and buffers, uniformly, and train on.

    Args:
        training: How clients train.
        init: Whether all clients begin with the module's own initial weights, or each with a draw of its own.
        topology: Who reads from whom.
    """

    def outgoing(self, client: Client, t: int) -> codecs.Payload:
        """w_k, and the buffers."""
        offered = {name: client.state[name] for name in ("weights", "buffers") if name in client.state}
        return {name: codecs.dense(tensor) for name, tensor in offered.items()}

    def mix(self, client: Client, inbox: Mapping[int, dict[str, Tensor]], t: int) -> None:
        """w <- mean of w_j over N_k."""
        self.load_buffers(client.state)
        for name, target in (("weights", self.resident.weights), ("buffers", self.resident.buffers)):
            if target.numel():
                target.zero_()
                for j in inbox:
                    target += inbox[j][name]
                target /= len(inbox)
        self.report(client, "aggregated")

    def client_step(self, client: Client, t: int) -> None:
        """w_k <- E epochs of local SGD from w."""
        self.resident.train(client, t, self.on_local_step)
        self.report(client, "trained")
        client.state = self.model_state()
