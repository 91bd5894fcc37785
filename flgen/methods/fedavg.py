"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.

server: w_1
round t, each client k of the cohort: w <- w_t ; E epochs of the module's own optimiser on its data ; send w
server: w_{t+1} = sum_k (n_k / n) w_k
"""

from __future__ import annotations

from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.methods.base import ServerMethod
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import ImageData
    from flgen.data import image_set as images
    from flgen.federation import flat_parameters, local_training
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    flat_parameters = deferred_module("flgen.federation.flat_parameters")
    local_training = deferred_module("flgen.federation.local_training")
    images = deferred_module("flgen.data.image_set")


class FedAvg(ServerMethod):
    """Average the weights that clients trained on their own data, weighted by their numbers of samples.

    Args:
        local_epochs: Passes over its data that a client makes per round, E.
        batch_size: Samples per local step, B.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is not positive.
    """

    collection: Collection = "sample_weighted_sum"

    def __init__(self, local_epochs: int = 1, batch_size: int = 10, topology: Star | None = None) -> None:
        super().__init__(topology)
        for option, value in {"local_epochs": local_epochs, "batch_size": batch_size}.items():
            if value < 1:
                raise UsageError(f"--method.{option} is {value}: give 1 or more")
        self.local_epochs = local_epochs
        self.batch_size = batch_size

    def setup(self, federation: Federation, model: LightningModule, data: ImageData, fabric: Fabric) -> None:
        """Take the module's own initial weights as w_1, the same on every rank."""
        super().setup(federation, model, data, fabric)
        federation.stateless = True
        self.w = flat_parameters.flatten_model(model)  # what the resident module computes with
        self.w_t = self.w.clone()
        self.logged = local_training.LoggedValues(fabric)
        model.fabric = self.logged  # type: ignore[assignment]

    def expected_work(self, client: Client) -> float:
        """A client's work is its number of samples."""
        return client.samples

    def download(self, t: int) -> codecs.Payload:
        """w_t."""
        return {"weights": codecs.dense(self.w_t)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """w <- w_t; E epochs of local training; send w."""
        self.w.copy_(download["weights"])
        self.logged.means()  # forget what a client that failed half way had said
        batches = client.data.batches(self.batch_size, client.random("batches", t), epochs=self.local_epochs)
        local_training.train_locally(
            self.model,
            local_training.only_optimizer(self.model),
            ((images.to_unit_range(x), y) for x, y in batches),
            self.fabric,
            seed=client.streams.seed_for("module", round=t, client=client.key),
            steps=self.local_epochs * -(-client.samples // self.batch_size),
            on_step=self.on_local_step,
        )
        client.metrics = self.logged.means()
        return {"weights": codecs.dense(self.w)}

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w_{t+1} = sum_k (n_k / n) w_k."""
        self.w_t = uploads.mean()["weights"].to(self.w)

    def evaluate(self, t: int) -> dict[str, float]:
        """Return the module's own test metrics with w_{t+1} on the test split, or nothing if it has none."""
        self.w.copy_(self.w_t)
        test = self.data.test.to(self.fabric.device)
        batches = zip(test.images.split(256), test.labels.split(256), strict=True)
        scaled = ((images.to_unit_range(x), y) for x, y in batches)
        return local_training.test_module(self.model, scaled, self.fabric, self.logged)

    def state_dict(self) -> dict[str, Any]:
        """w_{t+1}."""
        return {"weights": self.w_t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint, for the rounds to come and for whoever holds the module."""
        self.w_t = state["weights"].to(self.w)
        self.w.copy_(self.w_t)
