"""Moving the connections of one layer: prune by magnitude, regrow by gradient or at random (dispfl.md, section 5).

Masks, weights and gradients are flat; every function returns a new mask, and a pair of prune and regrow with the same q
keeps the number of active positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element."""


def prune_rate(t: int, rounds: int, anneal_factor: float) -> float:
    """Return alpha_t = (alpha_0 / 2) (1 + cos(pi t / T)).

    Args:
        t: Round, counted from 0.
        rounds: Number of rounds T.
        anneal_factor: alpha_0.
    """
    return anneal_factor / 2 * (1 + math.cos(math.pi * t / rounds))


def positions_moved(rate: float, active: int) -> int:
    """Return q = ceil(alpha_t a_l), not more than a_l."""
    # A product that should be whole may exceed it by some ulps.
    return min(active, math.ceil(rate * active * (1 - 1e-12)))


def random_mask(size: int, active: int, generator: torch.Generator) -> Tensor:
    """Return a mask with exactly `active` ones at random, bool (size,), on the generator's device."""
    mask = torch.zeros(size, dtype=torch.bool, device=generator.device)
    mask[torch.randperm(size, generator=generator, device=generator.device)[:active]] = True
    return mask


def prune_smallest(mask: Tensor, weights: Tensor, q: int) -> Tensor:
    """Clear the q active positions of smallest |w|; of equals, the lower index goes first.

    Args:
        mask: bool (n,).
        weights: (n,).
        q: Number of positions, at most the active ones.
    """
    active = mask.nonzero().view(-1)
    order = _magnitudes(weights.index_select(0, active)).sort(stable=True).indices
    return mask.index_fill(0, active.index_select(0, order[:q]), False)


def regrow_largest(mask: Tensor, gradient: Tensor, q: int) -> Tensor:
    """Set the q zeros of a mask at which |gradient| is largest; of equals, the lower index comes first."""
    zeros = mask.logical_not().nonzero().view(-1)
    return mask.index_fill(0, zeros.index_select(0, _largest(gradient.index_select(0, zeros), q)), True)


def regrow_random(mask: Tensor, q: int, generator: torch.Generator) -> Tensor:
    """Set q zeros of a mask at random."""
    zeros = mask.logical_not().nonzero().view(-1)
    chosen = torch.randperm(len(zeros), generator=generator, device=generator.device)[:q]
    return mask.index_fill(0, zeros.index_select(0, chosen.to(zeros.device)), True)


def my2_mask(
    mask: Tensor, weights: Tensor, average: Tensor, q: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return My-2's next mask and the positions kappa that it keeps, bool (n,) both (section 6.2).

    Args:
        mask: The client's mask m_k (n,).
        weights: Its own weights of the round before (n,).
        average: The neighbourhood's plain mean a (n,).
        q: Number of positions to exchange.
        generator: Draws R.
    """
    kappa = prune_smallest(mask, weights, q)
    new = kappa.index_fill(0, _largest(average, q), True)
    missing = int(mask.sum()) - int(new.sum())
    return regrow_random(new, missing, generator), kappa


def _largest(values: Tensor, q: int) -> Tensor:
    return (~_magnitudes(values)).sort(stable=True).indices[:q]


def _magnitudes(values: Tensor) -> Tensor:
    """Return integers in the order of |values|: sorted upwards they take a fifth of the time of floats."""
    # Without a sign, floats are in the order of their bits.
    return values.abs().view(_INTEGERS[values.element_size()])
