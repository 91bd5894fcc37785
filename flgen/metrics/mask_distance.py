"""How far the masks of many clients lie apart, and whether clients of like labels have like masks (dispfl.md, 10.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK_BYTES = 32 * 2**20  # of one chunk in float32


def hamming_distances(masks: Tensor) -> Tensor:
    """Return D_ij, the number of positions in which masks i and j differ, exact for any length.

    |a xor b| = |a| + |b| - 2 |a and b|, so that one matrix product per chunk does for all pairs.

    Args:
        masks: bool (K, P).

    Returns:
        int64 (K, K).
    """
    clients, positions = masks.shape
    # The sums of a chunk are integers that float32 holds exactly, as long as it is no longer than 2^24.
    chunk = max(1, min(2**24, _CHUNK_BYTES // (4 * max(clients, 1))))
    both = torch.zeros(clients, clients, dtype=torch.int64, device=masks.device)
    for start in range(0, positions, chunk):
        part = masks[:, start : start + chunk].float()
        both += (part @ part.T).long()
    ones = both.diagonal()
    return ones[:, None] + ones[None, :] - 2 * both


def independent_distances(active: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the mean of D_ij over masks drawn independently of each other.

    In layer l, with p = a_l(i) / n_l and q = a_l(j) / n_l, that is n_l (p (1 - q) + q (1 - p)). The diagonal is that of
    two independent masks of client i's own densities.

    Args:
        active: Number of ones a_l of each client and layer, int (K, L).
        sizes: Number of positions n_l of each layer, (L,).

    Returns:
        float64 (K, K).
    """
    a, n = active.double(), torch.tensor(sizes, dtype=torch.float64, device=active.device)
    ones = a.sum(1)
    return ones[:, None] + ones[None, :] - 2 * (a / n) @ a.T


def expected_hamming(active: Sequence[int], sizes: Sequence[int]) -> float:
    """Return the mean number of positions in which two independent masks differ, sum_l 2 a_l (1 - a_l / n_l).

    Args:
        active: Number of ones a_l of each layer.
        sizes: Number of positions n_l of each layer.
    """
    return sum(2 * a * (1 - a / n) for a, n in zip(active, sizes, strict=True))


def aligned_similarity(distances: Tensor) -> Tensor:
    """Return the published map: in each row 1 for the nearest other client, 0 for the farthest, linear between.

    S_ij = 1 - (D_ij - min D_i) / (max D_i - min D_i), where least and most leave out the diagonal; S_ii = 1. A row
    whose distances are all the same is 1 throughout. The result is not symmetric.

    Args:
        distances: D, any type (K, K).

    Returns:
        float64 (K, K).
    """
    D = distances.double()
    itself = torch.eye(len(D), dtype=torch.bool, device=D.device)
    least = D.masked_fill(itself, math.inf).amin(1, keepdim=True)
    span = D.masked_fill(itself, -math.inf).amax(1, keepdim=True) - least
    scaled = 1 - (D - least) / span
    return scaled.masked_fill(itself | (span <= 0), 1.0)


def label_cosine(counts: Tensor) -> Tensor:
    """Return C_ij, the cosine between the label counts of clients i and j.

    A client without samples has no direction: its cosine is 1 with another such client and 0 with all others.

    Args:
        counts: Number of samples of each client and class, (K, C).

    Returns:
        float64 (K, K).
    """
    h = counts.double()
    norms = h.norm(dim=1)
    empty = norms == 0
    cosine = (h @ h.T) / (norms[:, None] * norms[None, :])
    cosine = cosine.masked_fill(empty[:, None] | empty[None, :], 0.0).clamp(max=1.0)
    return cosine.masked_fill(empty[:, None] & empty[None, :], 1.0)


def spearman(similarity: Tensor, distances: Tensor) -> float:
    """Return Spearman's rank correlation between C_ij and -D_ij over the pairs i < j.

    It is not a number where it does not exist: with fewer than three clients, or if either is the same for all pairs.

    Args:
        similarity: C, (K, K).
        distances: D, (K, K).
    """
    from scipy.stats import spearmanr

    i, j = torch.triu_indices(len(distances), len(distances), offset=1)
    # Cosines that differ by rounding alone are ties, not ranks.
    alike, near = similarity[i, j].double().round(decimals=12), -distances[i, j].double()
    if len(alike) < 2 or bool((alike == alike[0]).all()) or bool((near == near[0]).all()):
        return math.nan
    return float(spearmanr(alike.cpu().numpy(), near.cpu().numpy()).statistic)
