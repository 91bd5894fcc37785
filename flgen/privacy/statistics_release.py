"""Releasing a client's feature statistics once, with noise (PRISM, mechanism A, section 6.2).

a(x) = phi / max(1, ||phi|| / C)  or  C phi / ||phi|| ;  b(x) = the same for phi^2 (elementwise)
m1 = mean a, m2 = mean b over the client's n_k records ;  release [m1; m2] + N(0, (z S)^2 I), one time

Replacing one record moves [m1; m2] by at most S = 2C / n_k, since two vectors of norm C without negative entries are at
most sqrt(2) C apart, and there are two of them. Whatever is done with the release afterwards costs nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flgen.errors import FlgenError, UsageError
from flgen.privacy.noise import NoiseSource

Bound = Literal["unit", "clip"]


@dataclass(frozen=True)
class StatisticsRelease:
    """How every record's share in a client's statistics is bounded, and the noise that hides it.

    Args:
        noise_multiplier: z, the noise's standard deviation over the sensitivity.
        source: Where the noise comes from.
        clip: C, bound of the norms of phi and of phi^2, each.
        bound: `unit` scales every vector to norm C, `clip` only longer ones; zero stays zero.
        per_layer: Whether each layer's vectors are bounded by themselves; norms then add in quadrature.
        min_records: Fewest records that a client may release statistics of.
        non_negative: Whether no feature is negative, as after a ReLU; the promise is checked.

    Raises:
        UsageError: The noise, the bound or the number of records is not positive.
    """

    noise_multiplier: float
    _: KW_ONLY
    source: NoiseSource
    clip: float = 1.0
    bound: Bound = "unit"
    per_layer: bool = False
    min_records: int = 100
    non_negative: bool = True

    def __post_init__(self) -> None:
        for option in ("noise_multiplier", "clip", "min_records"):
            if not 0 < getattr(self, option) < math.inf:
                raise UsageError(f"--method.privacy.{option} is {getattr(self, option)}: give a positive number")

    def bounded_sums(self, features: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the sums over a batch of a(x) and of b(x), (2, D), differentiable.

        Divided by their number they are the means of fakes; a client adds up all of its records. A batch of one gives
        a(x) and b(x) themselves.

        Args:
            features: phi of the batch, layer by layer, each (B, ...); flattened, they follow one another.
            dtype: Type of the sums and of all that is computed for them.
        """
        sums: Tensor = _BoundedSums.apply(self.clip, self.bound, self.per_layer, dtype, *features)
        return sums

    def sensitivity(self, records: int, layers: int = 1) -> float:
        """Return S, how far replacing one record can move [m1; m2], in L2.

        Args:
            records: n_k.
            layers: Number of layers that are bounded one by one; makes a difference with `per_layer` only.
        """
        furthest = 2 if self.non_negative else 4  # squared distance of two vectors of norm 1, at most
        bounded = layers if self.per_layer else 1
        return math.sqrt(2 * bounded * furthest) * self.clip / records

    def check_records(self, records: int, client: int) -> None:
        """Refuse a client that the noise would drown.

        Raises:
            UsageError: It has too few records.
        """
        check_records(records, client, self.min_records)

    def check_features(self, features: Sequence[Tensor]) -> None:
        """Refuse features for which the sensitivity would not hold.

        Raises:
            FlgenError: One is not finite, or negative where none may be.
        """
        least = 0.0 if self.non_negative else -math.inf
        for feature in features:
            low, high = (float(end) for end in torch.aminmax(feature))
            if not (least <= low and -math.inf < low and high < math.inf):  # NaN fails every comparison
                raise FlgenError(
                    f"the features of --model.loss lie in [{low:g}, {high:g}], and a private release needs finite ones"
                    f"{' that are not negative' if self.non_negative else ''}: check the network's weights"
                )

    def release(self, statistics: Tensor, records: int, client: int, layers: int = 1) -> Tensor:
        """Return [m1; m2] + N(0, (z S)^2 I), float32 on the device of the statistics.

        Args:
            statistics: [m1; m2], float64 (2, D).
            records: n_k.
            client: The client's id.
            layers: As for `sensitivity`.

        Raises:
            UsageError: There are too few records.
        """
        self.check_records(records, client)
        std = self.noise_multiplier * self.sensitivity(records, layers)
        return self.source.release(statistics, std, "feature statistics", client=client).float()


def check_records(records: int, client: int, least: int) -> None:
    """Refuse a client that the noise would drown.

    Args:
        records: n_k, public.
        client: Whose they are.
        least: Fewest records that a client may release statistics of.

    Raises:
        UsageError: It has too few records.
    """
    if records < least:
        raise UsageError(
            f"client {client} has {records} records, and with fewer than {least} the noise drowns its statistics: "
            "divide the images among fewer clients, or lower --method.privacy.min_records"
        )


class _BoundedSums(torch.autograd.Function):
    """Sums of bounded vectors; neither direction holds a copy of all features, bounded or squared."""

    @staticmethod
    def forward(ctx: Any, clip: float, bound: Bound, per_layer: bool, dtype: torch.dtype, *features: Tensor) -> Tensor:
        with torch.autocast(features[0].device.type, enabled=False):
            phis = [feature.flatten(1) for feature in features]
            norms = _by_record(
                [(phi.to(dtype).square().sum(1), phi.to(dtype).square().square_().sum(1)) for phi in phis], per_layer
            ).sqrt_()  # ||phi|| and ||phi^2||, (2, layers, B)
            # Zero stays zero, and pulls nowhere; within the bound a vector keeps its length.
            scales = torch.where(norms > 0, clip / norms, 0) if bound == "unit" else clip / norms.clamp_min(clip)
            sums = norms.new_empty(2, sum(phi.shape[1] for phi in phis))
            start = 0
            for layer, phi in enumerate(phis):
                place = slice(start, start := start + phi.shape[1])
                sums[0, place] = scales[0, layer] @ phi.to(dtype)
                sums[1, place] = scales[1, layer] @ phi.to(dtype).square()
        # The bound turns a vector's gradient only where it changes its length.
        turned = norms > (0 if bound == "unit" else clip)
        ctx.per_layer = per_layer
        ctx.save_for_backward(scales, torch.where(turned, scales / norms / norms, 0), *features)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # With u either phi or phi^2, s its scale and g the gradient of its sum:
        # dL/du = s (g - <u, g> u / ||u||^2) where the bound turns it, s g elsewhere; d(phi^2) = 2 phi d(phi)
        scales, turns, *features = ctx.saved_tensors
        dtype = scales.dtype
        phis = [feature.flatten(1) for feature in features]
        g, h = (row.split([phi.shape[1] for phi in phis]) for row in gradients[0].to(dtype))
        with torch.autocast(scales.device.type, enabled=False):
            products = _by_record(
                [
                    (phi.to(dtype) @ g[layer], phi.to(dtype).square() @ h[layer])  # <phi, g> and <phi^2, h>
                    for layer, phi in enumerate(phis)
                ],
                ctx.per_layer,
            )
            pulls = turns * products
            results = []
            for layer, (feature, phi) in enumerate(zip(features, phis, strict=True)):
                s, t = scales[:, layer, :, None]
                p, q = pulls[:, layer, :, None]
                exact = phi.to(dtype)
                # s g - p phi + 2 phi (t h - q phi^2) = s g + phi (2 t h - p - 2 q phi^2)
                factor = exact.square().mul_(-2 * q).addcmul_(2 * t, h[layer]).sub_(p)
                result = factor.mul_(exact).addcmul_(s, g[layer])
                results.append(result.view(feature.shape).to(feature.dtype))
        return None, None, None, None, *results


def _by_record(layers: list[tuple[Tensor, Tensor]], per_layer: bool) -> Tensor:
    """Return what each record's vectors have by layer, or in all layers together, (2, layers, B)."""
    parts = torch.stack([torch.stack(pair) for pair in layers], dim=1)
    return parts if per_layer else parts.sum(1, keepdim=True).expand_as(parts).contiguous()
