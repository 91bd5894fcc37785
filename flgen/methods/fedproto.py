"""FedProto: Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "FedProto: Federated Prototype Learning across Heterogeneous
Clients", AAAI 2022.

round t, each client k of the cohort, with a network f_k, h_k of its own:
    E epochs of SGD on  CE( h_k(f_k(x)), y ) + lambda MSE( f_k(x), P-^y )        without P- in round 1
    P_k^c = mean of f_k(x) over its x of class c ; send (P_k^c, c) for each class that it holds
server:
    P-^c = mean over the clients that hold c of P_k^c
prediction: the class c whose P-^c lies nearest to f_k(x)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods.own_networks import Fidelity, OwnNetworks
from flgen.topology.star import Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation import resident
    from flgen.federation.clients import Client, Federation
    from flgen.methods import class_vectors
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    class_vectors = deferred_module("flgen.methods.class_vectors")


class FedProto(OwnNetworks):
    """Clients with different networks agree on where the features of a class lie (fedktl.md, section 5.7).

    Features of all networks must have one width. `accuracy_trained` is that of the nearest prototype, taken from those
    that the server would send next; before there are any, that of the network's own head. A class that nobody holds in
    a round keeps its last prototype; one that nobody has ever held has none, and adds nothing to the second term.

    Args:
        training: How clients train.
        prototype_weight: Weight of the second term, lambda; published are 10 (HtFLlib) and 0.1 (Li et al. 2025).
        weighting: "uniform" takes the plain mean over the clients that hold a class, as the published code does,
            "samples" weights them by their samples of it, as the paper's formula does; those counts are then sent.
        init: Whether each client draws initial weights of its own, or takes those that its network was built with.
        fidelity: "corrected", or what the published code does: besides the order of samples and equal beginnings,
            P_k^c is the mean of the features that passed during training, while the network changed.
        topology: How uploads reach the server; under secure aggregation it sees sums over clients alone.

    Raises:
        UsageError: `prototype_weight` is below 0.
    """

    needs_single_uploads = (
        "with --method.weighting samples its server weights every client's prototypes by themselves; uniform needs "
        "their sum alone"
    )

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        prototype_weight: float = 10.0,
        weighting: Literal["uniform", "samples"] = "uniform",
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, init, fidelity, topology)
        option_ranges.at_least("method", 0, prototype_weight=prototype_weight)
        self.prototype_weight = prototype_weight
        self.weighting = weighting
        self.summed = self.topology.secure_aggregation is not None and weighting == "uniform"
        self.collection = "sum" if self.summed else "gather"

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """No class has a prototype yet."""
        super().setup(federation, model, data, fabric)
        self.P_bar = torch.zeros(self.C, self.d, device=fabric.device)
        self.known = torch.zeros(self.C, dtype=torch.bool, device=fabric.device)

    def download(self, t: int) -> codecs.Payload:
        """P-^c of every class that has one; nothing in the first round."""
        return class_vectors.send_table("global_prototypes", self.P_bar, self.known) if self.known.any() else {}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """Train near the prototypes, send those of the client's own classes."""
        at = self.residents.load(client)
        P_k, n_k = self.train(client, at, download, t)
        client.state = self.residents.state(client)
        counts = n_k if self.weighting == "samples" else None
        return class_vectors.send("prototypes", P_k, n_k > 0, self.summed, counts)

    def train(
        self, client: Client, at: resident.ResidentModel, download: dict[str, Tensor], t: int
    ) -> tuple[Tensor, Tensor]:
        """Train a client's network; return P_k (C, d) and n_k, the samples of each class behind it, int64 (C,)."""
        passed: list[tuple[Tensor, Tensor]] = []
        loss = self.local_loss(at, download, passed)
        at.train(client, t, self.on_local_step, data=self.training_data(client), loss=loss)
        return self.class_means(passed) if self.fidelity == "reference" else self.prototypes(client, at)

    def prototypes(self, client: Client, at: resident.ResidentModel) -> tuple[Tensor, Tensor]:
        """Return the mean feature vectors of a client's classes (C, d) by its network as it stands, in eval mode."""
        model: Any = at.module
        return self.class_means(at.in_eval(self.training_data(client), model.features))

    def class_means(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the mean of each class (C, d) of features and labels in batches, of which there may be none."""
        return class_vectors.class_means(batches, self.C, nothing=self.P_bar[:0])

    def local_loss(
        self, at: resident.ResidentModel, download: dict[str, Tensor], passed: list[tuple[Tensor, Tensor]]
    ) -> Callable[[tuple[Tensor, Tensor], int], Tensor]:
        """Return a client's loss of a batch, which under fidelity "reference" also notes the features that passed."""
        model: Any = at.module
        offered = "global_prototypes" in download
        table = class_vectors.receive_table("global_prototypes", download) if offered else None

        def loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
            x, y = batch
            z = model.features(x)
            ce = torch.nn.functional.cross_entropy(model.head(z), y)
            model.log("train/loss", ce)
            if self.fidelity == "reference":
                passed.append((z.detach(), y))
            if table is None:
                return ce
            distance = prototype_loss(z, y, *table)
            model.log("train/prototype_loss", distance)
            return ce + self.prototype_weight * distance

        return loss

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """P-^c of the classes that somebody holds."""
        received = self.receive(uploads)
        means = sample_weighted_means(received, self.C) if self.weighting == "samples" else received.means
        self.P_bar = torch.where(received.held.unsqueeze(1).to(self.known), means.to(self.P_bar), self.P_bar)

    def receive(self, uploads: Uploads) -> class_vectors.ClassVectors:
        """Return what clients sent, and note which classes have been seen."""
        received = class_vectors.receive("prototypes", uploads, self.federation, self.C, self.summed)
        self.known |= received.held.to(self.known)
        self.participants, self.pairs = len(uploads), received.pairs
        return received

    def predictor(self, at: resident.ResidentModel, download: dict[str, Tensor]) -> Callable[[Tensor], Tensor] | None:
        """Predict the class of the nearest prototype; by the head where there is none."""
        if "global_prototypes" not in download:
            return None
        model: Any = at.module
        P_bar, known = class_vectors.receive_table("global_prototypes", download)
        return lambda x: nearest_prototype(model.features(x).float(), P_bar, known)

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """sum_i d C_i up, N d C down."""
        return self.d * pairs, participants * self.d * self.C

    def round_metrics(self, t: int) -> dict[str, float]:
        """The formula's traffic."""
        return self.formula_metrics(self.participants, self.pairs)

    def state_dict(self) -> dict[str, Any]:
        """P-, and which classes have one."""
        return {"prototypes": self.P_bar, "known": self.known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the prototypes of a checkpoint."""
        self.P_bar = state["prototypes"].to(self.P_bar)
        self.known = state["known"].to(self.known)


def prototype_loss(z: Tensor, y: Tensor, P_bar: Tensor, known: Tensor) -> Tensor:
    """Return MSE(z, P-^y), the mean over all B d elements; a sample whose class has no prototype adds zero to the sum.

    Args:
        z: Features (B, d).
        y: Labels, int64 (B,).
        P_bar: Prototypes (C, d).
        known: Whether a class has one, bool (C,).
    """
    return torch.where(known[y].unsqueeze(1), z - P_bar[y], torch.zeros_like(z)).square().mean()


def nearest_prototype(z: Tensor, P_bar: Tensor, known: Tensor) -> Tensor:
    """Return the class whose prototype has the smallest MSE to each feature vector, int64 (B,).

    Args:
        z: Features (B, d).
        P_bar: Prototypes (C, d).
        known: Whether a class has one, bool (C,); at least one does.
    """
    distances = torch.cdist(z, P_bar, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(~known, float("inf")).argmin(dim=1)


def sample_weighted_means(received: class_vectors.ClassVectors, classes: int) -> Tensor:
    """Return sum_k n_k^c P_k^c / sum_k n_k^c of each class, float64 (C, d); zero for a class that nobody holds."""
    weights = received.weights.unsqueeze(1)
    totals, _ = class_vectors.class_sums([(received.rows * weights, received.labels)], classes)
    samples, _ = class_vectors.class_sums([(weights, received.labels)], classes)
    return totals / samples.clamp(min=1)
