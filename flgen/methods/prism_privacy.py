"""What a run of PRISM asks of whatever keeps it private (PRISM, section 6); the mechanisms are in prism_mechanisms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
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

SECTION = "method.privacy"


class PrismPrivacy:
    """What protects the clients of a run; this class stands for nothing at all.

    Attributes:
        unit: Whose presence or change is hidden, "record" or "client".
        sends_updates: Whether clients send real numbers, the changes of their probabilities, in place of bits.
    """

    unit: ClassVar[str] = "client"
    sends_updates: ClassVar[bool] = False

    def check_loss(self, loss: Loss, data: LabelledData) -> None:
        """Refuse a loss that learns of images what is not accounted for; the data are loaded."""

    def check(self, star: Star) -> None:
        """Refuse a topology on which the promise does not hold."""

    def begin(self, federation: Federation) -> None:
        """Fix the noise for the rounds that are planned."""

    def check_secret(self) -> None:
        """Refuse to train with a secret that cannot be read."""

    def release(self) -> statistics_release.StatisticsRelease | None:
        """Return how clients release statistics of their images; nothing where the loss may keep them as they are."""
        return None

    def protect(self, s: Tensor, theta_t: Tensor, t: int, client: int) -> tuple[Tensor, Tensor]:
        """Return the probabilities of a client's bits, and the scores that PRISM-alpha's last layers send.

        Args:
            s: The client's scores (d,).
            theta_t: The probabilities that it was sent (d,).
            t: The round.
            client: Its id.
        """
        return torch.sigmoid(s), s

    def epsilon_after(self, t: int) -> float:
        """Return what rounds 1 to t have spent, epsilon at the run's delta."""
        return math.inf

    def exhausted(self, t: int) -> str:
        """Return why round t would overspend the budget; nothing if it would not."""
        return ""

    def update(self, s: Tensor, theta_t: Tensor) -> Tensor:
        """Return the change of its probabilities that a client sends; of a mechanism that `sends_updates`."""
        raise TypeError(f"{type(self).__name__} sends no updates")

    def noisy_sum(self, total: Tensor, t: int) -> Tensor:
        """Return the clients' changes added up, with noise; of a mechanism that `sends_updates`."""
        raise TypeError(f"{type(self).__name__} sends no updates")

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that is continued must keep to."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def record(self) -> dict[str, Any]:
        """Return what the guarantee is, for the run's record: plain values by name."""
        return {}

    def check_continuation(self, state: dict[str, Any]) -> None:
        """Refuse to go on with what `state_dict` returned, before anything is started."""


class GaussianPrivacy(PrismPrivacy, ABC):
    """What mechanisms with Gaussian noise share: a budget, and the releases that are paid from it.

    Args:
        budget: The budget.
    """

    neighbours: ClassVar[str]

    def __init__(self, budget: GaussianBudget) -> None:
        self.budget = budget
        self.epsilon, self.delta, self.noise_multiplier = budget.epsilon, budget.delta, budget.noise_multiplier
        self.accountant: Accountant = budget.accountant
        self.noise_key = budget.noise_key

    def check_loss(self, loss: Loss, data: LabelledData) -> None:
        """Refuse a loss that keeps statistics on the disk, or whose network was trained on the run's images.

        Noise hides neither: both are made of the images themselves.
        """
        if loss.cache_dir is not None:
            raise UsageError(
                f"--model.loss.cache_dir {loss.cache_dir} keeps statistics of the clients' images there without noise: "
                f"leave it out under --{SECTION}"
            )
        public = loss.public_data()
        if public is not None and public.shares_samples_with(data):
            raise UsageError(
                f"--model.loss.data ({public.name}) shares images with the run's data set ({data.name}), or may, where "
                f"sizes differ: under --{SECTION} its network must come from public images, such as --model.loss.data "
                "Digits for MNIST"
            )

    def begin(self, federation: Federation) -> None:
        """Fix the noise for the rounds that are planned."""
        self._federation = federation
        planned = self.releases(federation.rounds)
        self.budget.begin(federation.streams.seed, planned, len(federation), federation.clients_per_round)

    def check_secret(self) -> None:
        """Refuse to train with a secret that cannot be read."""
        self.budget.check()

    def check_continuation(self, state: dict[str, Any]) -> None:
        """Refuse another cohort or secret than the run began with."""
        self.budget.load_state_dict(state)
        self.budget.check()

    def releases(self, t: int) -> int:
        """Return how often, in rounds 1 to t, the client that took part most often did so.

        Who takes part follows from the run's seed and not from data, so no more needs to be counted; that a cohort is
        a random sample is not used, since the server knows it.
        """
        return self._federation.most_rounds(t)

    def state_dict(self) -> dict[str, Any]:
        """Return z, the cohort's size and a digest of the secret: a run that is continued keeps all of them."""
        return self.budget.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.budget.load_state_dict(state)

    def epsilon_after(self, t: int) -> float:
        """Return what the client that took part most often has spent."""
        return self.budget.spent(self.releases(t))

    def exhausted(self, t: int) -> str:
        """Say so if round t would spend more than the budget."""
        return self.budget.exhausted(t, self.releases(t))

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return unit, neighbouring relation and budget; a mechanism adds itself, its sensitivity and composition."""
        return {"unit": self.unit, "neighbours": self.neighbours, **self.budget.record()}
