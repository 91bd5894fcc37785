"""What releases with Gaussian noise cost: epsilon from noise, and noise from epsilon (prism.md, section 6).

A release adds N(0, (z Delta)^2 I) to a vector that a neighbouring data set moves by at most Delta in L2; z is the noise
multiplier. T such releases, each of everybody, are exactly as private as one with z / sqrt(T): Gaussian differential
privacy with mu = sqrt(T) / z (Dong, Roth and Su, "Gaussian Differential Privacy", 2019), whose curve delta(epsilon) is
known in closed form (Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018). Poisson
sampling has no such form; opacus's PRV and RDP accountants bound it from above, for neighbours with and without one
record or client.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Literal, get_args

from flgen.deferred import deferred_module
from flgen.errors import UsageError

np = deferred_module("numpy")
optimize = deferred_module("scipy.optimize")
special = deferred_module("scipy.special")

Accountant = Literal["exact", "prv", "rdp"]
"""exact: Gaussian differential privacy, full participation only; prv, rdp: upper bounds, Poisson sampling too."""

PRV_ERROR = 0.01  # of epsilon, by the grid of the PRV accountant; it is added to the bound
PRV_REACH = 500.0  # e^loss is a double up to 709
PRV_POINTS = 2**23  # 64 MiB for each of several arrays
HALF = 0.005  # so near a sampling rate of 0.5, the series of the RDP accountant hardly converges
MARGIN = 1e-10  # a noise multiplier is rounded up by this share, far above the solver's error
STEP = math.log(1.5)  # of the search for an interval around a noise multiplier
STEPS = 100


class AccountantLimit(UsageError):
    """An accountant's numerical method does not reach a question that is otherwise a good one."""


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the least delta for which mu-Gaussian differential privacy is (epsilon, delta)-differential privacy.

    delta = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu) (Balle and Wang 2018, theorem 8).

    Args:
        mu: Sensitivity over standard deviation, above 0.
        epsilon: 0 or more.
    """
    return math.exp(_log_delta(mu, epsilon))


def _log_delta(mu: float, epsilon: float) -> float:
    """Return ln delta; e^epsilon is never computed, so that no epsilon is too large.

    With x = epsilon/mu - mu/2 and y = epsilon/mu + mu/2, e^epsilon phi(y) = phi(x), hence
    e^epsilon Phi(-y) = erfcx(y / sqrt 2) e^(-x^2/2) / 2, where erfcx(t) = e^(t^2) erfc(t) stays moderate.
    """
    x, y = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    log_first = float(special.log_ndtr(-x))
    tail = float(special.erfcx(y / math.sqrt(2)))
    if x >= 0:
        ratio = tail / float(special.erfcx(x / math.sqrt(2)))
    else:
        ratio = tail * math.exp(-x * x / 2) / (2 * math.exp(log_first))
    return log_first + math.log1p(-ratio) if ratio < 1 else -math.inf


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon for which mu-Gaussian differential privacy is (epsilon, delta)-differential privacy.

    Args:
        mu: Sensitivity over standard deviation, above 0.
        delta: Between 0 and 1.
    """
    log_delta = math.log(delta)
    if _log_delta(mu, 0.0) <= log_delta:
        return 0.0
    # Phi(-x) <= e^(-x^2/2) / 2 < delta at x = sqrt(2 ln(1/delta))
    most = mu * (mu / 2 + math.sqrt(-2 * log_delta))
    return float(optimize.brentq(lambda e: _log_delta(mu, e) - log_delta, 0.0, most, xtol=1e-14, rtol=1e-14))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose Gaussian differential privacy is (epsilon, delta)-differential privacy.

    Args:
        epsilon: Above 0.
        delta: Between 0 and 1.
    """
    log_delta = math.log(delta)
    least = most = 1.0
    while _log_delta(most, epsilon) < log_delta:
        most *= 2
    while _log_delta(least, epsilon) > log_delta:
        least /= 2
    if least == most:
        return least
    return float(optimize.brentq(lambda mu: _log_delta(mu, epsilon) - log_delta, least, most, xtol=1e-300, rtol=1e-14))


def epsilon_spent(
    noise_multiplier: float,
    delta: float,
    releases: int,
    sampling_rate: float = 1.0,
    accountant: Accountant = "exact",
    section: str = "",
) -> float:
    """Return the epsilon of some releases at a delta, infinite without noise.

    Args:
        noise_multiplier: z, standard deviation over sensitivity, 0 or more.
        delta: Between 0 and 1.
        releases: T, 1 or more.
        sampling_rate: q, the chance of each to take part in a release, by coins of their own that nobody else sees.
        accountant: Who counts.
        section: Where the options stand that errors name, such as "method.privacy"; nothing on the command line.

    Raises:
        UsageError: An argument is out of its range, or the accountant cannot count sampling.
        AccountantLimit: The PRV accountant's grid does not reach as far.
    """
    _check(section, noise_multiplier=noise_multiplier, delta=delta, releases=releases, sampling_rate=sampling_rate)
    _check_accountant(section, accountant, sampling_rate)
    if noise_multiplier == 0:
        return math.inf
    if accountant == "exact":
        return gaussian_epsilon(math.sqrt(releases) / noise_multiplier, delta)
    return _opacus_epsilon(noise_multiplier, delta, releases, sampling_rate, accountant, section)


@functools.lru_cache(maxsize=2**16)
def _opacus_epsilon(
    noise_multiplier: float, delta: float, releases: int, sampling_rate: float, accountant: Accountant, section: str
) -> float:
    """Return what an accountant of opacus counts; it takes seconds, and is asked several times in every round."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    near_half = abs(sampling_rate - 0.5) < HALF
    steps = [(noise_multiplier, 0.5 + HALF if near_half else sampling_rate, releases)]  # epsilon grows with the rate
    # Both accountants take logarithms of 0, and warn where a wider range of orders would give a smaller bound.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rdp = RDPAccountant()
        rdp.history = steps
        if accountant == "rdp":
            return max(0.0, float(rdp.get_epsilon(delta=delta)))
        prv = PRVAccountant()
        prv.history = steps
        _check_grid(section, reach=rdp.get_epsilon(delta=delta / 4000), delta=delta, releases=releases)
        return max(0.0, float(prv.get_epsilon(delta=delta, eps_error=PRV_ERROR, delta_error=delta / 1000)))


def noise_multiplier(
    epsilon: float,
    delta: float,
    releases: int,
    sampling_rate: float = 1.0,
    accountant: Accountant = "exact",
    section: str = "",
) -> float:
    """Return the smallest noise multiplier z that keeps some releases within a budget, rounded up.

    Args:
        epsilon: Above 0.
        delta: Between 0 and 1.
        releases: T, 1 or more.
        sampling_rate: q, the chance of each to take part in a release, by coins of their own that nobody else sees.
        accountant: Who counts.
        section: Where the options stand that errors name, such as "method.privacy"; nothing on the command line.

    Raises:
        UsageError: An argument is out of its range, or the accountant cannot count sampling.
        AccountantLimit: The accountant gives no epsilon that small, however large the noise, or none that large.
    """
    _check(section, epsilon=epsilon, delta=delta, releases=releases, sampling_rate=sampling_rate)
    _check_accountant(section, accountant, sampling_rate)
    exact = math.sqrt(releases) / gaussian_mu(epsilon, delta) * (1 + MARGIN)
    if accountant == "exact":
        return exact

    def excess(log_z: float, sampling_rate: float = sampling_rate) -> float:
        """Return ln(spent / epsilon), nearly linear in ln z."""
        spent = epsilon_spent(math.exp(log_z), delta, releases, sampling_rate, accountant, section)
        return math.log(max(spent / epsilon, 1e-3))

    enough = math.log(exact)  # for everybody, hence for a sample
    for _ in range(STEPS):
        if excess(enough, 1.0) <= 0:
            break
        enough += STEP
    else:
        least = epsilon * math.exp(excess(enough, 1.0))
        otherwise = ", or take exact" if sampling_rate == 1 else ""
        raise AccountantLimit(
            f"{_option(section, 'epsilon')} is {epsilon:g}, but the {accountant} accountant gives no epsilon below "
            f"{least:.3g} at {_option(section, 'delta')} {delta:g}, however large the noise: raise it{otherwise}"
        )
    too_little = enough - STEP
    while excess(too_little) <= 0:
        enough, too_little = too_little, too_little - STEP
    log_z = float(optimize.brentq(excess, too_little, enough, xtol=1e-6))
    margin = 1e-6
    while excess(log_z) > 0:
        log_z += margin
        margin *= 2
    return math.exp(log_z)


def affordable_releases(
    noise_multiplier: float,
    epsilon: float,
    delta: float,
    sampling_rate: float = 1.0,
    accountant: Accountant = "exact",
) -> int:
    """Return how many releases stay within a budget, 0 if not even one does.

    Args:
        noise_multiplier: z, standard deviation over sensitivity, 0 or more.
        epsilon: Above 0.
        delta: Between 0 and 1.
        sampling_rate: q, the chance of each to take part in a release, by coins of their own that nobody else sees.
        accountant: Who counts.

    Raises:
        UsageError: An argument is out of its range, or the accountant cannot count sampling.
        AccountantLimit: The PRV accountant's grid does not reach as far.
    """
    _check("", epsilon=epsilon)

    def fits(releases: int) -> bool:
        return epsilon_spent(noise_multiplier, delta, releases, sampling_rate, accountant) <= epsilon

    if not fits(1):
        return 0
    most = 1
    while fits(2 * most):
        most *= 2
    too_many = 2 * most
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    return most


def _option(section: str, name: str) -> str:
    return f"--{section}.{name}" if section else f"--{name}"


def _check(section: str, **arguments: float) -> None:
    """Refuse what is out of its range, by the name of its option; a release happens in every round."""
    for name, value in arguments.items():
        option = "rounds" if name == "releases" else name
        inside, wanted = {
            "epsilon": (0 < value < math.inf, "a number above 0"),
            "delta": (0 < value < 1, "a number between 0 and 1, below one over the number of records"),
            "releases": (value >= 1 and float(value).is_integer(), "a whole number from 1"),
            "sampling_rate": (0 < value <= 1, "a share above 0, at most 1"),
            "noise_multiplier": (0 <= value < math.inf, "a number of 0 or more"),
        }[name]
        if not inside:
            raise UsageError(f"{_option(section, option)} is {value}: give {wanted}")


def _check_accountant(section: str, accountant: Accountant, sampling_rate: float) -> None:
    if accountant not in get_args(Accountant):
        raise UsageError(f"{_option(section, 'accountant')} is {accountant}: give {', '.join(get_args(Accountant))}")
    if accountant == "exact" and sampling_rate < 1:
        raise UsageError(
            f"{_option(section, 'sampling_rate')} is {sampling_rate:g}, but the exact accountant counts full "
            "participation only: take prv or rdp"
        )


def _check_grid(section: str, reach: float, delta: float, releases: int) -> None:
    """Refuse a grid of privacy losses up to about `reach` that would overflow, or fill the memory."""
    points = 2 * (reach + 3) * math.sqrt(releases * math.log(12000 / delta) / 2) / PRV_ERROR
    if not (reach <= PRV_REACH and points <= PRV_POINTS):
        chosen = f"{_option(section, 'accountant')}: " if section else ""  # otherwise all of them are asked
        raise AccountantLimit(
            f"{chosen}the prv accountant cannot follow {releases} releases at this noise (its grid would reach an "
            f"epsilon of {reach:.3g} in {points:.2g} points): take rdp, or exact for full participation"
        )
