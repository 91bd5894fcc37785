"""Local: every client trains alone, the floor of every personalised method (dispfl.md, section 7).

round t, each client k:  w_k <- E epochs of local SGD from w_k
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from flgen.deferred import TYPE_CHECKING
from flgen.federation.training_options import PUBLISHED, LocalTraining
from flgen.methods.personal_models import PersonalModels
from flgen.topology.peers import NoEdges

if TYPE_CHECKING:
    from torch import Tensor

    from flgen.federation.clients import Client
    from flgen.wire import codecs


class Local(PersonalModels):
    """Train without hearing from anybody; every client may have a network of its own (`ModelGroup`).

    Args:
        training: How clients train.
        init: Whether all clients begin with the module's own initial weights, or each with a draw of its own.
    """

    accepts_mixed: ClassVar[bool] = True

    def __init__(self, training: LocalTraining = PUBLISHED, init: Literal["shared", "independent"] = "shared") -> None:
        super().__init__(training, init, NoEdges())

    def outgoing(self, client: Client, t: int) -> codecs.Payload:
        """Nothing."""
        return {}

    def mix(self, client: Client, inbox: Mapping[int, dict[str, Tensor]], t: int) -> None:
        """w <- w_k."""
        self.residents.load(client)

    def client_step(self, client: Client, t: int) -> None:
        """w_k <- E epochs of local SGD from w_k."""
        self.residents.of(client).train(client, t, self.on_local_step)
        self.report(client, "trained")
        client.state = self.residents.state(client)
