"""FedOpt: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021,
algorithm 2 (gptfl.md, section 6.4); FedAvgM: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution
for Federated Visual Classification", 2019.

server: x_1, m = 0, v = tau^2
round t, each client k of the cohort: w <- x_t ; E epochs of the module's own optimiser ; send w
server: Delta = sum_k p_k w_k - x_t ; m, v <- server_step ; x_{t+1} = x_t + the step
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
    from flgen.federation import optimizer_state
    from flgen.federation.clients import Federation
else:
    torch = deferred_module("torch")
    optimizer_state = deferred_module("flgen.federation.optimizer_state")

MomentRule = Literal["fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedadam_torch"]
Rule = Literal["fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedadam_torch", "sgd"]

# The numbers that a rule has, with their defaults (gptfl.md, section 6.4); those of torch's Adam are torch's own.
RATES: dict[Rule, dict[str, float]] = {
    "sgd": {"server_learning_rate": 1.0},
    "fedavgm": {"server_learning_rate": 1.0, "beta_1": 0.9},
    "fedadagrad": {"server_learning_rate": 0.01, "beta_1": 0.0, "tau": 1e-3},
    "fedyogi": {"server_learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedadam": {"server_learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedadam_torch": {"server_learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.999, "tau": 1e-8},
}


class FedOpt(FedAvg):
    """FedAvg whose server takes the average update for a gradient and steps by an optimiser of its own.

    Buffers take the average. Options left at null take the rule's default.

    Args:
        training: How clients train.
        rule: The server's optimiser: "fedadam", "fedyogi", "fedadagrad" without bias correction, as published;
            "fedadam_torch", PyTorch's Adam with it, as in the code of the authors of GPT-FL; "fedavgm", momentum;
            "sgd", which at server_learning_rate 1 is FedAvg, bit for bit.
        server_learning_rate: eta_g. Null: 1 for "sgd" and "fedavgm", 0.01 for the others, which are meant to be tuned.
        beta_1: Decay of the first moment m. Null: 0.9, and 0 for "fedadagrad"; "sgd" has none.
        beta_2: Decay of the second moment v. Null: 0.99, and 0.999 for "fedadam_torch"; only the three Adams have it.
        tau: What is added to the root of v. Null: 1e-3, and 1e-8 for "fedadam_torch"; "sgd" and "fedavgm" have none.
        weighting: What a client counts in the average: its number of "samples", or as much as any other ("uniform").
        keep_personal: Whether each client keeps the model it trained last, to be tested.
        fine_tune: Whether every client trains the last model once more on its own data, to be tested and then thrown
            away: at the last round's learning rate ("annealed"), or at the first one's ("reset").
        topology: How uploads reach the server.

    Raises:
        UsageError: A number is out of its range, or the rule has none of this name.
    """

    def __init__(
        self,
        training: LocalTraining = LocalTraining(),
        rule: Rule = "fedadam",
        server_learning_rate: float | None = None,
        beta_1: float | None = None,
        beta_2: float | None = None,
        tau: float | None = None,
        weighting: Literal["samples", "uniform"] = "samples",
        keep_personal: bool = False,
        fine_tune: Literal["none", "annealed", "reset"] = "none",
        topology: Star | None = None,
    ) -> None:
        super().__init__(training, weighting, keep_personal, fine_tune, topology)
        given = {"server_learning_rate": server_learning_rate, "beta_1": beta_1, "beta_2": beta_2, "tau": tau}
        rates = {name: value for name, value in given.items() if value is not None}
        option_ranges.above_0("method", server_learning_rate=server_learning_rate, tau=tau)
        for name, value in rates.items():
            if name not in RATES[rule]:
                raise UsageError(f"--method.{name} is {value}, but --method.rule {rule} has none: leave it out")
            if name.startswith("beta") and not 0 <= value < 1:
                raise UsageError(f"--method.{name} is {value}: give 0 or more, below 1")
        rates = {**RATES[rule], **rates}
        self.rule = rule
        self.server_learning_rate = rates["server_learning_rate"]
        self.beta_1, self.beta_2, self.tau = (rates.get(name) for name in ("beta_1", "beta_2", "tau"))

    def setup(self, federation: Federation, model: LightningModule, data: LabelledData, fabric: Fabric) -> None:
        """x_1 is the module's own initial weights; moments come with the first step."""
        super().setup(federation, model, data, fabric)
        self.moments: dict[str, Tensor] = {}

    def server_update(self, mean: Tensor) -> Tensor:
        """x_{t+1} = x_t + the server optimiser's step along Delta; of floating-point buffers the average."""
        if self.rule == "sgd":
            return super().server_update(mean)
        d = len(self.resident.weights)
        x_t = self.w_t[:d]
        step, self.moments = server_step(
            self.rule,
            (mean[:d] - x_t).to(x_t),
            self.moments,
            eta_g=self.server_learning_rate,
            beta_1=self.beta_1 or 0.0,
            beta_2=self.beta_2 or 0.0,
            tau=self.tau or 0.0,
        )
        return torch.cat([x_t + step, mean[d:].to(x_t)])

    def state_dict(self) -> dict[str, Any]:
        """x_{t+1} and the moments."""
        return {**super().state_dict(), "moments": self.moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take x and the moments of a checkpoint."""
        super().load_state_dict(state)
        # The count of steps of torch's Adam, which has no dimension, stays on the CPU.
        self.moments = {name: m.to(self.w) if m.ndim else m for name, m in state["moments"].items()}


def server_step(
    rule: MomentRule,
    Delta: Tensor,
    moments: dict[str, Tensor],
    *,
    eta_g: float,
    beta_1: float,
    beta_2: float = 0.0,
    tau: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the server's step, to be added to x_t, and its moments after it.

    Args:
        rule: The server's optimiser.
        Delta: Average of the clients' updates (d,), any float type.
        moments: What the last call returned; empty before the first step.
        eta_g: Server learning rate.
        beta_1: Decay of m.
        beta_2: Decay of v.
        tau: What is added to the root of v.
    """
    if rule == "fedadam_torch":
        return _torch_adam_step(Delta, moments, eta_g, (beta_1, beta_2), tau)
    m = moments.get("m", torch.zeros_like(Delta))
    if rule == "fedavgm":
        m = beta_1 * m + Delta
        return eta_g * m, {"m": m}
    v = moments.get("v", torch.full_like(Delta, tau**2))
    squared = Delta.square()
    m = beta_1 * m + (1 - beta_1) * Delta
    if rule == "fedadagrad":
        v = v + squared
    elif rule == "fedyogi":
        v = v - (1 - beta_2) * squared * (v - squared).sign()
    else:
        v = beta_2 * v + (1 - beta_2) * squared
    return eta_g * m / (v.sqrt() + tau), {"m": m, "v": v}


def _torch_adam_step(
    Delta: Tensor, moments: dict[str, Tensor], eta_g: float, betas: tuple[float, float], epsilon: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the step of torch.optim.Adam on -Delta; it does not depend on where x is."""
    moments = {name: moment.clone() for name, moment in moments.items()}  # torch would change the caller's
    step = torch.nn.Parameter(torch.zeros_like(Delta))
    optimizer = torch.optim.Adam([step], lr=eta_g, betas=betas, eps=epsilon)
    optimizer_state.load(optimizer, moments)
    step.grad = -Delta
    optimizer.step()
    optimizer_state.store(optimizer, moments)
    return step.detach(), moments
