"""Ditto: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, as in
DisPFL's comparison (dispfl.md, section 7).

server: w_1
round t, each client k of the cohort:
    w_k <- E epochs of local SGD from w_t ; send w_k
    v_k <- E_p epochs from v_k, each step  v <- SGD step ; v <- v - eta_t lambda (v - w_t)
server: w_{t+1} = sum_k (n_k / n) w_k
"""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods.fedavg import FedAvg
from flgen.topology.star import Star

if TYPE_CHECKING:
    from torch import Tensor

    from flgen.federation.clients import Client
    from flgen.wire import codecs
else:
    codecs = deferred_module("flgen.wire.codecs")


class Ditto(FedAvg):
    """FedAvg, beside which every client keeps a model of its own that is held near the average.

    The pull towards w_t follows each SGD step, outside the gradient clipping, at the point the step has reached.

    Args:
        training: How clients train the common model; its epochs are E.
        personal_epochs: Passes over its data for a client's own model, E_p.
        penalty: Strength of the pull towards the common model, lambda.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    def __init__(
        self,
        training: LocalTraining = LocalTraining(epochs=2, batch_size=128, learning_rate_decay=0.998, clip_norm=10.0),
        personal_epochs: int = 3,
        penalty: float = 0.5,
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, keep_personal=True, topology=topology)
        option_ranges.at_least("method", 1, personal_epochs=personal_epochs)
        option_ranges.at_least("method", 0, penalty=penalty)
        self.personal_epochs = personal_epochs
        self.penalty = penalty

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """One pass for the common model, one for the client's own."""
        w_t, d = download["weights"], len(self.resident.weights)
        per_epoch = -(-client.samples // self.training.batch_size)
        common, own = self.training.epochs * per_epoch, self.personal_epochs * per_epoch

        # w_k <- E epochs of local SGD from w_t
        self.load(w_t)
        self.resident.train(client, t, self.on_local_step, steps_after=own)
        w_k = self.w.clone()

        # v_k <- E_p epochs from v_k, each step followed by v <- v - eta_t lambda (v - w_t)
        self.load(client.state.get("weights", self.w_1))
        pull = self.resident.learning_rate(t) * self.penalty
        self.resident.train(
            client,
            t,
            self.on_local_step,
            epochs=self.personal_epochs,
            steps_before=common,
            purpose="personal batches",
            after_step=lambda: self.resident.weights.lerp_(w_t[:d], pull),
        )
        client.state = {"weights": self.w}
        return {"weights": codecs.dense(w_k)}
