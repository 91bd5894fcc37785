"""Mechanism A: the worked example of the specification, the sensitivity, the gradient of fakes, and the noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import kstest
from torch import Tensor

from flgen.errors import FlgenError, UsageError
from flgen.privacy.noise import NoiseSource
from flgen.privacy.statistics_release import StatisticsRelease

PHI = torch.tensor([[3.0, 4, 0], [0, 0, 5], [1, 2, 2], [6, 0, 8]])
VARIANTS = [{"bound": bound, "per_layer": per_layer} for bound in ("unit", "clip") for per_layer in (False, True)]
BY_VARIANT = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))


def of(noise_multiplier: float = 1.0, **options: Any) -> StatisticsRelease:
    return StatisticsRelease(
        noise_multiplier, **{"source": NoiseSource(b"secret of a test"), "min_records": 1} | options
    )


def means(release: StatisticsRelease, features: list[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    return release.bounded_sums(features, dtype) / len(features[0])


def plain_sums(release: StatisticsRelease, features: list[Tensor]) -> Tensor:
    """The definition, written with autograd's own operations: every vector by itself."""

    def bounded(vectors: Tensor) -> Tensor:
        norms = vectors.norm(dim=1, keepdim=True)
        if release.bound == "unit":
            return release.clip * vectors / norms
        return vectors / (norms / release.clip).clamp_min(1)

    flat = [feature.flatten(1) for feature in features]
    groups = flat if release.per_layer else [torch.cat(flat, dim=1)]
    phi = torch.cat([bounded(group) for group in groups], dim=1)
    squares = torch.cat([bounded(group.square()) for group in groups], dim=1)
    return torch.stack([phi.sum(0), squares.sum(0)])


def test_the_worked_example() -> None:
    release = of(0.508162)
    m1, m2 = means(release, [PHI])
    assert m1.tolist() == pytest.approx([0.383333, 0.366667, 0.616667], abs=1e-6)
    assert m2.tolist() == pytest.approx([0.288650, 0.391972, 0.641972], abs=1e-6)
    assert release.sensitivity(4) == 0.5
    assert release.noise_multiplier * release.sensitivity(4) == pytest.approx(0.254081, abs=1e-6)


@BY_VARIANT
def test_sums_are_those_of_the_definition(variant: dict[str, Any]) -> None:
    draws = torch.Generator().manual_seed(0)
    features = [torch.rand(5, 2, 3, 3, generator=draws), torch.rand(5, 4, generator=draws) * 0.3]
    release = of(clip=1.3, **variant)
    exact = plain_sums(release, [feature.double() for feature in features])
    assert torch.equal(release.bounded_sums(features).sign(), exact.float().sign())
    torch.testing.assert_close(release.bounded_sums(features), exact.float())
    torch.testing.assert_close(release.bounded_sums(features, torch.float64), exact, rtol=1e-12, atol=0)


@BY_VARIANT
def test_the_gradient_of_fakes_is_autograds(variant: dict[str, Any]) -> None:
    draws = torch.Generator().manual_seed(1)
    features = [
        (torch.randn(shape, generator=draws, dtype=torch.float64) * scale).requires_grad_()
        for shape, scale in [((5, 2, 3), 0.4), ((5, 4), 0.1)]
    ]
    release = of(clip=0.8, non_negative=False, **variant)
    norms = torch.cat([feature.flatten(1) for feature in features], dim=1).norm(dim=1)
    assert norms.min() < release.clip < norms.max()  # the bound turns some vectors and leaves others
    upstream = torch.randn(2, 10, generator=draws, dtype=torch.float64)
    ours = torch.autograd.grad(release.bounded_sums(features, torch.float64), features, upstream)
    theirs = torch.autograd.grad(plain_sums(release, features), features, upstream)
    torch.testing.assert_close(ours, theirs)


@BY_VARIANT
def test_zero_stays_zero_and_keeps_gradients_finite(variant: dict[str, Any]) -> None:
    phi = torch.cat([PHI, torch.zeros(1, 3)]).requires_grad_()
    release = of(**variant)
    assert release.bounded_sums([phi[4:]]).abs().sum() == 0
    sums = release.bounded_sums([phi])
    assert torch.equal(sums, release.bounded_sums([PHI]))
    sums.sum().backward()
    assert phi.grad is not None
    assert phi.grad.isfinite().all()


@BY_VARIANT
@pytest.mark.parametrize("non_negative", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_replacing_one_record_moves_the_means_by_no_more_than_the_sensitivity(
    variant: dict[str, Any], non_negative: bool, data: st.DataObject
) -> None:
    release = of(clip=data.draw(st.sampled_from([0.1, 1.0, 7.0])), non_negative=non_negative, **variant)
    records = data.draw(st.integers(1, 4))
    largest = float(np.float32(1e6))
    values = st.floats(0 if non_negative else -largest, largest, width=32)
    one = torch.from_numpy(data.draw(arrays.arrays(np.float32, (records, 5), elements=values)))
    other = one.clone()
    row = data.draw(arrays.arrays(np.float32, 5, elements=values))
    other[data.draw(st.integers(0, records - 1))] = torch.from_numpy(row)
    moved = means(release, [one[:, :2], one[:, 2:]]) - means(release, [other[:, :2], other[:, 2:]])
    assert float(moved.norm()) <= release.sensitivity(records, layers=2) * (1 + 1e-12)


@BY_VARIANT
def test_the_sensitivity_is_reached(variant: dict[str, Any]) -> None:
    one, other = torch.tensor([[1e3, 0.0, 1e3, 0.0]]), torch.tensor([[0.0, 1e3, 0.0, 1e3]])
    release = of(clip=2.0, **variant)
    moved = means(release, [one[:, :2], one[:, 2:]]) - means(release, [other[:, :2], other[:, 2:]])
    assert float(moved.norm()) == pytest.approx(release.sensitivity(1, layers=2))


def test_sensitivities_add_in_quadrature() -> None:
    assert of(clip=3.0).sensitivity(10, layers=16) == pytest.approx(2 * 3 / 10)
    assert of(clip=3.0, per_layer=True).sensitivity(10, layers=16) == pytest.approx(2 * 3 / 10 * 4)
    assert of(clip=3.0, non_negative=False).sensitivity(10) == pytest.approx(2 * math.sqrt(2) * 3 / 10)


class Overheard(NoiseSource):
    """A source that remembers what it was asked for."""

    asked: list[tuple[Any, ...]] = []  # noqa: RUF012 - of one test

    def gaussian(
        self, shape: tuple[int, ...], std: float, purpose: str, *, round: int = 0, client: int | None = None
    ) -> Tensor:
        self.asked.append((shape, std, purpose, round, client))
        return super().gaussian(shape, std, purpose, round=round, client=client)


def test_the_noise_is_the_sources_of_the_stated_deviation() -> None:
    release = of(2.0, source=Overheard(b"secret of a test"), per_layer=True)
    statistics = torch.rand(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    released = release.release(statistics, records=50, client=6, layers=9)
    ((shape, std, purpose, round, client),) = Overheard.asked
    assert (shape, std, round, client) == ((2, 7), 2.0 * release.sensitivity(50, layers=9), 0, 6)
    noise = NoiseSource(b"secret of a test").gaussian(shape, std, purpose, client=6)
    assert torch.equal(released, (statistics + noise).float())
    assert released.dtype == torch.float32


def test_the_noise_is_gaussian_with_the_multipliers_deviation() -> None:
    release = of(0.5)
    zeros = torch.zeros(2, 20_000, dtype=torch.float64)
    noise = release.release(zeros, records=10, client=0).double() / (0.5 * 2 / 10)
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 4 / math.sqrt(20_000)


def test_the_secret_fixes_the_noise() -> None:
    statistics = torch.ones(2, 5, dtype=torch.float64)

    def released(secret: bytes, client: int = 0, shift: float = 0.0, z: float = 1.0) -> Tensor:
        return of(z, source=NoiseSource(secret)).release(statistics + shift, 20, client)

    one = released(b"one secret of 16")
    assert torch.equal(one, released(b"one secret of 16"))
    assert not torch.isclose(one, released(b"two secret of 16")).any()
    assert not torch.isclose(one, released(b"one secret of 16", client=1)).any()


def test_releases_of_other_statistics_share_no_noise() -> None:
    """With one secret, the difference of two releases would otherwise be free of noise."""
    statistics = torch.ones(2, 5, dtype=torch.float64)
    release = of(1.0)
    one, other = (release.release(statistics + shift, 20, 0) for shift in (0.0, 1e-9))
    assert not torch.isclose(one, other).any()
    louder = of(2.0).release(statistics, 20, 0)
    assert not torch.isclose(2 * (one - 1), louder - 1).any()


def test_few_records_are_refused_by_client_and_option() -> None:
    release = of(min_records=100)
    release.check_records(100, client=3)
    with pytest.raises(FlgenError, match=r"^client 3 has 99 records.*or lower --method\.privacy\.min_records$"):
        release.release(torch.zeros(2, 1, dtype=torch.float64), 99, client=3)


@pytest.mark.parametrize("wrong", [-1e-6, math.nan, math.inf])
def test_features_that_break_the_sensitivity_are_refused(wrong: float) -> None:
    release = of()
    release.check_features([PHI, PHI])
    with pytest.raises(FlgenError, match="a private release needs finite ones that are not negative"):
        release.check_features([PHI, torch.tensor([[1.0, wrong]])])
    signed = of(non_negative=False)
    if math.isfinite(wrong):
        signed.check_features([torch.tensor([[1.0, wrong]])])
    else:
        with pytest.raises(FlgenError, match="needs finite ones: check"):
            signed.check_features([torch.tensor([[1.0, wrong]])])


@pytest.mark.parametrize(
    "options", [{"noise_multiplier": 0.0}, {"noise_multiplier": math.nan}, {"clip": -1.0}, {"min_records": 0}]
)
def test_impossible_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"--method\.privacy\.{next(iter(options))} is "):
        of(**options)


def test_half_precision_does_not_reach_the_sums() -> None:
    phi = PHI.clone().requires_grad_()
    release = of()
    exact = release.bounded_sums([PHI])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = release.bounded_sums([phi])
        sums[:, 0].sum().backward()
    assert torch.equal(sums, exact)
    plain = PHI.clone().requires_grad_()
    plain_sums(release, [plain])[:, 0].sum().backward()
    torch.testing.assert_close(phi.grad, plain.grad)
