"""The audit: it never proves more than is true, finds a mechanism that lost its noise, and tries those of PRISM."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from flgen import ReferenceBug, StatisticsGaussian, ThetaGaussian
from flgen.data.client_data import TensorClientData
from flgen.data.image_set import ImageSet
from flgen.errors import UsageError
from flgen.models.moment_losses import MomentMatching
from flgen.privacy.accounting import noise_multiplier
from flgen.privacy.audit import epsilon_lower_bound
from flgen.privacy.noise import NoiseSource

RUNS = 8000


def gaussian_runs(z: float, seed: int, runs: int = RUNS) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a Gaussian mechanism of sensitivity 1, whose canary adds 1 to its result."""
    draws = np.random.default_rng(seed)
    return 1 + z * draws.standard_normal(runs), z * draws.standard_normal(runs)


class TestGaussianMechanism:
    Z = noise_multiplier(1.0, 1e-5, releases=1)

    def test_the_bound_nears_the_claim_and_stays_below(self) -> None:
        bounds = [epsilon_lower_bound(*gaussian_runs(self.Z, seed), delta=1e-5) for seed in range(20)]
        assert max(bounds) < 1
        assert np.median(bounds) > 0.2

    def test_a_tenth_of_the_noise_is_found_out(self) -> None:
        assert epsilon_lower_bound(*gaussian_runs(self.Z / 10, seed=0), delta=1e-5) > 3

    def test_the_sign_of_a_score_does_not_matter(self) -> None:
        present, absent = gaussian_runs(self.Z / 10, seed=1)
        assert epsilon_lower_bound(-present, -absent, 1e-5) == epsilon_lower_bound(present, absent, 1e-5)

    def test_a_larger_delta_or_confidence_proves_less(self) -> None:
        runs = gaussian_runs(1.0, seed=2)
        bound = epsilon_lower_bound(*runs, delta=1e-5)
        assert epsilon_lower_bound(*runs, delta=0.1) < bound
        assert epsilon_lower_bound(*runs, delta=1e-5, confidence=0.999) < bound


def test_scores_without_a_difference_prove_nothing_more_often_than_they_may() -> None:
    draws = np.random.default_rng(3)
    bounds = [
        epsilon_lower_bound(draws.standard_normal(400), draws.standard_normal(400), 0.0, confidence=0.9)
        for _ in range(200)
    ]
    assert sum(bound > 0 for bound in bounds) <= 0.1 * len(bounds)


def test_the_bound_of_perfect_separation_is_that_of_the_counts() -> None:
    present, absent = np.ones(40), np.zeros(40)
    low, high = beta.ppf(0.025, 20, 1), beta.ppf(0.975, 1, 20)  # 20 of 20, and 0 of 20 (Clopper and Pearson)
    assert epsilon_lower_bound(present, absent, 0.01) == pytest.approx(math.log((low - 0.01) / high))


def test_an_event_that_only_the_absent_canary_allows_counts_too() -> None:
    # Present: always 0. Absent: 0 or 1 by a coin. The score 1 rules the canary out, the score 0 says little.
    absent = np.tile([0.0, 1.0], 500)
    assert epsilon_lower_bound(np.zeros(1000), absent, 1e-5) > 3


class TwoPixels(MomentMatching):
    """Sees two grey levels from 0 to 1, so that a black and a white pixel are as far from white and black as can be."""

    def __init__(self) -> None:
        super().__init__("instant", "zero", 1e-5, batch_size=8, cache_dir=None)

    def features(self, images: Tensor, *, real: bool = False) -> list[Tensor]:
        return [(images + 1) / 2]

    def feature_recipe(self) -> dict[str, Any]:
        return {}


class TestStatisticsGaussian:
    """Mechanism A, from a client's images to what a loss keeps of them."""

    RUNS = 1500

    def scores(self, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Runs at (1, 1e-5) with that share of the noise: the released means along the line that the canary moves."""
        privacy = StatisticsGaussian(epsilon=1.0, delta=1e-5, min_records=1)
        privacy.budget.begin(seed=0, planned=1)
        planned = privacy.release()
        loss, along = TwoPixels(), torch.tensor([[1.0, -1], [1, -1]])
        images = torch.tensor([[0, 255], [90, 200], [10, 40]], dtype=torch.uint8).view(3, 1, 1, 2)
        canary = torch.tensor([255, 0], dtype=torch.uint8).view(1, 1, 1, 2)
        draws = torch.Generator()
        found = []
        for case, first in (("with", canary), ("without", images[:1])):
            records = ImageSet(torch.cat([first, images[1:]]), torch.zeros(3, dtype=torch.int64))
            data = TensorClientData(records, np.arange(3))
            scores = []
            for run in range(self.RUNS):
                source = NoiseSource(f"{case} {run}".encode())
                loss.release = replace(planned, source=source, noise_multiplier=noise * planned.noise_multiplier)
                scores.append(float((loss.prepare(data, draws)["target"] * along).sum()))
            found.append(np.array(scores))
        return found[0], found[1]

    def test_a_canary_proves_no_more_than_is_claimed(self) -> None:
        present, absent = self.scores(noise=1.0)
        assert epsilon_lower_bound(present, absent, 1e-5) < 1
        # The canary is the worst that a record can do, and moves the means by 1/z standard deviations.
        moved = (present.mean() - absent.mean()) / absent.std()
        assert moved == pytest.approx(1 / noise_multiplier(1.0, 1e-5, 1), abs=4 * math.sqrt(2 / self.RUNS))

    def test_a_tenth_of_the_noise_is_found_out(self) -> None:
        assert epsilon_lower_bound(*self.scores(noise=0.1), 1e-5) > 3


class TestThetaGaussian:
    """Mechanism B at its worst: a client's scores go to one end or the other, in every coordinate and every round."""

    RUNS, ROUNDS, D = 1500, 3, 4

    def scores(self, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Runs at (1, 1e-5) with that share of the noise: all that is uploaded in all rounds, added up."""
        privacy = ThetaGaussian(epsilon=1.0, delta=1e-5, update_clip=0.005, theta_clip=0.01)
        privacy.budget.begin(seed=0, planned=self.ROUNDS)
        privacy.budget.z *= noise
        theta_t = torch.full((self.D,), 0.5)
        found = []
        for case, s in (("with", 9.0), ("without", -9.0)):
            scores = []
            for run in range(self.RUNS):
                privacy.budget.source = NoiseSource(f"{case} {run}".encode())
                sent = [privacy.protect(torch.full((self.D,), s), theta_t, t, 0)[0] for t in range(1, self.ROUNDS + 1)]
                scores.append(float(torch.stack(sent).sum()))
            found.append(np.array(scores))
        return found[0], found[1]

    def test_all_rounds_together_prove_no_more_than_is_claimed(self) -> None:
        present, absent = self.scores(noise=1.0)
        assert epsilon_lower_bound(present, absent, 1e-5) < 1
        # T rounds at sqrt(T) times the noise add up to one release: the canary moves their sum by 1/z_1.
        moved = (present.mean() - absent.mean()) / absent.std()
        assert moved == pytest.approx(1 / noise_multiplier(1.0, 1e-5, 1), abs=4 * math.sqrt(2 / self.RUNS))

    def test_a_tenth_of_the_noise_is_found_out(self) -> None:
        assert epsilon_lower_bound(*self.scores(noise=0.1), 1e-5) > 3


def test_the_published_claim_of_the_authors_code_is_refuted() -> None:
    runs, weights, draws = 250_000, 64, torch.Generator().manual_seed(0)

    def bits_set(s: float) -> np.ndarray:
        p, _ = ReferenceBug(theta_clip=0.1).protect(torch.full((runs, weights), s), torch.tensor(0.5), 1, 0)
        return torch.bernoulli(p, generator=draws).sum(1).numpy()

    assert epsilon_lower_bound(bits_set(3.0), bits_set(-3.0), delta=1e-5) > 9.8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"with_canary": np.zeros(7)}, r"scores of shape \(7,\): give 8 or more"),
        ({"without": np.zeros((8, 1))}, r"scores of shape \(8, 1\)"),
        ({"without": np.array([math.nan] * 8)}, "score that is not a finite number"),
        ({"delta": 1.0}, "delta is 1.0: give a number from 0, below 1"),
        ({"confidence": 1.0}, "confidence is 1.0: give a share between 0 and 1"),
    ],
)
def test_scores_that_cannot_be_counted_are_refused(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"with_canary": np.zeros(8), "without": np.zeros(8), "delta": 0.0, **changed}
    with pytest.raises(UsageError, match=message):
        epsilon_lower_bound(**arguments)  # type: ignore[arg-type]
