"""FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020
(gptfl.md, section 6.2).

server: x_1
round t, each client k of the cohort:
    w <- x_t ; E epochs of the module's own optimiser on  F_k(w) + (mu / 2) ||w - x_t||^2 ; send w
server: x_{t+1} = sum_k p_k w_k
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from flgen.deferred import TYPE_CHECKING
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods.fedavg import FedAvg
from flgen.topology.star import Star

if TYPE_CHECKING:
    from torch import Tensor

    from flgen.federation.clients import Client


class FedProx(FedAvg):
    """FedAvg whose clients are held near the model that they were sent.

    Args:
        training: How clients train.
        mu: Strength of the pull towards x_t; 0 is FedAvg, bit for bit. The authors tune it among 0.001, 0.01, 0.1, 0.5
            and 1.
        weighting: What a client counts in the average: its number of "samples", or as much as any other ("uniform").
        keep_personal: Whether each client keeps the model it trained last, to be tested.
        fine_tune: Whether every client trains the last average once more, without the pull, to be tested and then
            thrown away: at the last round's learning rate ("annealed"), or at the first one's ("reset").
        topology: How uploads reach the server.

    Raises:
        UsageError: mu is negative.
    """

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        mu: float = 0.01,
        weighting: Literal["samples", "uniform"] = "samples",
        keep_personal: bool = False,
        fine_tune: Literal["none", "annealed", "reset"] = "none",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, weighting, keep_personal, fine_tune, topology)
        option_ranges.at_least("method", 0, mu=mu)
        self.mu = mu

    def on_gradient(self, client: Client, download: dict[str, Tensor]) -> Callable[[], object] | None:
        """Add mu (w - x_t), the gradient of the squared distance over all trained parameters together."""
        if self.mu == 0:
            return None
        w = self.resident.weights
        x_t = download["weights"][: len(w)]
        return lambda: self.resident.add_to_gradients(self.mu * (w - x_t))
