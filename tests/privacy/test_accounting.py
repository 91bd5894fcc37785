"""Values of PRISM's specification, section 6 and check 10 of section 10, and what holds for any budget."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.errors import UsageError
from flgen.privacy.accounting import (
    Accountant,
    AccountantLimit,
    affordable_releases,
    epsilon_spent,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    noise_multiplier,
)

BUDGET = (9.8, 1e-5)
quick = settings(max_examples=60, deadline=None)


def precise_delta(mu: float, epsilon: float) -> float:
    """The closed form in 60 digits, whose exponents have no limit."""
    with mpmath.workdps(60):
        mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
        left, right = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return float(mpmath.ncdf(left) - mpmath.exp(epsilon) * mpmath.ncdf(right))


class TestCheck10:
    def test_the_exact_multiplier(self) -> None:
        assert gaussian_mu(*BUDGET) == pytest.approx(1.967875, rel=1e-6)
        assert noise_multiplier(*BUDGET, releases=1) == pytest.approx(0.508162, rel=1e-6)
        assert noise_multiplier(*BUDGET, releases=500) == pytest.approx(11.3629, rel=5e-6)

    def test_the_classical_multiplier_breaks_the_budget(self) -> None:
        classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / 9.8
        assert classical == pytest.approx(0.494368, rel=1e-6)
        assert epsilon_spent(classical, 1e-5, 1) == pytest.approx(10.1378, rel=1e-5)
        assert epsilon_spent(classical, 1e-5, 11) == pytest.approx(50.3, abs=0.05)  # each of the 11 tensors
        assert epsilon_spent(classical, 1e-5, 11 * 500) == pytest.approx(11_891, abs=0.5)  # in each of the 500 rounds

    def test_what_an_rdp_accountant_says_of_the_exact_multiplier(self) -> None:
        assert epsilon_spent(0.508162, 1e-5, 1, accountant="rdp") == pytest.approx(10.515, abs=0.02)

    @pytest.mark.parametrize(
        ("rounds", "exact", "rdp"),
        [
            (1, 0.5082, 0.5386),
            (100, 5.0816, 5.3856),
            (150, 6.2237, 6.5960),
            (300, 8.8016, 9.3281),
            (500, 11.3629, 12.0425),
        ],
    )
    def test_the_table_of_rounds(self, rounds: int, exact: float, rdp: float) -> None:
        assert noise_multiplier(*BUDGET, rounds) == pytest.approx(exact, abs=5.1e-5)
        assert noise_multiplier(*BUDGET, rounds, accountant="rdp") == pytest.approx(rdp, abs=5.1e-5)

    @pytest.mark.parametrize(("rounds", "rdp"), [(150, 0.988), (500, 1.429)])
    def test_poisson_sampling(self, rounds: int, rdp: float) -> None:
        # Orders on a grid: what another accountant makes of the same formula differs in the third decimal.
        assert noise_multiplier(*BUDGET, rounds, 0.1, "rdp") == pytest.approx(rdp, abs=2e-3)


class TestExactCurve:
    @pytest.mark.parametrize(
        ("mu", "epsilon"),
        [
            (1.0, 0.0),
            (1.0, 1.0),
            (1.967875, 9.8),
            (0.01, 0.02),
            (30.0, 700.0),
            (140.0, 10_000.0),
            (3.0, 1.0),
            (80.0, 5.0),
        ],
    )
    def test_it_agrees_with_many_digits_where_its_terms_overflow_and_cancel(self, mu: float, epsilon: float) -> None:
        assert gaussian_delta(mu, epsilon) == pytest.approx(precise_delta(mu, epsilon), rel=1e-9)

    @given(st.floats(-3, 4), st.floats(-12, -0.01))
    @quick
    def test_epsilon_and_mu_are_inverse(self, log_mu: float, log_delta: float) -> None:
        mu, delta = 10**log_mu, 10**log_delta
        epsilon = gaussian_epsilon(mu, delta)
        if epsilon == 0:
            assert gaussian_delta(mu, 0.0) <= delta
        elif epsilon > 1e-6:
            assert gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-6)

    def test_so_much_noise_that_delta_alone_covers_it(self) -> None:
        assert epsilon_spent(1e6, 1e-5, 10) == 0.0

    @given(st.floats(-3, 4), st.floats(-12, -0.5), st.integers(1, 10**6))
    @quick
    def test_the_noise_of_a_budget_keeps_it_and_a_little_less_does_not(
        self, log_epsilon: float, log_delta: float, releases: int
    ) -> None:
        epsilon, delta = 10**log_epsilon, 10**log_delta
        z = noise_multiplier(epsilon, delta, releases)
        assert epsilon_spent(z, delta, releases) <= epsilon < epsilon_spent(z * (1 - 1e-6), delta, releases)

    @given(st.floats(-1, 2), st.integers(1, 10**5))
    @quick
    def test_a_budget_affords_the_releases_that_its_noise_was_made_for(self, log_epsilon: float, releases: int) -> None:
        epsilon = 10**log_epsilon
        assert affordable_releases(noise_multiplier(epsilon, 1e-5, releases), epsilon, 1e-5) == releases


class TestAccountants:
    def test_the_prv_accountant_is_just_above_the_exact_one_and_the_rdp_accountant_further(self) -> None:
        exact, prv, rdp = (epsilon_spent(2.0, 1e-5, 20, accountant=name) for name in ("exact", "prv", "rdp"))
        assert exact < prv < exact + 0.02 < rdp < 1.2 * exact

    @pytest.mark.parametrize("accountant", ["prv", "rdp"])
    def test_a_bound_is_above_what_one_hidden_coin_gives(self, accountant: Accountant) -> None:
        # One release sampled at q: delta(ln(1 + q (e^epsilon - 1))) = q times the delta of a release of everybody.
        z, q, epsilon = 0.8, 0.1, 3.0
        amplified, delta = math.log1p(q * math.expm1(epsilon)), q * gaussian_delta(1 / z, epsilon)
        bound = epsilon_spent(z, delta, 1, q, accountant)
        assert amplified <= bound <= amplified + (0.02 if accountant == "prv" else 1.0)

    @pytest.mark.parametrize("accountant", ["prv", "rdp"])
    def test_the_noise_of_a_sampled_budget_keeps_it_and_a_little_less_does_not(self, accountant: Accountant) -> None:
        z = noise_multiplier(3.0, 1e-5, 2, 0.01, accountant)
        assert epsilon_spent(z, 1e-5, 2, 0.01, accountant) <= 3.0
        assert epsilon_spent(z * (1 - 1e-5), 1e-5, 2, 0.01, accountant) > 3.0
        assert affordable_releases(z, 3.0, 1e-5, 0.01, accountant) == 2

    def test_half_of_the_clients_are_counted_as_a_little_more(self) -> None:
        below, half, above = (epsilon_spent(1.0, 1e-5, 5, q, "rdp") for q in (0.45, 0.5, 0.55))
        assert below < half < above
        assert half == epsilon_spent(1.0, 1e-5, 5, 0.505, "rdp")

    @pytest.mark.parametrize("accountant", ["exact", "prv", "rdp"])
    def test_without_noise_there_is_no_privacy(self, accountant: Accountant) -> None:
        assert epsilon_spent(0.0, 1e-5, 1, accountant=accountant) == math.inf
        assert affordable_releases(0.0, 9.8, 1e-5, accountant=accountant) == 0

    def test_one_release_beyond_the_budget_affords_none(self) -> None:
        assert affordable_releases(0.5, 9.8, 1e-5) == 0
        assert affordable_releases(0.509, 9.8, 1e-5) == 1

    def test_what_a_grid_does_not_reach_is_said_and_not_computed(self) -> None:
        with pytest.raises(AccountantLimit, match=r"prv accountant cannot follow 500 releases at this noise.*take rdp"):
            epsilon_spent(0.5, 1e-5, 500, accountant="prv")
        with pytest.raises(AccountantLimit, match="cannot follow 1000000000 releases"):
            epsilon_spent(1e5, 1e-5, 10**9, accountant="prv")
        with pytest.raises(AccountantLimit, match=r"--epsilon is 0.05, but the rdp .* below 0.103 .* or take exact$"):
            noise_multiplier(0.05, 1e-5, 1, accountant="rdp")
        with pytest.raises(AccountantLimit, match=r"however large the noise: raise it$"):
            noise_multiplier(0.05, 1e-5, 1, 0.2, accountant="rdp")

    def test_nothing_is_printed_about_orders_and_logarithms(self, recwarn: pytest.WarningsRecorder) -> None:
        before = np.geterr()
        epsilon_spent(100.0, 1e-5, 1, accountant="rdp")
        epsilon_spent(100.0, 1e-5, 1, accountant="prv")
        assert [str(warning.message) for warning in recwarn if "alpha" in str(warning.message)] == []
        assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
        assert np.geterr() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epsilon": 0}, "--epsilon is 0: give a number above 0"),
        ({"epsilon": math.nan}, "--epsilon is nan: give a number above 0"),
        ({"epsilon": math.inf}, "--epsilon is inf: give a number above 0"),
        ({"delta": 0}, "--delta is 0: give a number between 0 and 1"),
        ({"delta": 1.0}, "--delta is 1.0: give a number between 0 and 1"),
        ({"releases": 0}, "--rounds is 0: give a whole number from 1"),
        ({"releases": 1.5}, "--rounds is 1.5: give a whole number from 1"),
        ({"sampling_rate": 0}, "--sampling_rate is 0: give a share above 0, at most 1"),
        ({"sampling_rate": 1.1}, "--sampling_rate is 1.1: give a share above 0, at most 1"),
        ({"sampling_rate": 0.1}, "--sampling_rate is 0.1, but the exact accountant .*: take prv or rdp"),
        ({"accountant": "moments"}, "--accountant is moments: give exact, prv, rdp"),
    ],
)
def test_an_argument_out_of_its_range_is_named(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"epsilon": 1.0, "delta": 1e-5, "releases": 1, **changed}
    with pytest.raises(UsageError, match=message):
        noise_multiplier(**arguments)  # type: ignore[arg-type]


def test_noise_below_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="--noise_multiplier is -1: give a number of 0 or more"):
        epsilon_spent(-1, 1e-5, 1)
