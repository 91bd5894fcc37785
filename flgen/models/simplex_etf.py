"""A classifier that is never trained: the corners of a simplex as class vectors, and a margin around each of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-12
"""Least norm that a vector is divided by."""

NEAREST_TO_1 = 1 - 1e-7
"""Cosines are kept this far from +-1, where the slope of arccos is infinite."""


def simplex_etf(classes: int, generator: torch.Generator, dimension: int | None = None) -> Tensor:
    """Return the class vectors V, float64 (K, C), one in each column: unit vectors, each pair at the cosine -1/(C-1).

    V = sqrt(C / (C - 1)) U (I - 1 1^T / C), with U the orthogonal factor of a random matrix of entries U[0, 1).

    Args:
        classes: C, at least 2.
        generator: On the CPU, source of U.
        dimension: K, at least C; None is C.

    Raises:
        ValueError: K is less than C, or there is one class.

    Source: FedKTL, section 1.1.
    """
    K = classes if dimension is None else dimension
    if classes < 2 or classes > K:
        raise ValueError(f"{classes} class vectors in {K} dimensions: there must be 2 classes, and K at least as large")
    U = torch.linalg.qr(torch.rand(K, classes, generator=generator, dtype=torch.float64)).Q
    return etf_of(U)


def etf_of(U: Tensor) -> Tensor:
    """Return sqrt(C / (C - 1)) U (I - 1 1^T / C), (K, C).

    Args:
        U: Orthonormal columns (K, C).
    """
    C = U.shape[1]
    centred = torch.eye(C, dtype=U.dtype, device=U.device) - 1 / C
    return math.sqrt(C / (C - 1)) * (U @ centred)


def cosines(z: Tensor, V: Tensor) -> Tensor:
    """Return z^T v_c / |z| for every class, float32 or float64 (B, C), also under autocast.

    In 16 bits every cosine above 0.998 would be 1.

    Args:
        z: Projections (B, K).
        V: Class vectors (K, C).
    """
    with torch.autocast(z.device.type, enabled=False):
        wide = z if z.dtype == torch.float64 else z.float()
        return unit_length(wide) @ V.to(wide)


def unit_length(z: Tensor) -> Tensor:
    """Return z / |z| along the last dimension."""
    return F.normalize(z, dim=-1, eps=EPSILON)


def arcface_logits(cos: Tensor, y: Tensor, s: float, m: float, guarded: bool = True) -> Tensor:
    """Return s cos(theta_c), of the true class s cos(theta_y + m) (B, C).

    Beyond theta_y = pi - m the shifted cosine would rise again and make the worst samples easy. Guarded, it goes on
    falling there: s (cos theta_y - m sin m).

    Args:
        cos: Cosines (B, C).
        y: True classes int64 (B,).
        s: Scale.
        m: Margin, radians.
        guarded: Whether it goes on falling.

    Source: FedKTL, sections 1.2 and 8 (item 3).
    """
    cos = cos.clamp(-NEAREST_TO_1, NEAREST_TO_1)
    cos_y = cos.gather(1, y.unsqueeze(1))
    shifted = torch.cos(torch.arccos(cos_y) + m)
    if guarded:
        shifted = torch.where(cos_y > math.cos(math.pi - m), shifted, cos_y - m * math.sin(m))
    return s * cos.scatter(1, y.unsqueeze(1), shifted)
