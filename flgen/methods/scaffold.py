"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, algorithm 1 (gptfl.md, section 6.3).

server: x, c = 0 ; client k: c_k = 0
round t, each client k of the cohort S:
    y_k <- x ; K steps  y_k <- y_k - eta_l (g_k(y_k) - c_k + c)
    c_k+ <- (I) grad F_k(x)  or (II) c_k - c + (x - y_k) / (K eta_l)
    send y_k and c_k+ - c_k ; c_k <- c_k+
server: x <- x + eta_g / |S| sum_k (y_k - x) ; c <- c + 1 / N sum_k (c_k+ - c_k)
"""

from __future__ import annotations

from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods.fedavg import FedAvg
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import local_training
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    local_training = deferred_module("flgen.federation.local_training")


class Scaffold(FedAvg):
    """Uniform FedAvg whose local steps are corrected by control variates, estimates of where clients drift.

    The module's optimiser must be plain SGD, for which K steps from x to y_k tell the mean gradient. Control variates
    belong to parameters; floating-point buffers (BatchNorm's statistics) are averaged.

    Args:
        training: How clients train; without clipping.
        option: How a client renews its control variate: from the steps it took ("II"), or by one more pass over its
            data with the model that it was sent ("I").
        server_learning_rate: Share of the way from x to the average of the y_k that the server goes, eta_g.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range, or gradients are to be clipped.
    """

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        option: Literal["I", "II"] = "II",
        server_learning_rate: float = 1.0,
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, weighting="uniform", topology=topology)
        option_ranges.above_0("method", server_learning_rate=server_learning_rate)
        if training.clip_norm is not None:
            raise UsageError(
                f"--method.training.clip_norm is {training.clip_norm}, but SCAFFOLD reads gradients from the steps of "
                "plain SGD, which clipping would bend: give null"
            )
        self.option = option
        self.server_learning_rate = server_learning_rate

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Refuse a module whose optimiser is not plain SGD."""
        check_plain_sgd(model)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """x is the module's own initial weights; c = 0."""
        super().setup(federation, model, data, fabric)
        federation.stateless = False
        self.c = torch.zeros_like(self.resident.weights)

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """c_k = 0."""
        return {"control": torch.zeros_like(self.resident.weights)}

    def download(self, t: int) -> codecs.Payload:
        """x and c."""
        return {**super().download(t), "control": codecs.dense(self.c)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """K corrected steps from x; send y_k and the change of the control variate."""
        y_k = self.resident.weights
        x, c, c_k = download["weights"][: len(y_k)], download["control"], client.state["control"]
        per_epoch = -(-client.samples // self.training.batch_size)
        extra_steps, K = 0, 0
        if self.option == "I":
            gradient = self.full_gradient(client, download["weights"], t, steps_after=self.training.epochs * per_epoch)
            extra_steps, change = per_epoch, gradient - c_k

        # y_k <- x ; K steps  y_k <- y_k - eta_l (g_k(y_k) - c_k + c)
        correction = c - c_k

        def correct() -> None:
            nonlocal K
            K += 1  # counted, for a module may pass over a batch
            self.resident.add_to_gradients(correction)

        self.load(download["weights"])
        self.resident.train(client, t, self.on_local_step, steps_before=extra_steps, on_gradient=correct)

        # c_k+ - c_k = (x - y_k) / (K eta_l) - c ; who took no step has learnt nothing
        if self.option == "II":
            eta_l = self.resident.learning_rate(t)
            change = (x - y_k) / (K * eta_l) - c if K else torch.zeros_like(c)
        client.state = {"control": c_k + change}
        return {"weights": codecs.dense(self.w), "control_change": codecs.dense(change)}

    def full_gradient(self, client: Client, weights: Tensor, t: int, *, steps_after: int) -> Tensor:
        """Return grad F_k(x) (d,), by a pass over all of its data of which each step is undone."""
        size = seen = 0
        total = torch.zeros_like(self.resident.weights)

        def loss(batch: Any, index: int) -> Any:
            nonlocal size
            size = len(batch[1])
            return self.model.training_step(batch, index)

        def collect() -> None:
            nonlocal seen
            seen += size  # of batches that the module does not pass over
            total.add_(self.resident.gradients(), alpha=size)

        self.load(weights)
        self.resident.train(
            client,
            t,
            self.on_local_step,
            epochs=1,
            steps_after=steps_after,
            purpose="control batches",
            loss=loss,
            on_gradient=collect,
            after_step=lambda: self.load(weights),
        )
        return total / max(seen, 1)

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """x <- x + eta_g / |S| sum_k (y_k - x) ; c <- c + 1 / N sum_k (c_k+ - c_k)."""
        super().aggregate(t, uploads)
        N = len(self.federation)
        self.c = self.c + (uploads.sum()["control_change"] / N).to(self.c)

    def state_dict(self) -> dict[str, Any]:
        """x and c."""
        return {**super().state_dict(), "control": self.c}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take x and c of a checkpoint."""
        super().load_state_dict(state)
        self.c = state["control"].to(self.c)


def check_plain_sgd(model: LightningModule) -> None:
    """Refuse a module whose optimiser does anything but w <- w - eta g, with one eta above 0.

    Raises:
        UsageError: It does; the message says what, and what to change.
    """
    optimizer = local_training.only_optimizer(model)
    name = type(model).__name__
    if type(optimizer) is not torch.optim.SGD:
        raise UsageError(
            f"--model {name} is trained by {type(optimizer).__name__}, but SCAFFOLD's control variates need plain "
            "torch.optim.SGD: let configure_optimizers return it"
        )
    for group in optimizer.param_groups:
        for option in ("momentum", "weight_decay", "nesterov", "maximize"):
            if group[option]:
                raise UsageError(
                    f"--model {name} is trained by SGD with {option} {group[option]}, but SCAFFOLD's control variates "
                    f"need plain SGD: give --model.{option} {'false' if group[option] is True else 0}"
                )
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups})
    if len(rates) > 1 or not rates[0] > 0:
        raise UsageError(
            f"--model {name} is trained at learning rate {', '.join(map(str, rates))}, but SCAFFOLD's control variates "
            "need one above 0 for all parameters: set --model.learning_rate"
        )
