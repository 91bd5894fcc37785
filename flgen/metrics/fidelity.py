"""Fidelity of generated images, computed from features: FID, KID, precision, recall, density, coverage.

FID and KID are torch-fidelity's own functions applied to features that are already extracted, so the numbers are
those of its `calculate_metrics(input1=generated, input2=real)`. Precision and recall follow Kynkäänniemi et al.
(2019), density and coverage Naeem et al. (2020).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from flgen.errors import FlgenError, UsageError

DISTANCES_AT_ONCE = 2**24  # float64 distances held at a time: 128 MiB
LARGEST_KERNEL_SUBSET = 1000


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features (FID).

    Args:
        real: Features of real images, (n, F), float32.
        fake: Features of generated images, (m, F), float32.

    Raises:
        UsageError: A set has fewer than two images.
        FlgenError: A feature is NaN or infinite.
    """
    _check(real, fake)
    mean_real, cov_real = _statistics(real)
    mean_fake, cov_fake = _statistics(fake)
    return _frechet(mean_fake, cov_fake, mean_real, cov_real)


def frechet_distance_of(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Return the Fréchet distance between N(mean1, cov1) and N(mean2, cov2).

    Args:
        mean1: Mean of the first Gaussian, (F,).
        cov1: Covariance of the first Gaussian, (F, F), possibly singular.
        mean2: Mean of the second Gaussian, (F,).
        cov2: Covariance of the second Gaussian, (F, F), possibly singular.
    """
    return _frechet(*(np.asarray(value, dtype=np.float64) for value in (mean1, cov1, mean2, cov2)))


def kernel_distance(real: Tensor, fake: Tensor, *, subsets: int = 100, seed: int = 0) -> float:
    """Return the kernel distance (KID): unbiased MMD^2 of the cubic kernel, averaged over random subsets.

    A subset has 1,000 images of each set, or as many as the smaller set has. The value can be slightly negative.

    Args:
        real: Features of real images, (n, F), float32.
        fake: Features of generated images, (m, F), float32.
        subsets: Number of random subsets.
        seed: Seed of the choice of subsets.

    Raises:
        UsageError: A set has fewer than two images.
        FlgenError: A feature is NaN or infinite.
    """
    _check(real, fake)
    metric = kid_features_to_metric(
        fake.cpu(),
        real.cpu(),
        kid_subsets=subsets,
        kid_subset_size=min(LARGEST_KERNEL_SUBSET, len(real), len(fake)),
        rng_seed=seed % 2**32,  # NumPy's legacy generator takes 32 bits
        verbose=False,
    )
    return metric[KEY_METRIC_KID_MEAN]


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Return precision, recall, density and coverage from balls that reach to the k-th nearest neighbour.

    precision: share of fakes inside the ball of some real; recall: share of reals inside the ball of some fake;
    density: balls of reals around a fake, on average, divided by k (can exceed 1); coverage: share of reals
    whose ball holds a fake.

    Distances are float64 and computed in blocks of rows: memory grows with n + m, not with n * m.

    Args:
        real: Features of real images, (n, F), float32.
        fake: Features of generated images, (m, F), float32, on the same device.
        k: Number of neighbours that a ball reaches to; smaller than n and m.

    Raises:
        UsageError: A set has fewer than two images, or k is below 1 or not smaller than both sets.
        FlgenError: A feature is NaN or infinite.
    """
    _check(real, fake)
    smaller = min(len(real), len(fake))
    if not 1 <= k < smaller:
        raise UsageError(
            f"--evaluation.neighbours {k} is not between 1 and {smaller - 1} for {smaller} images: "
            "change it or raise --evaluation.images"
        )
    real, fake = real.double(), fake.double()
    real_radius = _neighbour_radius(real, k)  # (n,)
    fake_radius = _neighbour_radius(fake, k)  # (m,)
    balls_around_fake = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    recalled, covered = 0, 0
    rows = _rows_at_once(len(fake))
    for block, radius in zip(real.split(rows), real_radius.split(rows), strict=True):
        distance = torch.cdist(block, fake)  # (rows, m)
        balls_around_fake += (distance < radius[:, None]).sum(dim=0)
        recalled += int((distance < fake_radius).any(dim=1).sum())
        covered += int((distance.amin(dim=1) < radius).sum())
    return {
        "precision": int((balls_around_fake > 0).sum()) / len(fake),
        "recall": recalled / len(real),
        "density": int(balls_around_fake.sum()) / (k * len(fake)),
        "coverage": covered / len(real),
    }


def fidelity(real_features: Tensor, fake_features: Tensor, *, k: int = 5, seed: int = 0) -> dict[str, float]:
    """Return `fid`, `kid`, `precision`, `recall`, `density` and `coverage` of generated images.

    Args:
        real_features: Features of real images, (n, F), float32.
        fake_features: Features of generated images, (m, F), float32, on the same device.
        k: Neighbours of precision, recall, density and coverage.
        seed: Seed of KID's random subsets.

    Raises:
        UsageError: A set has fewer than two images, or k is below 1 or not smaller than both sets.
        FlgenError: A feature is NaN or infinite.
    """
    prdc = precision_recall_density_coverage(real_features, fake_features, k)  # refuses a bad k before the slow part
    fid = frechet_distance(real_features, fake_features)
    kid = kernel_distance(real_features, fake_features, seed=seed)
    return {"fid": fid, "kid": kid, **prdc}


def fidelity_metrics(values: dict[str, float], extractor_name: str) -> dict[str, float]:
    """Return the values of `fidelity` under their logged names, such as `fid/digits` and `prdc/recall/digits`."""
    return {
        f"{key}/{extractor_name}" if key in ("fid", "kid") else f"prdc/{key}/{extractor_name}": value
        for key, value in values.items()
    }


def _statistics(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    statistics = fid_features_to_statistics(features.cpu())
    return statistics["mu"], np.atleast_2d(statistics["sigma"])


def _frechet(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    first, second = {"mu": mean1, "sigma": cov1}, {"mu": mean2, "sigma": cov2}
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]


def _neighbour_radius(points: Tensor, k: int) -> Tensor:
    """Return the distance of each point to its k-th nearest other point, (n,)."""
    radii = []
    rows = _rows_at_once(len(points))
    for start in range(0, len(points), rows):
        distance = torch.cdist(points[start : start + rows], points)
        own = torch.arange(len(distance), device=points.device)
        distance[own, start + own] = torch.inf
        radii.append(distance.topk(k, largest=False).values[:, -1])
    return torch.cat(radii)


def _rows_at_once(columns: int) -> int:
    return max(1, DISTANCES_AT_ONCE // columns)


def _check(real: Tensor, fake: Tensor) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features (n, F) and (m, F) expected, got {tuple(real.shape)} and {tuple(fake.shape)}")
    for kind, features in (("real", real), ("generated", fake)):
        if len(features) < 2:
            raise UsageError(
                f"fidelity needs at least 2 {kind} images and there are {len(features)}: raise --evaluation.images"
            )
        if not torch.isfinite(features).all():
            raise FlgenError(
                f"the features of the {kind} images hold NaN or infinity: check the extractor chosen by "
                "--evaluation.extractors and the images it was given"
            )
