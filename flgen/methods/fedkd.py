"""FedKD: Wu, Wu, Lyu, Huang, Xie, "Communication-Efficient Federated Learning via Knowledge Distillation", Nature
Communications 13, 2022 (arXiv 2108.13323).

server: theta_1, a student
round t, each client k of the cohort, with a teacher w_k and a map W_h,k of its own; f, o and f_g, o_g are the features
and logits of w_k and theta for x, and A = CE(o, y) + CE(o_g, y):
    theta <- theta_t ; E epochs, on every batch
        w_k           <- SGD step on  CE(o, y)   + KL( softmax o_g || softmax o ) / A + MSE( f, W_h f_g ) / A
        theta, W_h,k  <- SGD step on  CE(o_g, y) + KL( softmax o || softmax o_g ) / A + MSE( f, W_h f_g ) / A
    send  Delta_k = [ theta - theta_t ]_T        where [X]_T is U_r diag(sigma_r) V_r^T of the smallest rank r with
server:                                          sum_{j <= r} sigma_j^2 >= T sum_j sigma_j^2, for each matrix X
    theta_{t+1} = theta_t + [ mean over clients of Delta_k ]_T,  T = T_start + (t / rounds) (T_end - T_start)
"""

from __future__ import annotations

from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.federation.training_options import LocalTraining
from flgen.methods import distillation, shared_proxy
from flgen.methods.own_networks import Fidelity
from flgen.methods.shared_proxy import SharedProxy
from flgen.topology.star import Collection, Star

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation.clients import Client, Federation
    from flgen.topology.star import Uploads
    from flgen.wire import codecs, low_rank
else:
    torch = deferred_module("torch")
    codecs = deferred_module("flgen.wire.codecs")
    low_rank = deferred_module("flgen.wire.low_rank")


class FedKD(SharedProxy):
    """A private teacher and a common student teach each other; of the student's update low-rank factors travel
    (fedktl.md, section 5.5).

    The factors of the mean update take a client to theta_{t+1} only from theta_t. They are sent where every client took
    part in the round before, which keep theta_t; otherwise, and in the first round, everybody is sent theta_{t+1}
    itself. `accuracy_trained` is that of a client's teacher, `accuracy_proxy` that of the student as it is sent.

    Args:
        training: How clients train; the published clients clip gradients at 10.
        energy_start: Share of a matrix's sum of squares that its factors keep at first, T_start.
        energy_end: The same in the last round, T_end.
        energy_rounds: Rounds over which one becomes the other; null takes the run's.
        compress: "updates" factors how far the student moved, "weights" the student itself, as HtFLlib does: then
            factors alone say where everybody begins.
        proxy: The student's architecture, by its place in --model, from 0.
        init: Whether each client, and the student, draw initial weights of their own, or take those that their network
            was built with.
        fidelity: "corrected", or what the published code does: besides the order of samples and equal beginnings, both
            losses train both networks, A included, divergences are divided by the number of classes, and every client
            keeps the student's buffers for itself.
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range.
    """

    collection: Collection = "gather"
    needs_single_uploads = "clients send factors of ranks of their own"

    def __init__(
        self,
        training: LocalTraining = LocalTraining(clip_norm=10.0),
        energy_start: float = 0.95,
        energy_end: float = 0.98,
        energy_rounds: int | None = None,
        compress: Literal["updates", "weights"] = "updates",
        proxy: int = 0,
        init: Literal["independent", "shared"] = "independent",
        fidelity: Fidelity = "corrected",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, proxy, init, fidelity, topology)
        for name, value in (("energy_start", energy_start), ("energy_end", energy_end)):
            if not 0 < value <= 1:
                raise UsageError(f"--method.{name} is {value}: give a share above 0, at most 1")
        option_ranges.at_least("method", 1, energy_rounds=energy_rounds)
        self.energy_start = energy_start
        self.energy_end = energy_end
        self.energy_rounds = energy_rounds
        self.compress = compress

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """theta_1, of which nobody has anything yet."""
        super().setup(federation, model, data, fabric)
        self.shapes = [tuple(parameter.shape) for parameter in self.common.module.parameters()]
        self.full = federation.clients_per_round in (None, len(federation))
        self.sent: dict[str, Tensor] = {}  # the factors that take every client to theta_t, if such are sent

    def initial_state(self, client: Client) -> dict[str, Tensor]:
        """w_k and W_h,k."""
        shared = self._first_weights == "shared"
        draws = client.streams.torch("feature map", client=None if shared else client.key)
        W_h = torch.empty(self.d, self.d).uniform_(-(self.d**-0.5), self.d**-0.5, generator=draws)  # as nn.Linear's
        return {**super().initial_state(client), "feature_map": W_h.to(self.theta)}

    def download(self, t: int) -> codecs.Payload:
        """The factors of the last step to theta_t, or theta_t."""
        sent = self.sent or {"proxy": self.theta_t}
        return {**{name: codecs.dense(tensor) for name, tensor in sent.items()}, **self.buffers_beside(self.buffers_t)}

    def proxy_received(self, client: Client, download: dict[str, Tensor]) -> Tensor:
        """theta_t."""
        if "ranks" not in download:
            return download["proxy"]
        moved = low_rank.decompress(download["proxy"], download["ranks"], self.shapes)
        return moved if self.compress == "weights" else client.state["student"] + moved

    def client_step(self, client: Client, download: dict[str, Tensor], t: int) -> codecs.Payload:
        """theta <- theta_t ; train w_k, theta and W_h ; send the factors of theta - theta_t."""
        at = self.residents.load(client)
        w_k: Any = at.module
        theta: Any = self.common.module
        theta_t = self.proxy_received(client, download)
        self.load_proxy(client, theta_t, download)
        W_h = client.state["feature_map"].clone().requires_grad_()

        def losses(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            f, f_g = w_k.features(x), theta.features(x)
            o, o_g = w_k.head(f).float(), theta.head(f_g).float()
            L_teacher, L_student = distillation_losses(o, o_g, y, f.float(), f_g.float(), W_h, self.fidelity)
            w_k.log_dict({"train/loss": L_teacher, "train/proxy_loss": L_student})
            return L_teacher, L_student

        self.train_together(client, t, losses, torch.optim.SGD([W_h], lr=at.learning_rate(t)))
        client.state = {**self.residents.state(client), "feature_map": W_h.detach(), **self.kept_buffers()}
        if self.full and self.compress == "updates":
            client.state["student"] = theta_t
        return {**self._factors(self.theta - self._origin(theta_t), t), **self.buffers_beside(self.common.buffers)}

    def _origin(self, theta_t: Tensor) -> Tensor:
        """What the compressed vector is counted from."""
        return theta_t if self.compress == "updates" else torch.zeros_like(theta_t)

    def _factors(self, vector: Tensor, t: int) -> codecs.Payload:
        values, ranks = low_rank.compress(vector, self.shapes, self.energy(t))
        return {"proxy": codecs.dense(values), "ranks": codecs.dense(ranks)}

    def energy(self, t: int) -> float:
        """Return T of round t."""
        return energy_of_round(t, self.energy_rounds or self.federation.rounds, self.energy_start, self.energy_end)

    def aggregate(self, t: int, uploads: Uploads) -> None:
        """theta_{t+1} = theta_t + [ mean over clients of Delta_k ]_T."""
        received = [sent for _, sent in distillation.received_in_order(uploads, self.federation)]
        updates = [low_rank.decompress(sent["proxy"], sent["ranks"], self.shapes) for sent in received]
        numbers = [low_rank.count_numbers(sent["ranks"], self.shapes) for sent in received]
        theta_p = len(self.theta)
        self.participants = len(received)
        self.ratio_up = sum(numbers) / (self.participants * theta_p)
        self.ratio_down = low_rank.count_numbers(self.sent["ranks"], self.shapes) / theta_p if self.sent else 1.0

        mean = torch.stack(updates).double().mean(dim=0).to(self.theta)
        factors = {name: entry.tensor for name, entry in self._factors(mean, t).items()}
        moved = low_rank.decompress(factors["proxy"], factors["ranks"], self.shapes)
        self.theta_t = self._origin(self.theta_t) + moved
        if self.shares_buffers:
            self.buffers_t = torch.stack([sent["buffers"] for sent in received]).double().mean(dim=0).to(self.theta)
        everybody = self.full and self.participants == len(self.federation)
        self.sent = factors if everybody or self.compress == "weights" else {}

    def published_scalars(self, participants: int, pairs: int) -> tuple[int, int]:
        """N theta_p r up and down, of the ratios r that were measured; buffers are not among the parameters."""
        whole = participants * len(self.theta)
        return round(whole * self.ratio_up), round(whole * self.ratio_down)

    def round_metrics(self, t: int) -> dict[str, float]:
        """Both ratios r, T, and the formula's traffic."""
        return {
            "compression/ratio": self.ratio_up,
            "compression/ratio_down": self.ratio_down,
            "compression/energy": self.energy(t),
            **self.formula_metrics(self.participants),
        }

    def state_dict(self) -> dict[str, Any]:
        """theta_{t+1}, the buffers beside it, and the factors of the last step to it."""
        return {**super().state_dict(), "sent": self.sent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the student of a checkpoint."""
        super().load_state_dict(state)
        self.sent = {name: tensor.to(self.theta.device) for name, tensor in state["sent"].items()}


def distillation_losses(
    o: Tensor, o_g: Tensor, y: Tensor, f: Tensor, f_g: Tensor, W_h: Tensor, fidelity: Fidelity = "corrected"
) -> tuple[Tensor, Tensor]:
    """Return L_teacher and L_student (fedktl.md, section 5.5).

    L_teacher trains the teacher alone, L_student the student and W_h: the other's logits and features are constants
    there, and so is A, a weight that says how far both can be trusted.

    Args:
        o: The teacher's logits (B, C).
        o_g: The student's logits (B, C).
        y: Labels int64 (B,).
        f: The teacher's features (B, d).
        f_g: The student's features (B, d).
        W_h: Maps the student's features to the teacher's (d, d).
        fidelity: With "reference" every term trains everything that it depends on (section 8, defect 21), and as for
            `divergence`.
    """
    functional = torch.nn.functional
    CE, CE_g = functional.cross_entropy(o, y), functional.cross_entropy(o_g, y)
    # Two networks that are sure of every sample have A = 0 in floating point.
    A = (CE + CE_g).clamp(min=torch.finfo(o.dtype).eps)
    mapped = functional.linear(f_g, W_h)
    f_constant, mapped_constant = f, mapped
    if fidelity == "corrected":
        A, f_constant, mapped_constant = A.detach(), f.detach(), mapped.detach()
    L_teacher = CE + (shared_proxy.divergence(o, o_g, fidelity) + functional.mse_loss(f, mapped_constant)) / A
    L_student = CE_g + (shared_proxy.divergence(o_g, o, fidelity) + functional.mse_loss(f_constant, mapped)) / A
    return L_teacher, L_student


def energy_of_round(t: int, rounds: int, start: float, end: float) -> float:
    """Return T = start + (t / rounds) (end - start) of round t, from 1; T stays at end after the last one."""
    return start + min(t, rounds) / rounds * (end - start)
