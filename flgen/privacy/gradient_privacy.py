"""Differential privacy of whole clients in the local model: what a client says about generated images, noisy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.experiment import option_ranges
from flgen.privacy.budget import GaussianBudget

if TYPE_CHECKING:
    from torch import Tensor

SECTION = "method.privacy"


@dataclass(frozen=True)
class GradientPrivacy:
    """The gradient of each image of a batch is scaled to a norm of at most C, and N(0, (z 2 C sqrt(B))^2 I) is added.

    The client adds the noise, so nobody need be trusted with what it has seen. A batch of B gradients moves by at most
    2 C sqrt(B) in L2 if all data of the client change: the gradients come from one network, and each of them may turn
    from one end of its ball to the other.

    Args:
        epsilon: The budget for the whole run; null with a `noise_multiplier` of one's own.
        delta: Its delta.
        noise_multiplier: z, the noise's standard deviation over 2 C sqrt(B); null: the smallest one with which all
            planned rounds stay within the budget.
        gradient_clip: C, bound of the norm of an image's gradient.
        noise_key: File with the secret that the noise is drawn with; null: the run's seed (for simulations).

    Raises:
        UsageError: A number is out of its range, or neither a budget nor a noise multiplier is given.
    """

    epsilon: float | None = 9.8
    delta: float = 1e-5
    noise_multiplier: float | None = None
    gradient_clip: float = 1.0
    noise_key: str | None = None

    def __post_init__(self) -> None:
        option_ranges.above_0(SECTION, gradient_clip=self.gradient_clip)
        self.budget()

    def budget(self) -> GaussianBudget:
        """Return what the answers of a client are paid from."""
        return GaussianBudget(SECTION, self.epsilon, self.delta, self.noise_multiplier, self.noise_key)

    def clip_each(self, gradients: Tensor) -> tuple[Tensor, float]:
        """Return g_i min(1, C / ||g_i||_2), of the gradients' type, and the share of them that this shortened.

        Args:
            gradients: g_i, one per image (B, C, H, W).
        """
        C, norms = self.gradient_clip, gradients.double().flatten(1).norm(dim=1)
        shortened = gradients.double() * (C / norms.clamp(min=C)).view(-1, 1, 1, 1)
        return shortened.to(gradients), float((norms > C).double().mean())

    def sensitivity(self, batch_size: int) -> float:
        """Return by how much one client can move the gradients of B images together (L2), 2 C sqrt(B)."""
        return 2 * self.gradient_clip * math.sqrt(batch_size)

    def record(self, batch_size: int) -> dict[str, Any]:
        """Return what is guaranteed beside the budget, plain values by name.

        Args:
            batch_size: Images of an answer, B.
        """
        return {
            "mechanism": "Gaussian noise on clipped gradients of generated images, by the client, every answer",
            "unit": "client",
            "neighbours": "change all data of one client",
            "sensitivity": f"2 C sqrt(B) = {self.sensitivity(batch_size):g} (L2, all images of an answer together)",
            "clip": self.gradient_clip,
            "composition": "over the answers of the client asked most often, without amplification by the draw",
        }
