"""How many weights of each layer a sparse model keeps (dispfl.md, section 1.4)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import cache
from typing import Literal

from flgen.errors import UsageError

log = logging.getLogger("flgen")

Shapes = Mapping[str, tuple[int, ...]]


def erk_densities(
    shapes: Shapes, density: float, power: float = 1.0, scope: Literal["all", "weights"] = "all"
) -> dict[str, float]:
    """Return the density of each tensor by the Erdos-Renyi-kernel rule: the smaller a layer, the denser.

    Args:
        shapes: Shape of every tensor, by name.
        density: Share of all elements to keep, delta.
        power: Exponent gamma of the rule.
        scope: Whether tensors of one dimension, which are never masked, count in the budget ("all") or not.

    Raises:
        UsageError: The density is out of its range.
    """
    return erk(shapes, density, power, scope)[0]


def erk(
    shapes: Shapes, density: float, power: float = 1.0, scope: Literal["all", "weights"] = "all"
) -> tuple[dict[str, float], float]:
    """Return the densities and the final factor eps, 0 if every tensor is dense; arguments as `erk_densities`."""
    _check(density)
    budget = {name: shape for name, shape in shapes.items() if scope == "all" or len(shape) > 1}
    n = {name: math.prod(shape) for name, shape in budget.items()}
    r = {name: (sum(shape) / n[name]) ** power if len(shape) > 1 else 1.0 for name, shape in budget.items()}
    dense: set[str] = set()
    eps = 0.0
    # kept stays above 0: a group becomes dense only if a share in proportion to r n is more than it has elements.
    while free := [name for name in budget if name not in dense]:
        kept = density * sum(n[name] for name in free) - (1 - density) * sum(n[name] for name in dense)
        eps = kept / sum(r[name] * n[name] for name in free)
        largest = max(r[name] for name in free)
        if density < 1 and eps * largest <= 1:
            break
        dense |= {name for name in free if r[name] == largest}
        eps = 0.0
    vectors = [name for name, shape in budget.items() if len(shape) < 2 and name not in dense]
    if vectors:
        _warn_of_vectors(len(vectors), vectors[0])
    masked = {name for name in budget if name not in dense and len(shapes[name]) > 1}
    return {name: eps * r[name] if name in masked else 1.0 for name in shapes}, eps


def uniform_densities(shapes: Shapes, density: float) -> dict[str, float]:
    """Return the same density for every tensor of two or more dimensions, and 1 for others."""
    _check(density)
    return {name: density if len(shape) > 1 else 1.0 for name, shape in shapes.items()}


def active_counts(shapes: Shapes, densities: Mapping[str, float]) -> dict[str, int]:
    """Return the number of active elements of each tensor, a_l = floor(d_l n_l), at least 1."""
    counts = {}
    for name, shape in shapes.items():
        n_l = math.prod(shape)
        # A product that should be whole may fall short of it by some ulps.
        counts[name] = n_l if densities[name] >= 1 else max(1, math.floor(densities[name] * n_l * (1 + 1e-12)))
    return counts


def _check(density: float) -> None:
    if not 0 < density <= 1:
        raise UsageError(f"--method.sparsity.density is {density}: give a share above 0, at most 1")


@cache
def _warn_of_vectors(count: int, first: str) -> None:
    """Say once, not for every rank and capacity, that a model keeps more than its density."""
    log.warning(
        "ERK would mask %d vectors (%s, ...); they stay dense, so the model keeps more than its density", count, first
    )
