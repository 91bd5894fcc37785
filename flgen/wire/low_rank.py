"""Low-rank messages: of a matrix X = U diag(sigma) V^T only the leading directions, where these say enough of it.

Many tensors become one vector of values and one rank each. Of a tensor of rank r > 0 the values are U_r, sigma_r and
V_r, r (rows + columns + 1) numbers; rank 0 says that the tensor is there as it is, because it has fewer numbers than
its factors, or no rows. A tensor of more than two dimensions counts as a matrix of its first by all others, hence a
convolution as (out, in * height * width).

Source: FedKD (fedktl.md, sections 5.5 and 8, defects 18 and 19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shapes = Sequence[Sequence[int]]


def energy_rank(sigma: Tensor, energy: float) -> int:
    """Return the smallest r >= 1 with sum_{j <= r} sigma_j^2 >= energy * sum_j sigma_j^2.

    Args:
        sigma: Singular values, descending (k,), k >= 1.
        energy: Share of the sum of squares to keep, at most 1.
    """
    cumulative = sigma.double().square().cumsum(dim=0)
    return 1 + int((cumulative < energy * cumulative[-1]).sum())


def compress(vector: Tensor, shapes: Shapes, energy: float) -> tuple[Tensor, Tensor]:
    """Return the values of a message, in the vector's dtype (m,), and a rank for each tensor, int32 (tensors,).

    Args:
        vector: The tensors' elements, one tensor after another (elements,).
        shapes: The shape of each.
        energy: Share of each matrix's sum of squares that its factors keep, at most 1.
    """
    values, ranks = [], []
    for part, shape in zip(vector.split([math.prod(shape) for shape in shapes]), shapes, strict=True):
        factors = _factors(part.view(_matrix(shape)), energy) if len(shape) > 1 else None
        ranks.append(0 if factors is None else len(factors[1]))
        values += [part] if factors is None else [factor.reshape(-1) for factor in factors]
    return torch.cat(values), torch.tensor(ranks, dtype=torch.int32, device=vector.device)


def decompress(values: Tensor, ranks: Tensor, shapes: Shapes) -> Tensor:
    """Return the tensors' elements, one tensor after another, as a message gives them (elements,).

    Args:
        values: As `compress` returned them (m,).
        ranks: A rank for each tensor, int32 (tensors,).
        shapes: The shape of each.
    """
    parts, chosen = [], [int(rank) for rank in ranks]
    sizes = [_numbers(rank, shape) for rank, shape in zip(chosen, shapes, strict=True)]
    for sent, r, shape in zip(values.split(sizes), chosen, shapes, strict=True):
        if r == 0:
            parts.append(sent)
            continue
        rows, columns = _matrix(shape)
        u, sigma, v = sent.split([rows * r, r, columns * r])
        parts.append((u.view(rows, r) * sigma @ v.view(columns, r).T).reshape(-1))
    return torch.cat(parts)


def count_numbers(ranks: Tensor, shapes: Shapes) -> int:
    """Return how many values a message has, from the ranks of its tensors."""
    return sum(_numbers(int(rank), shape) for rank, shape in zip(ranks, shapes, strict=True))


def _factors(X: Tensor, energy: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return U_r (rows, r), sigma_r (r,) and V_r (columns, r); None if X (rows, columns) has no more numbers itself."""
    rows, columns = X.shape
    # What is not finite goes as it is, for whoever checks the message to find it there.
    if rows + columns + 1 >= rows * columns or not bool(X.isfinite().all()):
        return None
    U, sigma, Vh = torch.linalg.svd(X, full_matrices=False)
    r = energy_rank(sigma, energy)
    if r * (rows + columns + 1) >= rows * columns:
        return None
    return U[:, :r], sigma[:r], Vh[:r].T


def _numbers(rank: int, shape: Sequence[int]) -> int:
    return math.prod(shape) if rank == 0 else rank * (sum(_matrix(shape)) + 1)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])
