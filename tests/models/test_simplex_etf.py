"""FedKTL's fixed classifier (fedktl.md, checks 9.1 to 9.4)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flgen.models.simplex_etf import arcface_logits, cosines, etf_of, simplex_etf, unit_length

# Three class vectors in the plane.
TRIANGLE = torch.tensor([[1, -0.5, -0.5], [0, math.sqrt(3) / 2, -math.sqrt(3) / 2]], dtype=torch.float64)
Z = torch.tensor([[3.0, 4.0]], dtype=torch.float64)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize(("classes", "dimension"), [(2, 2), (3, 3), (10, 10), (10, 12), (100, 100)])
def test_class_vectors_have_unit_length_and_lie_as_far_apart_as_they_can(classes: int, dimension: int) -> None:
    V = simplex_etf(classes, draws(), dimension)
    assert V.shape == (dimension, classes)
    gram = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64)
    gram.fill_diagonal_(1)
    torch.testing.assert_close(V.T @ V, gram, atol=1e-12, rtol=0)
    assert V.sum(dim=1).abs().max() < 1e-12
    singular = torch.linalg.svdvals(V)
    expected = math.sqrt(classes / (classes - 1))
    torch.testing.assert_close(singular[:-1], torch.full_like(singular[:-1], expected))
    assert singular[-1] < 1e-6


def test_with_the_identity_as_basis_the_entries_are_those_of_the_formula() -> None:
    ten, three = etf_of(torch.eye(10, dtype=torch.float64)), etf_of(torch.eye(3, dtype=torch.float64))
    assert ten[0, 0] == pytest.approx(0.9486833, abs=1e-7)
    assert ten[0, 1] == pytest.approx(-0.1054093, abs=1e-7)
    assert three[0, 0] == pytest.approx(0.8164966, abs=1e-7)
    assert three[0, 1] == pytest.approx(-0.4082483, abs=1e-7)


def test_the_same_draws_give_the_same_vectors_and_others_others() -> None:
    assert torch.equal(simplex_etf(5, draws()), simplex_etf(5, draws()))
    assert not torch.equal(simplex_etf(5, draws()), simplex_etf(5, torch.Generator().manual_seed(6)))


@pytest.mark.parametrize(("classes", "dimension"), [(3, 2), (1, 1), (1, None)])
def test_fewer_dimensions_than_classes_or_a_single_class_are_refused(classes: int, dimension: int | None) -> None:
    with pytest.raises(ValueError, match="there must be 2 classes"):
        simplex_etf(classes, draws(), dimension)


def loss_of(y: int, guarded: bool = True) -> tuple[Tensor, float]:
    labels = torch.tensor([y])
    logits = arcface_logits(cosines(Z, TRIANGLE), labels, 64, 0.5, guarded)
    return logits[0], float(torch.nn.functional.cross_entropy(logits, labels))


def test_the_margin_is_an_angle_at_the_true_class() -> None:
    torch.testing.assert_close(
        cosines(Z, TRIANGLE)[0], torch.tensor([0.6, 0.392820, -0.992820], dtype=torch.float64), atol=1e-6, rtol=0
    )
    for y, expected, loss in [
        (0, [9.152583, 25.140501, -63.540501], 15.987918),
        (1, [38.4, -6.153905, -63.540501], 44.553905),
    ]:
        logits, got = loss_of(y)
        torch.testing.assert_close(logits, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)
        assert got == pytest.approx(loss, abs=1e-5)


def test_beyond_pi_minus_the_margin_the_guard_keeps_the_worst_samples_the_hardest() -> None:
    logits, loss = loss_of(2, guarded=False)
    assert float(logits[2]) == pytest.approx(-59.432218, abs=1e-5)
    assert loss == pytest.approx(97.832220, abs=1e-5)
    logits, loss = loss_of(2)
    assert float(logits[2]) == pytest.approx(-78.882118, abs=1e-5)
    assert loss == pytest.approx(117.282120, abs=1e-5)
    cos = torch.linspace(-1, 1, 2001, dtype=torch.float64).unsqueeze(1).expand(-1, 3)
    shifted = arcface_logits(cos, torch.zeros(2001, dtype=torch.int64), 1, 0.5)[:, 0]
    # It jumps where the guard begins, downwards for worse samples, and never rises towards them.
    assert (shifted.diff() > 0).all()


@pytest.mark.parametrize("z", [(2.0, 0.0), (-2.0, 0.0), (0.0, 0.0)])
def test_gradients_are_finite_on_a_class_vector_opposite_to_it_and_at_zero(z: tuple[float, float]) -> None:
    for dtype in (torch.float32, torch.float64):
        leaf = torch.tensor([z], dtype=dtype, requires_grad=True)
        y = torch.tensor([0])
        torch.nn.functional.cross_entropy(arcface_logits(cosines(leaf, TRIANGLE), y, 64, 0.5), y).backward()
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_unit_length_leaves_a_zero_vector_zero() -> None:
    assert unit_length(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]
    torch.testing.assert_close(unit_length(Z), torch.tensor([[0.6, 0.8]], dtype=torch.float64))


def test_cosines_are_wide_under_autocast_too() -> None:
    z = torch.randn(20, 3, generator=draws())
    V = simplex_etf(3, draws()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = cosines(z.bfloat16(), V)
        same = cosines(z, V)
    assert narrow.dtype == same.dtype == torch.float32
    assert torch.equal(same, cosines(z, V))
