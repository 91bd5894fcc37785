"""FML: Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu, Wu, "Federated Mutual Learning", arXiv 2006.16765.

server: theta_1, a proxy
round t, each client k of the cohort, with a network w_k of its own, o = w_k(x), o_g = theta(x):
    theta <- theta_t ; E epochs, on every batch
        w_k   <- SGD step on  alpha CE(o, y)  + (1 - alpha) KL( softmax o_g || softmax o )
        theta <- SGD step on  beta CE(o_g, y) + (1 - beta)  KL( softmax o || softmax o_g )
    send theta
server: theta_{t+1} = mean over clients of theta
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.federation.training_options import LocalTraining
from flgen.methods import shared_proxy
from flgen.methods.own_networks import Fidelity
from flgen.methods.shared_proxy import SharedProxy
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.federation.clients import Client
    from flgen.topology.star import Uploads
    from flgen.wire import codecs
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")


class FML(SharedProxy):
    """Every client's network and a common proxy learn from each other (fedktl.md, section 5.4).

    They meet in their logits alone, so that any classifiers will do. `accuracy_trained` is that of a client's own
    network, `accuracy_proxy` that of the averaged proxy.

    Args:
        training: How clients train; the published clients clip gradients at 10.
        alpha: Share of the labels in the loss of a client's own network; the rest is what the proxy says.
        beta: Share of the labels in the proxy's loss; the rest is what the client's network says.
        proxy: The proxy's architecture, by its place in --model, from 0.
        init: Whether each client, and the proxy, draw initial weights of their own, or take those that their network
            was built with.
        fidelity: "corrected", or what the published code does: besides the order of samples and equal beginnings, both
            losses train both networks, divergences are divided by the number of classes, and every client keeps the
            proxy's buffers for itself.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    collection: Collection = "sum"
    shares_features: ClassVar[bool] = False

    def __init__(
        self,
        training: LocalTraining = LocalTraining(clip_norm=10.0),
        alpha: float = 0.5,
        beta: float = 0.5,
        proxy: int = 0,
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, proxy, init, fidelity, topology)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise UsageError(f"--method.{name} is {value}: give a share from 0 to 1")
        self.alpha = alpha
        self.beta = beta

    def download(self, t: int) -> codecs.Payload:
        """theta_t."""
        return {"proxy": codecs.dense(self.theta_t), **self.buffers_beside(self.buffers_t)}

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """theta <- theta_t ; train w_k and theta on each other ; send theta."""
        w_k: Any = self.residents.load(client).module
        theta: Any = self.common.module
        self.load_proxy(client, download["proxy"], download)

        def losses(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            o, o_g = w_k(x).float(), theta(x).float()
            L_local, L_proxy = mutual_losses(o, o_g, y, self.alpha, self.beta, self.fidelity)
            w_k.log_dict({"train/loss": L_local, "train/proxy_loss": L_proxy})
            return L_local, L_proxy

        self.train_together(client, t, losses)
        client.state = {**self.residents.state(client), **self.kept_buffers()}
        return {"proxy": codecs.dense(self.theta), **self.buffers_beside(self.common.buffers)}

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """theta_{t+1} = mean over clients of theta."""
        mean = uploads.mean()
        self.theta_t = mean["proxy"].to(self.theta)
        if self.shares_buffers:
            self.buffers_t = mean["buffers"].to(self.theta)
        self.participants = len(uploads)

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """N theta_p up, N theta_p down; buffers are not among the parameters."""
        return participants * len(self.theta), participants * len(self.theta)

    def round_metrics(self, t: int) -> dict[str, float]:
        """The formula's traffic."""
        return self.formula_metrics(self.participants)


def mutual_losses(
    o: Tensor, o_g: Tensor, y: Tensor, alpha: float, beta: float, fidelity: Fidelity = "corrected"
) -> tuple[Tensor, Tensor]:
    """Return L_local and L_proxy (fedktl.md, section 5.4).

    Args:
        o: Logits of the client's own network (B, C).
        o_g: Logits of the proxy (B, C).
        y: Labels int64 (B,).
        alpha: Share of cross-entropy in L_local; the rest is the divergence from the proxy.
        beta: Share of cross-entropy in L_proxy; the rest is the divergence from the client's network.
        fidelity: As for `divergence`.
    """
    cross_entropy = torch.nn.functional.cross_entropy
    L_local = alpha * cross_entropy(o, y) + (1 - alpha) * shared_proxy.divergence(o, o_g, fidelity)
    L_proxy = beta * cross_entropy(o_g, y) + (1 - beta) * shared_proxy.divergence(o_g, o, fidelity)
    return L_local, L_proxy
