"""An audit: what a membership test on a canary proves about the privacy of a mechanism, whatever is claimed of it.

A mechanism runs many times on data with a canary, a record made to be noticed, and on the same data without it; each
run gives one score. If it is (epsilon, delta)-differentially private, every event S has P(S | with) <= e^epsilon
P(S | without) + delta, and the same with the two exchanged. Counts of an event bound both probabilities, hence epsilon
from below (Jagielski, Ullman and Oprea, "Auditing Differentially Private Machine Learning", 2020, section 3). Errors in
the code that lose the noise, or most of it, are found so; that none is found proves nothing.
"""

from __future__ import annotations

import math

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

np = deferred_module("numpy")
special = deferred_module("scipy.special")

if TYPE_CHECKING:
    from numpy import ndarray

FEWEST = 8


def epsilon_lower_bound(with_canary: ndarray, without: ndarray, delta: float, confidence: float = 0.95) -> float:
    """Return an epsilon that the mechanism exceeds or reaches, with a confidence; 0 if the scores prove nothing.

    The first half of the scores chooses an event, a side of a threshold, and the hypothesis under which it is the
    likelier one; the second half counts: epsilon >= ln((TPR_low - delta) / FPR_high), both limits after Clopper and
    Pearson, each wrong with half of what the confidence leaves.

    Args:
        with_canary: Scores of independent runs with the canary, float (runs,).
        without: Scores of independent runs without it, float (runs,).
        delta: Of the claim, 0 or more and below 1.
        confidence: Chance that the bound holds, between 0 and 1.

    Raises:
        UsageError: There are too few scores, one is not a number, or an argument is out of its range.
    """
    present, absent = (_checked(scores) for scores in (with_canary, without))
    if not 0 <= delta < 1:
        raise UsageError(f"delta is {delta}: give a number from 0, below 1")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}: give a share between 0 and 1")
    half_present, half_absent = len(present) // 2, len(absent) // 2
    thresholds = np.unique(np.concatenate([present[:half_present], absent[:half_absent]]))

    best, chosen = -math.inf, None
    for above in (True, False):
        for swapped in (False, True):
            bounds = _bounds(
                present[:half_present], absent[:half_absent], thresholds, above, swapped, delta, confidence
            )
            place = int(np.argmax(bounds))
            if bounds[place] > best:
                best, chosen = float(bounds[place]), (thresholds[place : place + 1], above, swapped)
    if chosen is None:
        return 0.0
    bound = _bounds(present[half_present:], absent[half_absent:], *chosen, delta, confidence)
    return max(0.0, float(bound[0]))


def _checked(scores: ndarray) -> ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or len(scores) < FEWEST:
        raise UsageError(f"an audit has scores of shape {scores.shape}: give {FEWEST} or more in one row for each case")
    if not np.isfinite(scores).all():
        raise UsageError("an audit has a score that is not a finite number: look for the run that it came from")
    return scores


def _bounds(
    present: ndarray,
    absent: ndarray,
    thresholds: ndarray,
    above: bool,
    swapped: bool,
    delta: float,
    confidence: float,
) -> ndarray:
    """Return the lower bound on epsilon of each threshold's event, -inf where it has none; float64 (thresholds,)."""
    likelier, rarer = (absent, present) if swapped else (present, absent)
    hits, false_alarms = (_counts(scores, thresholds, above) for scores in (likelier, rarer))
    error = (1 - confidence) / 2
    low = np.where(hits == 0, 0.0, special.betaincinv(np.maximum(hits, 1), len(likelier) - hits + 1, error))
    high = np.where(
        false_alarms == len(rarer),
        1.0,
        special.betaincinv(false_alarms + 1, np.maximum(len(rarer) - false_alarms, 1), 1 - error),
    )
    return np.log(np.maximum(low - delta, 0.0) / high, where=low > delta, out=np.full(len(thresholds), -math.inf))


def _counts(scores: ndarray, thresholds: ndarray, above: bool) -> ndarray:
    """Return how many scores are at least a threshold, or at most it, for each threshold; int64 (thresholds,)."""
    ordered = np.sort(scores)
    if above:
        return len(ordered) - np.searchsorted(ordered, thresholds, side="left")
    return np.searchsorted(ordered, thresholds, side="right")
