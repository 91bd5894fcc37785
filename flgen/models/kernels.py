"""Maximum mean discrepancy with a mixture of Gaussian kernels (Gretton et al., JMLR 13, 2012)."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared Euclidean distances (n, m) of the rows of `a` (n, D) and `b` (m, D)."""
    inner = a @ b.T
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * inner).clamp_min(0)


def median_distance(points: Tensor) -> Tensor:
    """Return the median distance (0-d) between different rows of `points` (n, D), n at least 2."""
    return torch.pdist(points).median()


def gaussian_mixture(distances: Tensor, bandwidths: Tensor) -> Tensor:
    """Return the mean over bandwidths (k,) of exp(-d^2 / (2 bandwidth^2)), for squared distances (n, m)."""
    scales = -0.5 / bandwidths.square()
    kernel = torch.zeros_like(distances)
    for scale in scales:
        kernel = kernel + torch.exp(distances * scale)
    return kernel / len(bandwidths)


def squared_mmd(fake: Tensor, real: Tensor, bandwidths: Tensor, unbiased: bool = True) -> Tensor:
    """Estimate the squared maximum mean discrepancy of two samples.

    Args:
        fake: Sample (n, D), n at least 2 if unbiased; gradients flow through it.
        real: Sample (m, D); with m = 1 its own pair term, which no gradient needs, counts as its diagonal, 1.
        bandwidths: Standard deviations of the kernels (k,), in the unit of the rows.
        unbiased: Leave out the pairs of a row with itself; the estimate can then be negative.

    Returns:
        A scalar.
    """
    with torch.autocast(fake.device.type, enabled=False):  # distances by products of half precision would be noise
        fake, real = fake.float(), real.float()
        within_fake = _mean_pair(gaussian_mixture(squared_distances(fake, fake), bandwidths), unbiased)
        within_real = _mean_pair(
            gaussian_mixture(squared_distances(real, real), bandwidths), unbiased and len(real) > 1
        )
        across = gaussian_mixture(squared_distances(fake, real), bandwidths).mean()
        return within_fake + within_real - 2 * across


def _mean_pair(kernel: Tensor, unbiased: bool) -> Tensor:
    if not unbiased:
        return kernel.mean()
    count = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))
