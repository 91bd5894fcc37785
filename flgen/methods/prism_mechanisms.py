"""The ways in which a run of PRISM may be private, and what each promises (PRISM, section 6 of the specification).

StatisticsGaussian (A)   client, once: m1, m2 + N(0, (z 2C/n_k)^2) ; all rounds are post-processing
ThetaGaussian (B)        client, every round: u = clip_C(theta_k - theta_t) ; m ~ Bern(theta_t + u + N(0, (z 2C)^2))
CentralGaussian          client, every round: u = clip_C(theta_k - theta_t) ; server: sum_k u_k + N(0, (z C)^2)
ReferenceBug             the authors' code: scores clamped as if they were probabilities, no noise ; epsilon = infinity

Sampling bits gives no guarantee worth the name by itself (section 6.4).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.methods.prism_privacy import SECTION, GaussianPrivacy, PrismPrivacy
from flgen.privacy.budget import Accountant, GaussianBudget

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.federation.clients import Federation
    from flgen.models.losses import Loss
    from flgen.privacy import statistics_release
    from flgen.topology.star import Star
else:
    torch = deferred_module("torch")
    statistics_release = deferred_module("flgen.privacy.statistics_release")


class ReferenceBug(PrismPrivacy):
    """What the authors' code does where it says that it is private: no noise reaches the upload (section 6.1).

    Scores are clamped to [theta_clip, 1 - theta_clip] as if they were probabilities. For comparison with published
    numbers; epsilon is infinite.

    Args:
        theta_clip: c.

    Raises:
        UsageError: It is not between 0 and 0.5.
    """

    unit = "client"

    def __init__(self, theta_clip: float = 0.1) -> None:
        _check_clamp(theta_clip)
        self.theta_clip = theta_clip

    def protect(self, s: Tensor, theta_t: Tensor, t: int, client: int) -> tuple[Tensor, Tensor]:
        """Return the clamped scores as probabilities; PRISM-alpha's scores pass as they are."""
        return s.clamp(self.theta_clip, 1 - self.theta_clip), s

    def epsilon_after(self, t: int) -> float:
        """Return infinity."""
        return math.inf

    def record(self) -> dict[str, Any]:
        """Return that nothing is guaranteed."""
        return {
            "mechanism": "none (the noise of the authors' code is overwritten before the upload)",
            "unit": self.unit,
            "epsilon": "inf",
            "theta_clip": self.theta_clip,
        }


class StatisticsGaussian(GaussianPrivacy):
    """Mechanism A: every client releases noisy feature statistics of its images, once (section 6.2).

    Each image counts with a bounded vector, so replacing one of a client's n_k records moves the released means by at
    most 2C/n_k. Clients hold different records: the epsilon of one client is that of the run, for any number of rounds.
    It hides records, not clients.

    Args:
        epsilon: The budget; null with a `noise_multiplier` of one's own.
        delta: Its delta.
        noise_multiplier: z; null: the smallest one within the budget.
        clip: C, bound of the norm of an image's features and of their squares.
        bound: How: "unit" scales every vector to norm C, "clip" only longer ones.
        per_layer: Whether each layer of the network is bounded by itself.
        min_records: Fewest images that a client may have; with few the noise drowns everything.
        noise_key: File with the secret that the noise is drawn with; null: the run's seed (for simulations).

    Raises:
        UsageError: A number is out of its range.
    """

    unit = "record"
    neighbours = "replace one record of one client; the number of its records is public"

    def __init__(
        self,
        epsilon: float | None = 9.8,
        delta: float = 1e-5,
        noise_multiplier: float | None = None,
        clip: float = 1.0,
        bound: Literal["unit", "clip"] = "unit",
        per_layer: bool = False,
        min_records: int = 100,
        noise_key: str | None = None,
    ) -> None:
        super().__init__(GaussianBudget(SECTION, epsilon, delta, noise_multiplier, noise_key))
        option_ranges.above_0(SECTION, clip=clip)
        option_ranges.at_least(SECTION, 1, min_records=min_records)
        self.clip = clip
        self.bound: Literal["unit", "clip"] = bound
        self.per_layer = per_layer
        self.min_records = min_records

    def check_loss(self, loss: Loss, data: LabelledData) -> None:
        """Refuse, besides, a loss that looks at single images in every step."""
        loss.check_private()
        super().check_loss(loss, data)

    def begin(self, federation: Federation) -> None:
        """Refuse clients with too few records, whose numbers are public, then fix the noise."""
        for client in federation.clients:
            statistics_release.check_records(client.samples, client.id, self.min_records)
        super().begin(federation)

    def releases(self, t: int) -> int:
        """Return 1: everything after it is post-processing."""
        return 1

    def release(self) -> statistics_release.StatisticsRelease:
        """Return how m1 and m2 are bounded and what is added to them."""
        return statistics_release.StatisticsRelease(
            noise_multiplier=self.budget.z,
            clip=self.clip,
            bound=self.bound,
            per_layer=self.per_layer,
            min_records=self.min_records,
            source=self.budget.source,
        )

    def record(self) -> dict[str, Any]:
        """Return what is guaranteed."""
        return {
            "mechanism": "Gaussian noise on bounded feature statistics, once per client",
            "sensitivity": f"2 C / n_k{' sqrt(layers)' if self.per_layer else ''} (L2, both means together)",
            "clip": self.clip,
            "composition": "one release per client; parallel over clients; rounds are post-processing",
            **super().record(),
        }


class ThetaGaussian(GaussianPrivacy):
    """Mechanism B: Gaussian noise on each client's clipped probabilities, every round (section 6.3).

    Local differential privacy of whole clients against a server that sees every upload. At the size of an image
    generator the noise exceeds the signal by orders of magnitude: a negative control, not a way to train.

    It covers uploads alone. What a client reports for the log, `train/loss` and `train/distance` in metrics.csv and
    clients.csv, is computed from its images and has no noise: whoever the clients are to be protected from must not
    see these columns.

    Args:
        epsilon: The budget for the whole run; null with a `noise_multiplier` of one's own.
        delta: Its delta.
        noise_multiplier: z; null: the smallest one with which all planned rounds stay within the budget.
        update_clip: C, bound of the norm of a client's change of all probabilities together.
        theta_clip: c; probabilities are kept in [c, 1 - c].
        accountant: How rounds are composed: "exact" Gaussian, or opacus's "prv" or "rdp".
        noise_key: File with the secret that the noise is drawn with; null: the run's seed (for simulations).

    Raises:
        UsageError: A number is out of its range.
    """

    unit = "client"
    neighbours = "change all data of one client"

    def __init__(
        self,
        epsilon: float | None = 9.8,
        delta: float = 1e-5,
        noise_multiplier: float | None = None,
        update_clip: float = 1.0,
        theta_clip: float = 0.1,
        accountant: Accountant = "exact",
        noise_key: str | None = None,
    ) -> None:
        super().__init__(GaussianBudget(SECTION, epsilon, delta, noise_multiplier, noise_key, accountant))
        option_ranges.above_0(SECTION, update_clip=update_clip)
        _check_clamp(theta_clip)
        self.update_clip = update_clip
        self.theta_clip = theta_clip

    def update(self, s: Tensor, theta_t: Tensor) -> Tensor:
        """Return u = theta_k - theta_t, theta_k in [c, 1 - c], scaled to a norm of at most C; float64 (d,)."""
        c = self.theta_clip
        u = torch.sigmoid(s.double()).clamp_(c, 1 - c).sub_(theta_t.double())
        norm = float(u.norm())
        if not math.isfinite(norm):  # a clip by it would be none
            raise FlgenError("scores of a client are not finite: lower --method.learning_rate")
        return u.mul_(min(1.0, self.update_clip / max(norm, 1e-300)))

    def protect(self, s: Tensor, theta_t: Tensor, t: int, client: int) -> tuple[Tensor, Tensor]:
        """Return p = clamp(theta_t + u + N(0, (z 2C)^2), c, 1 - c), and its logit for PRISM-alpha's layers."""
        c = self.theta_clip
        u = self.update(s, theta_t)
        std = self.budget.z * 2 * self.update_clip
        p = self.budget.source.release(theta_t.double() + u, std, "theta", round=t, client=client).clamp_(c, 1 - c)
        return p.to(s.dtype), torch.logit(p).to(s.dtype)

    def record(self) -> dict[str, Any]:
        """Return what is guaranteed."""
        return {
            "mechanism": "Gaussian noise on the clipped change of each client's probabilities, every round",
            "sensitivity": f"2 C = {2 * self.update_clip:g} (L2, all layers together)",
            "clip": self.update_clip,
            "composition": "over the rounds that a client takes part in, without amplification by sampling",
            **super().record(),
        }


class CentralGaussian(ThetaGaussian):
    """The central variant: clients send clipped changes under secure aggregation, the server adds the noise (6.3).

    The noise does not grow with the number of clients, but an upload is real numbers: more than one bit per weight.
    The server is trusted to add the noise before it uses or shows the sum; of single clients it sees no change.

    It covers the model alone. What a client reports for the log, `train/loss` and `train/distance` in metrics.csv and
    clients.csv, is computed from its images and has no noise: keep these columns from whoever is shown the model.

    Args:
        epsilon: The budget for the whole run; null with a `noise_multiplier` of one's own.
        delta: Its delta.
        noise_multiplier: z; null: the smallest one with which all planned rounds stay within the budget.
        update_clip: C, bound of the norm of a client's change of all probabilities together.
        theta_clip: c; probabilities are kept in [c, 1 - c].
        accountant: How rounds are composed: "exact" Gaussian, or opacus's "prv" or "rdp".
        noise_key: File with the secret that the noise is drawn with; null: the run's seed (for simulations).

    Raises:
        UsageError: A number is out of its range.
    """

    neighbours = "add or remove one client; the size of a cohort is public"
    sends_updates = True

    def check(self, star: Star) -> None:
        """Refuse to run without secure aggregation."""
        if star.secure_aggregation is None:
            raise UsageError(
                f"--{SECTION} CentralGaussian sends clients' changes without noise, so the server must see their sum "
                "alone: add --method.topology.secure_aggregation '{}'"
            )
        self._step = 2.0**-star.secure_aggregation.fraction_bits

    def noisy_sum(self, total: Tensor, t: int) -> Tensor:
        """Return sum_k u_k + N(0, (z S)^2), S the sensitivity of the sum, float64 (d,).

        Args:
            total: sum_k u_k as secure aggregation returns it (d,).
            t: The round.
        """
        std = self.budget.z * self.sensitivity(total.numel())
        return self.budget.source.release(total, std, "sum", round=t)

    def sensitivity(self, d: int) -> float:
        """Return C and what rounding to fixed point may add to the norm of d coordinates: half a step each."""
        return self.update_clip + math.sqrt(d) * self._step / 2

    def record(self) -> dict[str, Any]:
        """Return what is guaranteed."""
        return {
            **super().record(),
            "mechanism": "Gaussian noise on the sum of clients' clipped changes, every round, under secure aggregation",
            "sensitivity": f"C = {self.update_clip:g}, and half a step of the fixed point per coordinate (L2)",
        }


def _check_clamp(theta_clip: float) -> None:
    if not 0 < theta_clip < 0.5:
        raise UsageError(f"--{SECTION}.theta_clip is {theta_clip}: give a number between 0 and 0.5")
