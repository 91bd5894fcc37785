"""What a mask of random bits gives by itself (prism.md, section 6.4).

A client sends m ~ Bernoulli(theta) with theta in [c, 1 - c]. One bit says little about its theta, but a neighbouring
data set may move every theta from one end of the interval to the other, and there are d T bits.
"""

from __future__ import annotations

import math

from flgen.deferred import deferred_module
from flgen.errors import UsageError

np = deferred_module("numpy")
optimize = deferred_module("scipy.optimize")


def bit_epsilon(clamp: float) -> float:
    """Return the pure epsilon of one bit, ln((1 - c) / c); d T bits have d T times as much.

    Args:
        clamp: c, the least probability of either value, above 0 and below 0.5.

    Raises:
        UsageError: It is not.
    """
    if not 0 < clamp < 0.5:
        raise UsageError(f"--mask_clamp is {clamp:g}: give a number above 0 and below 0.5")
    return math.log1p(-clamp) - math.log(clamp)


def renyi_divergence(p: float, q: float, order: float) -> float:
    """Return the Renyi divergence of Bernoulli(p) from Bernoulli(q).

    D_alpha(p || q) = ln(p^alpha q^(1-alpha) + (1-p)^alpha (1-q)^(1-alpha)) / (alpha - 1).

    Args:
        p: Between 0 and 1.
        q: Between 0 and 1.
        order: alpha, above 1.
    """
    ones = order * math.log(p) + (1 - order) * math.log(q)
    zeros = order * math.log1p(-p) + (1 - order) * math.log1p(-q)
    return float(np.logaddexp(ones, zeros)) / (order - 1)


def renyi_growth(clamp: float, order: float) -> float:
    """Return G_alpha(c) = sup D_alpha(p || q) / (p - q)^2 over p and q in [c, 1 - c].

    Probabilities that move by at most Delta in L2 spend at most G_alpha Delta^2 of Renyi privacy per round. The
    supremum lies at q = c; as p nears c it tends to alpha / (2 c (1 - c)), and from alpha > 2 on it is further away.

    Args:
        clamp: c, the least probability of either value, above 0 and below 0.5.
        order: alpha, above 1.
    """

    def growth(log_gap: float) -> float:
        gap = math.exp(log_gap)
        return renyi_divergence(clamp + gap, clamp, order) / gap**2

    log_gaps = np.log(np.geomspace(1e-4, 1, 200) * (1 - 2 * clamp))
    best = int(np.argmax([growth(log_gap) for log_gap in log_gaps]))
    around = log_gaps[max(best - 1, 0)], log_gaps[min(best + 1, len(log_gaps) - 1)]
    found = optimize.minimize_scalar(lambda log_gap: -growth(log_gap), bounds=around, method="bounded")
    return max(-float(found.fun), growth(log_gaps[best]), order / (2 * clamp * (1 - clamp)))
