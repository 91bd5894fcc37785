"""Sub-FedAvg, unstructured: Vahidian, Morafah, Lin, "Personalized Federated Learning by Structured and Unstructured
Pruning under Data Heterogeneity", 2021, as in DisPFL's comparison (dispfl.md, section 7).

server: w_1 ; m_k = 1
round t, each client k of the cohort:
    w <- w_t m_k
    masked SGD from w: m' = m_k pruned after epoch 1, m'' = m_k pruned after epoch E
    m_k <- m'' if m' and m'' still differ, m_k is denser than asked for, and w m'' is good enough on its own data
    sends w m_k and m_k
server: of each weight, the mean over those whose mask holds it; w_t where nobody's does
"""

from __future__ import annotations

import math
from typing import Any

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.federation.training_options import PUBLISHED, LocalTraining
from flgen.methods.fedavg import FedAvg
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import resident
    from flgen.federation.clients import Client, Federation
    from flgen.masks import prune_regrow
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    prune_regrow = deferred_module("flgen.masks.prune_regrow")
    resident = deferred_module("flgen.federation.resident")


class SubFedAvg(FedAvg):
    """Clients prune a common model to sub-networks of their own; masked are the parameters of two or more dimensions.

    Args:
        training: How clients train; 2 epochs or more.
        density: Share of the masked weights below which a client prunes no further.
        prune_share: Share of a layer's remaining weights that one pruning takes.
        mask_change: Least mean distance of m' and m'', in bits per weight, for m'' to be adopted.
        least_accuracy: Least accuracy of w m'' on the client's own training data for it to be adopted.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range, or one epoch would never prune.
    """

    collection: Collection = "sum"
    has_updates = False  # a pruned weight is not sent, so by how much it moved has no meaning

    def __init__(
        self,
        training: LocalTraining = PUBLISHED,
        density: float = 0.5,
        prune_share: float = 0.05,
        mask_change: float = 1e-4,
        least_accuracy: float = 0.5,
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, topology=topology)
        for option, value in {"density": density, "prune_share": prune_share, "least_accuracy": least_accuracy}.items():
            if not 0 <= value <= 1:
                raise UsageError(f"--method.{option} is {value}: give a share from 0 to 1")
        if training.epochs == 1 and mask_change >= 0:
            raise UsageError(
                "--method.training.epochs is 1, but SubFedAvg compares what it would prune after the first epoch and "
                "after the last, and would never prune: give 2 or more"
            )
        self.density = density
        self.prune_share = prune_share
        self.mask_change = mask_change
        self.least_accuracy = least_accuracy

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """Take w_1, its masked parameters last."""
        super(FedAvg, self).setup(federation, model, data, fabric)
        named = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
        self.sizes = list(named.values())
        self.names = list(named)
        self.resident = resident.ResidentModel(model, data, fabric, self.training, last=self.names)
        self.w = self.resident.vector
        self.w_1 = self.w_t = self.w.clone()
        self.counters_1 = self.resident.counters.clone()
        self.P = sum(self.sizes)
        d = len(self.resident.weights)
        self.masked = slice(d - self.P, d)

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """m_k = 1."""
        return {"mask": torch.ones(self.P, dtype=torch.bool, device=self.w.device)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Train under m_k, prune it, send w m_k and m_k."""
        m_k, w = client.state["mask"], self.w[self.masked]
        self.load(download["weights"])
        w *= m_k
        per_epoch = -(-client.samples // self.training.batch_size)
        later = self.training.epochs - 1
        self.train_masked(client, t, m_k, epochs=1, steps_after=later * per_epoch)
        m_1 = self.prune(m_k, w)
        if later:
            self.train_masked(client, t, m_k, epochs=later, steps_before=per_epoch, purpose="later batches")
        m_E = self.prune(m_k, w)
        if self.adopts(client, m_k, m_1, m_E):
            m_k = m_E
            w *= m_k
        client.state = {"mask": m_k}
        client.metrics["mask/density"] = 1 - int((~m_k).sum()) / len(self.resident.weights)
        dense = torch.cat([self.w[: self.masked.start], self.w[self.masked.stop :]])
        return {"dense": codecs.dense(dense), "sparse": codecs.sparse(w.clone(), m_k)}

    def train_masked(self, client: Client, t: int, m_k: Tensor, **passes: Any) -> None:
        """Some epochs of SGD in which only the weights of m_k move."""
        by_layer = self.resident.split_last(m_k)
        self.resident.train(
            client,
            t,
            self.on_local_step,
            on_gradient=lambda: self.resident.mask_gradients(by_layer),
            after_step=lambda: self.w[self.masked].mul_(m_k),
            active={name: int(part.sum()) for name, part in zip(self.names, by_layer, strict=True)},
            **passes,
        )

    def prune(self, m_k: Tensor, w: Tensor) -> Tensor:
        """Clear, in each layer, the remaining weights below the given percentile of their magnitudes."""
        pruned = []
        for m, w_l in zip(m_k.split(self.sizes), w.split(self.sizes), strict=True):
            # Of a values, those strictly below the percentile at position share (a - 1), counted from 0.
            below = math.ceil(self.prune_share * max(int(m.sum()) - 1, 0))
            pruned.append(prune_regrow.prune_smallest(m, w_l, below))
        return torch.cat(pruned)

    def adopts(self, client: Client, m_k: Tensor, m_1: Tensor, m_E: Tensor) -> bool:
        """Whether m'' still moves, there is something left to prune, and w m'' is good enough."""
        by_layer = zip(m_1.split(self.sizes), m_E.split(self.sizes), strict=True)
        distance = sum(float((a != b).double().mean()) for a, b in by_layer) / len(self.sizes)
        if distance <= self.mask_change or float(m_k.double().mean()) <= self.density:
            return False
        w = self.w[self.masked]
        kept = w.clone()
        w *= m_E
        accuracy = self.resident.test(client.data).get("test/accuracy")
        w.copy_(kept)
        if accuracy is None:
            raise UsageError(
                f"{type(self.model).__name__} logs no test/accuracy in test_step, by which SubFedAvg prunes"
            )
        return accuracy > self.least_accuracy

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """Of each weight, the mean over those whose mask holds it."""
        received = uploads.sum()
        w_t = self.w_t.clone()
        dense = (received["dense"] / len(uploads)).to(w_t)
        w_t[: self.masked.start] = dense[: self.masked.start]
        w_t[self.masked.stop :] = dense[self.masked.start :]
        cnt = received["sparse.support"]
        mean = (received["sparse"] / cnt.clamp(min=1)).to(w_t)
        w_t[self.masked] = torch.where(cnt > 0, mean, w_t[self.masked])
        self.w_t = w_t

    def evaluate_client(self, client: Client, download: dict[str, Tensor], t: int) -> dict[str, float]:
        """Test w_{t+1} m_k."""
        self.load(download["weights"])
        self.w[self.masked] *= client.state["mask"]
        return self.resident.test_client(client, "aggregated")
