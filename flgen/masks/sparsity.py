"""How sparse a model is, and where: the options that sparse methods share, and what they mean for a given module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from flgen.errors import UsageError
from flgen.masks.densities import active_counts, erk_densities, uniform_densities


@dataclass(frozen=True)
class Sparsity:
    """Which weights are masked, how many of each layer are kept, and how fast they are exchanged for others.

    Args:
        density: Share of the weights that a client keeps, delta.
        capacities: Densities of several kinds of clients: client k takes number k modulo their count; null gives
            every client `density`.
        distribution: How the density is spread over layers: "erk" keeps small layers denser, "uniform" does not.
        erk_power: Exponent gamma of ERK.
        erk_scope: Whether vectors (biases, norms), which are never masked, count in ERK's budget ("all") or not
            ("weights").
        masked: Shell patterns of the names of the parameters to mask, such as "layer3.*"; null masks all that have
            two or more dimensions. Others stay dense and outside the density.
        initial_masks: Whether every client draws a first mask of its own, or all have the same.
        anneal_factor: Prune rate of the first round, alpha_0.
        anneal_rounds: Rounds T over which the prune rate falls to 0; null takes the run's.
        gradient_mask: "before_clip" masks the gradient, then clips; "after_step" clips the dense gradient and masks
            the weights after the step, as the authors' code does.

    Raises:
        UsageError: A number is out of its range.
    """

    density: float = 0.5
    capacities: list[float] | None = None
    distribution: Literal["erk", "uniform"] = "erk"
    erk_power: float = 1.0
    erk_scope: Literal["all", "weights"] = "all"
    masked: list[str] | None = None
    initial_masks: Literal["independent", "shared"] = "independent"
    anneal_factor: float = 0.5
    anneal_rounds: int | None = None
    gradient_mask: Literal["before_clip", "after_step"] = "before_clip"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise UsageError(f"--method.sparsity.density is {self.density}: give a share above 0, at most 1")
        if self.capacities is not None and not (self.capacities and all(0 < delta <= 1 for delta in self.capacities)):
            raise UsageError(f"--method.sparsity.capacities is {self.capacities}: give shares above 0, at most 1")
        if not 0 <= self.erk_power <= 10:
            raise UsageError(f"--method.sparsity.erk_power is {self.erk_power}: give a number from 0 to 10")
        if self.masked == []:
            raise UsageError("--method.sparsity.masked is []: give patterns of names, or null for all")
        if not 0 <= self.anneal_factor <= 1:
            raise UsageError(f"--method.sparsity.anneal_factor is {self.anneal_factor}: give a share from 0 to 1")
        if self.anneal_rounds is not None and self.anneal_rounds < 1:
            raise UsageError(f"--method.sparsity.anneal_rounds is {self.anneal_rounds}: give 1 or more, or null")

    def active(self, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, int]]:
        """Return the number of active elements a_l of each parameter, for each capacity (dispfl.md, section 1.4).

        Args:
            shapes: Shape of every trainable parameter, by name.

        Raises:
            UsageError: There is nothing to mask, or a pattern names nothing.
        """
        chosen = self._maskable(shapes)
        deltas = self.capacities or [self.density]
        return [active_counts(chosen, self._densities(chosen, delta)) for delta in deltas]

    def _densities(self, shapes: Mapping[str, tuple[int, ...]], delta: float) -> dict[str, float]:
        if self.distribution == "uniform":
            return uniform_densities(shapes, delta)
        return erk_densities(shapes, delta, self.erk_power, self.erk_scope)

    def _maskable(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return the parameters that the patterns name, and all vectors."""
        wide = [name for name, shape in shapes.items() if len(shape) > 1]
        if not wide:
            raise UsageError("--model has no parameter of two or more dimensions: there is nothing to mask")
        patterns = ["*"] if self.masked is None else self.masked
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in wide):
                raise UsageError(
                    f"--method.sparsity.masked has {pattern!r}, which names no parameter of two or more dimensions; "
                    f"there are {', '.join(wide)}"
                )
        named = {name for name in wide if any(fnmatchcase(name, pattern) for pattern in patterns)}
        return {name: shape for name, shape in shapes.items() if len(shape) < 2 or name in named}
