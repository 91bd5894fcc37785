"""Gradient diversity: how far apart the directions lie in which the clients of a round would go.

    GD = sum_k ||Delta_k||^2 / ||sum_k Delta_k||^2

Yin et al., "Gradient Diversity: a Key Ingredient for Scalable Distributed Learning", AISTATS 2018, with the clients'
updates Delta_k in place of gradients (gptfl.md, section 7.2). All of it follows from sums over clients, in float64.
"""

from __future__ import annotations

import math


def gradient_diversity(sum_of_squares: float, square_of_sum: float) -> float:
    """Return GD: 1/|S| if all updates are equal, 1 if they are orthogonal, infinite if they cancel.

    Args:
        sum_of_squares: sum_k ||Delta_k||^2, above 0.
        square_of_sum: ||sum_k Delta_k||^2.
    """
    return sum_of_squares / square_of_sum if square_of_sum > 0 else math.inf


def mean_pairwise_cosine(square_of_unit_sum: float, clients: int) -> float:
    """Return the mean over pairs of clients of the cosine between their updates.

    Of unit vectors, ||sum_k u_k||^2 = m + 2 sum_{j<k} cos(u_j, u_k).

    Args:
        square_of_unit_sum: ||sum_k Delta_k / ||Delta_k||||^2.
        clients: Number of vectors m in the sum, 2 or more.
    """
    return (square_of_unit_sum - clients) / (clients * (clients - 1))


def diversity_metrics(
    sum_of_squares: float, square_of_sum: float, square_of_unit_sum: float, *, clients: int, moved: int
) -> dict[str, float]:
    """Return the metrics of a round, those left out that its updates do not define.

    Args:
        sum_of_squares: sum_k ||Delta_k||^2.
        square_of_sum: ||sum_k Delta_k||^2.
        square_of_unit_sum: The same of the updates' directions; those without a direction add nothing.
        clients: Number of updates |S|.
        moved: Number of those that are not zero.

    Returns:
        `diversity/gradient` GD and `diversity/times_cohort` |S| GD, if anybody moved; `diversity/cosine`, if two did.
    """
    metrics: dict[str, float] = {}
    if moved:
        diversity = gradient_diversity(sum_of_squares, square_of_sum)
        metrics = {"diversity/gradient": diversity, "diversity/times_cohort": clients * diversity}
    if moved > 1:
        metrics["diversity/cosine"] = mean_pairwise_cosine(square_of_unit_sum, moved)
    return metrics
