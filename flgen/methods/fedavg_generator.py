"""FedAvg of a generator with ordinary weights, by PRISM's local loop: what PRISM's masks are to be compared with.

Symbols as in PRISM (prism.md, section 0): w the generator's weights, z noise, x generated images, E local steps.

server: w_1 ~ He's rule
round t:
  every client receives w_t
  client k: w <- w_t ; E times: x = G(z; w), w <- AdamStep(w, dL/dw)
            sends w_k                                                      32 bits per weight
  server: w_{t+1} = sum_k p_k w_k ; p_k = 1 / K, or n_k / n
"""

from __future__ import annotations

from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.methods import generator_training
from flgen.methods.base import ServerMethod
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import trained_vector
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    trained_vector = deferred_module("flgen.federation.trained_vector")

NEEDED = ("noise", "loss", "reset_weights", "recalibrate")


class FedAvgGenerator(ServerMethod):
    """Average the weights of a generator that clients train on the loss of the model, as PRISM's clients train masks.

    BatchNorm's statistics are never sent; the server measures them on noise before it draws images. Adam's moments
    stay with the client from round to round, as they do in PRISM.

    Args:
        preset: For options of the loss that are left at null: "reference", "paper" or "fixed", as of Prism.
        local_steps: Generator steps per client and round, E.
        batch_size: Fake images per step, B.
        learning_rate: Adam's.
        betas: Adam's decays of its two moments.
        weighting: What a client counts in the average: as much as any other ("uniform"), as in PRISM, or its number
            of "samples".
        recalibration_batches: Noise batches of 64 that measure BatchNorm's statistics.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    generative = True
    has_updates = True
    collection: Collection = "sum"

    def __init__(
        self,
        preset: Literal["reference", "paper", "fixed"] = "fixed",
        local_steps: int = 100,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        weighting: Literal["uniform", "samples"] = "uniform",
        recalibration_batches: int = 100,
        topology: Star | None = None,
    ) -> None:
        super().__init__(topology)
        option_ranges.at_least(
            "method", 1, local_steps=local_steps, batch_size=batch_size, recalibration_batches=recalibration_batches
        )
        option_ranges.above_0("method", learning_rate=learning_rate)
        generator_training.check_decays(betas=betas)
        self.preset = preset
        self.local_steps = local_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.betas = betas
        self.weighting = weighting
        if weighting == "samples":
            self.collection = "sample_weighted_sum"
        self.recalibration_batches = recalibration_batches

    @property
    def draws_weights(self) -> str:
        """The generator begins with weights of the run's seed."""
        return "its weights are those of --seed_everything"

    def prepare(self, model: LightningModule, data: LabelledData) -> None:
        """Check that the model is a generator of such images with a loss, and load what the loss needs."""
        loss = self._checked(model, data).loss
        loss.adopt(self.preset)
        loss.load()

    def _checked(self, model: LightningModule, data: LabelledData) -> Any:
        use = "a generator with weights and a --model.loss, such as DenseGenerator"
        return generator_training.checked_generator(model, data, type(self).__name__, NEEDED, use)

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """w_1 by the run's seed, the same on every rank."""
        super().setup(federation, model, data, fabric)
        self.generator = generator = self._checked(model, data)
        self.loss = generator.loss
        self.loss.adopt(self.preset)
        generator.reset_weights(federation.streams.torch("weights"))
        self.w = trained_vector.TrainedVector(generator.parameters())  # what the resident generator computes with
        self.w_t = self.w.copy()
        self.adam = torch.optim.Adam([self.w.vector], lr=self.learning_rate, betas=self.betas, fused=True)

    def download(self, t: int) -> codecs.Payload:
        """w_t."""
        return {"weights": codecs.dense(self.w_t)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """w <- w_t ; E generator steps ; send w_k."""
        self.w.load(download["weights"])
        if not client.state:  # once: what is ever needed of the client's own images
            client.state = self.loss.prepare(client.data, client.random("statistics", 0), client.key)
        generator_training.train_generator(
            self.generator,
            self.w,
            self.adam,
            self.loss,
            client,
            t,
            steps=self.local_steps,
            batch_size=self.batch_size,
            fabric=self.fabric,
            on_step=self.on_local_step,
        )
        return {"weights": codecs.dense(self.w.vector.detach())}

    def update_of(self, download: dict[str, Tensor], upload: codecs.Payload) -> Tensor:
        """Delta_k = w_k - w_t, float64 (d,)."""
        return upload["weights"].tensor.double() - download["weights"].double()

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """w_{t+1} = sum_k p_k w_k."""
        self.w_t = uploads.mean()["weights"].to(self.w_t)

    def samples(self, count: int, t: int) -> dict[str, Tensor]:
        """Draw images with w_{t+1}, from the noise that Prism's are drawn from."""
        self.w.load(self.w_t)
        streams, batches = self.federation.streams, self.recalibration_batches
        drawn = generator_training.draw_normalised(self.generator, count, t, streams, self.fabric, batches)
        return {"generator": drawn}

    def state_dict(self) -> dict[str, Any]:
        """w_{t+1}."""
        return {"weights": self.w_t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint, for the rounds to come and for whoever holds the generator."""
        self.w_t = state["weights"].to(self.w_t)
        self.w.load(self.w_t)
