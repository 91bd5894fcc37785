"""Differential privacy of whole clients in the central model: clipped updates, and noise on their sum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.experiment import option_ranges
from flgen.privacy.budget import Accountant, GaussianBudget

if TYPE_CHECKING:
    from torch import Tensor

SECTION = "method.privacy"


@dataclass(frozen=True)
class UpdatePrivacy:
    """Each client's update is scaled to a norm of at most S, and N(0, (z S)^2 I) is added to the sum of a round.

    McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018. The server
    is trusted to add the noise before it uses or shows the sum; under secure aggregation it sees nothing else.

    Args:
        epsilon: The budget for the whole run; null with a `noise_multiplier` of one's own.
        delta: Its delta.
        noise_multiplier: z; null: the smallest one with which all planned rounds stay within the budget.
        update_clip: S, bound of the norm of a client's update.
        accountant: How rounds are composed: "exact" Gaussian, or opacus's "prv" or "rdp".
        noise_key: File with the secret that the noise is drawn with; null: the run's seed (for simulations).

    Raises:
        UsageError: A number is out of its range, or neither a budget nor a noise multiplier is given.
    """

    epsilon: float | None = 9.8
    delta: float = 1e-5
    noise_multiplier: float | None = None
    update_clip: float = 1.0
    accountant: Accountant = "exact"
    noise_key: str | None = None

    def __post_init__(self) -> None:
        option_ranges.above_0(SECTION, update_clip=self.update_clip)
        self.budget()

    def budget(self) -> GaussianBudget:
        """Return what the rounds are paid from."""
        return GaussianBudget(SECTION, self.epsilon, self.delta, self.noise_multiplier, self.noise_key, self.accountant)

    def clip(self, update: Tensor) -> tuple[Tensor, bool]:
        """Return Delta min(1, S / ||Delta||_2), of the update's type (d,), and whether that is less than Delta."""
        norm = float(update.double().norm())
        if norm <= self.update_clip:
            return update, False
        return update.double().mul_(self.update_clip / norm).to(update), True

    def sensitivity(self, d: int, step: float) -> float:
        """Return by how much one client can move the sum (L2): S, and half a step of fixed point for each coordinate.

        Args:
            d: Number of coordinates.
            step: Distance of the numbers that updates are rounded to before they are added up; 0 if they are not.
        """
        return self.update_clip + math.sqrt(d) * step / 2

    def record(self) -> dict[str, Any]:
        """Return what is guaranteed beside the budget, plain values by name."""
        return {
            "mechanism": "Gaussian noise on the sum of clients' clipped updates, every round",
            "unit": "client",
            "neighbours": "add or remove one client; the size of a cohort is public",
            "sensitivity": f"S = {self.update_clip:g}, and half a step of the fixed point per coordinate (L2)",
            "clip": self.update_clip,
            "composition": "over the rounds that a client takes part in, without amplification by sampling",
        }
