"""A privacy budget that Gaussian releases are paid from: how much noise it takes, and what is spent."""

from __future__ import annotations

from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.privacy import accounting
from flgen.privacy.accounting import Accountant

if TYPE_CHECKING:
    from flgen.privacy.noise import NoiseSource

_TOLERANCE = 1e-6
"""Relative; what several releases spend is computed anew for each number of them, and may differ by rounding."""


class GaussianBudget:
    """Epsilon at a delta, and the noise multiplier z of the releases that are paid from it.

    Args:
        section: Where its options stand, such as "method.privacy".
        epsilon: The budget; None means that there is none, and a noise multiplier must be given.
        delta: Its delta.
        noise_multiplier: z, the noise's standard deviation over the sensitivity; None: the smallest one with which the
            releases that are planned stay within the budget.
        noise_key: File with the secret that noise is drawn with; None: the run's seed.
        accountant: How releases are composed.
        sampling_rate: Share q of the units that each release is of, if it is a hidden Poisson sample.

    Attributes:
        z: The noise multiplier, after `begin`.
        source: Where noise comes from, after `begin`; its secret is read before the first release.

    Raises:
        UsageError: A number is out of its range, or neither a budget nor a noise multiplier is given.
    """

    z: float
    source: NoiseSource
    _cohort: tuple[int, int]
    _cohort_begun_with: tuple[int, int]

    def __init__(
        self,
        section: str,
        epsilon: float | None,
        delta: float,
        noise_multiplier: float | None,
        noise_key: str | None = None,
        accountant: Accountant = "exact",
        sampling_rate: float = 1.0,
    ) -> None:
        if epsilon is None and noise_multiplier is None:
            raise UsageError(f"--{section}: give .epsilon (a budget), .noise_multiplier, or both")
        option_ranges.above_0(section, epsilon=epsilon, noise_multiplier=noise_multiplier)
        option_ranges.shares(section, delta=delta)
        self.section = section
        self.epsilon = epsilon
        self.delta = delta
        self.noise_multiplier = noise_multiplier
        self.noise_key = noise_key
        self.accountant: Accountant = accountant
        self.sampling_rate = sampling_rate

    def begin(self, seed: int, planned: int, clients: int = 1, clients_per_round: int | None = None) -> None:
        """Fix z and the source of noise.

        Args:
            seed: The run's.
            planned: Number of releases of the client that takes part most often.
            clients: Size of the federation.
            clients_per_round: Size of a cohort; None means everybody.

        Raises:
            UsageError: The first release would overspend the budget, or the accountant cannot count the planned ones.
        """
        from flgen.privacy.noise import NoiseSource

        self.source = NoiseSource.of_run(seed, self.noise_key)
        self._cohort = self._cohort_begun_with = (clients_per_round or clients, clients)
        if self.noise_multiplier is not None:
            self.z = self.noise_multiplier
        else:
            assert self.epsilon is not None
            self.z = accounting.noise_multiplier(
                self.epsilon, self.delta, max(1, planned), self.sampling_rate, self.accountant, self.section
            )
        self.spent(planned)  # what an accountant cannot count is said now, and not in the middle of the run
        if over := self._overspent(1):
            raise UsageError(f"the first release {over}: raise --{self.section}.noise_multiplier, or leave it out")

    def spent(self, releases: int) -> float:
        """Return the epsilon of so many releases."""
        if releases == 0:
            return 0.0
        return accounting.epsilon_spent(self.z, self.delta, releases, self.sampling_rate, self.accountant, self.section)

    def check(self) -> None:
        """Read the secret, and refuse to go on otherwise than the run began.

        A run that is only looked at releases nothing: it needs no secret.

        Raises:
            UsageError: The secret cannot be read; it or the cohort's size is another one than before.
        """
        if self._cohort != self._cohort_begun_with:
            (now, clients), (before, clients_before) = self._cohort, self._cohort_begun_with
            raise UsageError(
                f"--trainer.clients_per_round (or --trainer.participation) now gives {now} of {clients} clients, but "
                f"this private run began with {before} of {clients_before}, and what it spent follows from that: leave "
                "it as it was, or start anew without --ckpt_path"
            )
        self.source.check()

    def exhausted(self, t: int, releases: int) -> str:
        """Return why round t must not be run, because it would overspend the budget; nothing if it may.

        Args:
            t: The round.
            releases: Number of releases in rounds 1 to t of the client that takes part most often.

        Raises:
            UsageError: As of `check`.
        """
        self.check()
        over = self._overspent(releases)
        return over and f"round {t} {over}"

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that is continued must keep to: its noise, the size of its cohorts, and its secret."""
        clients_per_round, clients = self._cohort
        return {
            "noise_multiplier": self.z,
            "clients_per_round": clients_per_round,
            "clients": clients,
            "secret": self.source.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; nothing of a run without privacy, which is only looked at."""
        if state:
            self.z = state["noise_multiplier"]
            self._cohort_begun_with = state["clients_per_round"], state["clients"]
            self.source.go_on_from(state["secret"])

    def _overspent(self, releases: int) -> str:
        """Say by how much so many releases exceed the budget; nothing if they do not."""
        if self.epsilon is None or (needed := self.spent(releases)) <= self.epsilon * (1 + _TOLERANCE):
            return ""
        return f"would spend epsilon {needed:.4g} at delta {self.delta:g}, --{self.section}.epsilon is {self.epsilon:g}"

    def record(self) -> dict[str, Any]:
        """Return budget, noise, accountant, and what the guarantee rests on: plain values by name."""
        return {
            "budget_epsilon": self.epsilon,
            "delta": self.delta,
            "noise_multiplier": self.z,
            "accountant": {"exact": "exact Gaussian", "prv": "opacus PRV", "rdp": "opacus RDP"}[self.accountant],
            "sampling_rate": self.sampling_rate,
            "noise_from": "the run's seed (simulation)" if self.source.of_seed else "a secret file",
            "arithmetic": "floating point, not hardened",
            "covers": "this run alone; other runs on the same records add up",
            "repeats": "a repeated round releases nothing new on the same machine and device, with as many ranks and "
            "threads alone; else it is one more release, not counted",
            "not_covered": "what is measured without noise (train/loss, train/distance, train/discriminator_loss, "
            "privacy/clipped, privacy/clipped_fraction, gradient diversity, clients.csv, FID and the classifier behind "
            "it) and checkpoints, which hold clients' states: the experimenter's records, beside the protocol",
        }
