"""What random bits give by themselves: section 6.4 and check 10 of PRISM's specification."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flgen.errors import UsageError
from flgen.privacy.random_bits import bit_epsilon, renyi_divergence, renyi_growth


@pytest.mark.parametrize(("clamp", "epsilon"), [(0.1, 2.197225), (0.01, 4.595120)])
def test_pure_epsilon_of_one_bit(clamp: float, epsilon: float) -> None:
    assert bit_epsilon(clamp) == pytest.approx(epsilon, abs=5e-7)
    assert bit_epsilon(clamp) == pytest.approx(renyi_divergence(1 - clamp, clamp, order=5000), rel=1e-4)  # its limit


def test_all_bits_of_a_run_give_nothing() -> None:
    assert bit_epsilon(0.1) * 3_544_768 * 500 == pytest.approx(3.9e9, rel=0.01)


@pytest.mark.parametrize(("order", "divergence"), [(2, 0.0392207), (4, 0.0721336)])
def test_renyi_divergence_of_two_coins(order: float, divergence: float) -> None:
    assert renyi_divergence(0.6, 0.5, order) == pytest.approx(divergence, abs=5e-8)
    assert renyi_divergence(0.4, 0.5, order) == pytest.approx(divergence, abs=5e-8)
    assert renyi_divergence(0.5, 0.5, order) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    ("clamp", "order", "growth", "digits"),
    [(0.1, 2, 11.11, 2), (0.1, 3, 18.4, 1), (0.1, 4, 27.0, 1), (0.1, 8, 66.3, 1), (0.01, 2, 101, 0), (0.01, 4, 466, 0)],
)
def test_renyi_growth(clamp: float, order: float, growth: float, digits: int) -> None:
    assert round(renyi_growth(clamp, order), digits) == growth


@pytest.mark.parametrize("clamp", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("order", [1.5, 2, 3, 8, 64])
def test_no_pair_of_probabilities_grows_faster(clamp: float, order: float) -> None:
    growth, coins = renyi_growth(clamp, order), clamp + (1 - 2 * clamp) * np.append(0, np.geomspace(1e-3, 1, 59))
    pairs = [renyi_divergence(p, q, order) / (p - q) ** 2 for p in coins for q in coins if p != q]
    assert 0.9 * growth < max(pairs) <= growth * (1 + 1e-9)


def test_the_shift_that_a_budget_allows_is_less_than_that_of_one_weight_in_ten() -> None:
    # (9.8, 1e-5) over 500 rounds: 500 G_alpha Delta^2 is what the conversion from Renyi's alpha leaves of epsilon.
    def allowed(order: float) -> float:
        cost = math.log((order - 1) / order) - (math.log(1e-5) + math.log(order)) / (order - 1)
        return math.sqrt(max(0.0, 9.8 - cost) / (500 * renyi_growth(0.1, order)))

    delta = max(allowed(order) for order in np.linspace(1.5, 8, 40))
    assert delta == pytest.approx(0.023, abs=1e-3)
    assert delta < 0.05 < math.sqrt(3_544_768) * 0.05  # 0.05 per weight is Delta = 94


@pytest.mark.parametrize("clamp", [0, 0.5, -0.1, math.nan])
def test_a_clamp_out_of_its_range_is_named(clamp: float) -> None:
    with pytest.raises(UsageError, match=r"--mask_clamp is .*: give a number above 0 and below 0.5"):
        bit_epsilon(clamp)
