"""The server's step of PRISM: from counts to probabilities, and the mask-aware dynamic moving average (section 5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flgen.metrics import drift

Space = Literal["score", "theta"]
Distance = Literal["expected_hamming", "sampled_hamming", "cosine"]


def mask_distance(p: Tensor, q: Tensor, kind: Distance, times: Tensor | None, draws: torch.Generator) -> float:
    """Return lambda_t between models with probabilities p and q: how far apart masks of theirs are (section 5.4).

    Args:
        p: Probabilities of one, float64 (d,).
        q: Probabilities of the other, float64 (d,).
        kind: The expected Hamming distance, or that of two sampled masks, or 1 - their cosine.
        times: How often each weight counts (d,); None: once.
        draws: Draws the masks; on the device of p.
    """
    if kind == "expected_hamming":
        return drift.expected_hamming(p, q, times)
    m_old, m_new = torch.bernoulli(p, generator=draws), torch.bernoulli(q, generator=draws)
    distance = drift.cosine_distance if kind == "cosine" else drift.sampled_hamming
    return distance(m_old, m_new, times)


def aggregate_masks(counts: Tensor, K: int, eps_m: float) -> Tensor:
    """Return theta_agg = eps_m + (1 - 2 eps_m) c / K, float64 (d,) (section 5.2).

    Args:
        counts: Integer number of ones c of each weight (d,).
        K: Number of masks.
        eps_m: Clamp.
    """
    return eps_m + (1 - 2 * eps_m) * counts.double() / K


def moving_average(s_t: Tensor, s_agg: Tensor, lambda_t: float, space: Space, eps_m: float) -> Tensor:
    """Return s_{t+1}, float64 (d,): lambda_t times the new aggregate plus (1 - lambda_t) times the old model (5.4).

    Args:
        s_t: Old scores (d,), float64.
        s_agg: Scores of the new aggregate (d,), float64.
        lambda_t: Distance of their masks, in [0, 1].
        space: What is averaged: scores, or probabilities kept in [eps_m, 1 - eps_m].
        eps_m: Clamp.
    """
    if space == "score":
        return lambda_t * s_agg + (1 - lambda_t) * s_t
    theta = lambda_t * torch.sigmoid(s_agg) + (1 - lambda_t) * torch.sigmoid(s_t)
    return torch.logit(theta.clamp(eps_m, 1 - eps_m))
