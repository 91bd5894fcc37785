"""My-1 and My-2: two variants of DisPFL that look for connections in the neighbourhood (dispfl.md, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.federation.training_options import PUBLISHED, LocalTraining
from flgen.masks.sparsity import Sparsity
from flgen.methods.dispfl import DisPFL
from flgen.topology.peers import PeerTopology

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.federation.clients import Client
    from flgen.masks import prune_regrow
else:
    torch = deferred_module("torch")
    prune_regrow = deferred_module("flgen.masks.prune_regrow")


class My1(DisPFL):
    """DisPFL that regrows by the gradient at the neighbourhood's mean of the same round (section 6.1).

    Args:
        training: How clients train.
        sparsity: How sparse the models are, and how their masks move.
        search_augmented: Whether the batch of the gradient is augmented like a training batch.
        buffers: Whether BatchNorm's statistics stay with their client ("local") or are averaged ("mean").
        init: Whether all clients begin with the module's own initial weights, or each with a draw of its own.
        topology: Who reads from whom.
    """

    def __init__(
        self,
        training: LocalTraining = PUBLISHED,
        sparsity: Sparsity = Sparsity(),
        search_augmented: bool = True,
        buffers: Literal["local", "mean"] = "local",
        init: Literal["shared", "independent"] = "shared",
        topology: PeerTopology | None = None,
    ) -> None:
        super().__init__(training, sparsity, "gradient", search_augmented, buffers, init, topology)

    def regrow_gradient(self, client: Client, t: int) -> Tensor:
        """Return the gradient at wbar, before it was projected on the client's mask (P,)."""
        x = self.resident.weights
        trained = x.clone()
        x.copy_(self.wbar)
        g = super().regrow_gradient(client, t)
        x.copy_(trained)
        return g


class My2(DisPFL):
    """DisPFL whose mask search is part of mixing, by the plain mean of the neighbourhood (section 6.2).

    Round t, each client k, in each layer, q = ceil(alpha_t a_l):

        a = 1/|N_k| sum_{j in N_k} w_j              the count of who has a weight does not matter
        kappa = m_k without the q smallest |w_k| ;  G = the q largest |a| ;  c = |G and kappa|
        R = c random positions outside kappa and G
        m_k = s_k = kappa, G and R ;  x = a m_k     or, with kept_values "own", x = w_k on kappa, a elsewhere
        x <- E epochs of masked SGD from x

    A client that hears nobody keeps its mask and its weights.

    Args:
        training: How clients train.
        sparsity: How sparse the models are, and how their masks move.
        kept_values: Where training begins on weights that are kept: at the "mean", as in the seed's code, or at the
            client's "own", as in its report.
        buffers: Whether BatchNorm's statistics stay with their client ("local") or are averaged ("mean").
        init: Whether all clients begin with the module's own initial weights, or each with a draw of its own.
        topology: Who reads from whom.
    """

    def __init__(
        self,
        training: LocalTraining = PUBLISHED,
        sparsity: Sparsity = Sparsity(),
        kept_values: Literal["mean", "own"] = "mean",
        buffers: Literal["local", "mean"] = "local",
        init: Literal["shared", "independent"] = "shared",
        topology: PeerTopology | None = None,
    ) -> None:
        super().__init__(training, sparsity, "random", True, buffers, init, topology)
        self.kept_values = kept_values

    def mix(self, client: Client, inbox: Mapping[int, dict[str, Tensor]], t: int) -> None:
        """Plain mean, the new mask of every layer, and where training begins."""
        m_k, w_k, x = client.state["mask"], client.state["weights"], self.resident.weights
        self.mix_buffers(client, inbox)
        if len(inbox) == 1:
            x.copy_(w_k)
            x[self.first :] *= m_k
        else:
            x.zero_()
            for j in inbox:
                x[: self.first] += inbox[j]["dense"]
                x[self.first :] += inbox[j]["sparse"]
            x /= len(inbox)
            a, w, new = x[self.first :], w_k[self.first :], m_k.clone()
            draws = client.random("regrow", t, self.fabric.device)
            for place, q in self.moves(client, t):
                new[place], kappa = prune_regrow.my2_mask(m_k[place], w[place], a[place], q, draws)
                if self.kept_values == "own":
                    a[place] = torch.where(kappa, w[place], a[place])
            a *= new
            client.state["mask"] = new
        client.metrics["mask/drift"] = float((client.state["mask"] != m_k).sum()) / max(self.P, 1)
        client.state["support"] = client.state["mask"].clone()
        self.report(client, "aggregated")

    def search_mask(self, client: Client, t: int) -> Tensor:
        """Return the mask as it is: it has been searched in `mix`."""
        return client.state["mask"]
