"""FedKTL's domain alignment (fedktl.md, sections 1.4 and 2.3, checks 9.5 to 9.7)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from flgen.errors import UsageError
from flgen.methods import class_vectors
from flgen.methods.latent_alignment import (
    PUBLISHED_BANDWIDTHS,
    AlignmentTraining,
    health,
    kernel,
    means_of_batch,
    median_bandwidths,
    minibatches,
    mmd,
    train,
)
from flgen.models.feature_transformer import FeatureTransformer

BETAS = torch.tensor(PUBLISHED_BANDWIDTHS, dtype=torch.float64)
A = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
B = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
P = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 0, 1])


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(H: int, scale: float = 1.0) -> object:
    return lambda n, draws: scale * torch.randn(n, H, generator=draws)


def test_the_discrepancy_is_the_v_statistic_with_summed_kernels() -> None:
    x, y = rows((0, 0), (1, 0)), rows((0, 1), (2, 0))
    assert float(mmd(x, y, BETAS)) == pytest.approx(0.121950, abs=1e-6)
    assert float(mmd(10 * x, 10 * y, BETAS)) == pytest.approx(3.676306, abs=1e-6)
    assert float(mmd(x, x, BETAS)) == pytest.approx(0, abs=1e-12)
    assert float(mmd(rows((0, 0)), rows((2, 4)), BETAS)) == pytest.approx(3.386884, abs=1e-6)
    assert float(kernel(torch.tensor(1.0, dtype=torch.float64), BETAS)) == pytest.approx(3.883805, abs=1e-6)


def test_two_clouds_that_are_spread_far_apart_have_the_floor_8_over_n_and_no_gradient() -> None:
    n = 100
    spread = 1000.0 * torch.arange(2 * n, dtype=torch.float64)
    Q = torch.stack([spread[:n], spread[:n] ** 0.5], dim=1).requires_grad_()
    w = torch.stack([spread[n:], spread[n:] ** 0.5], dim=1)
    L = mmd(Q, w, BETAS)
    L.backward()
    assert float(L.detach()) == pytest.approx(8 / n, abs=1e-9)
    assert Q.grad is not None
    assert Q.grad.abs().max() < 1e-12


@pytest.mark.parametrize(("H", "expected"), [(8, 2.63), (32, 0.94), (64, 0.35), (128, 0.084), (512, 4.4e-5)])
def test_published_kernels_are_blind_in_wide_gaussian_spaces_and_median_ones_see(H: int, expected: float) -> None:
    w = torch.randn(500, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    i, j = torch.triu_indices(500, 500, offset=1)
    squared = torch.cdist(w, w).square()[i, j]
    assert float(kernel(squared, BETAS).mean()) == pytest.approx(expected, rel=0.06 if H < 512 else 0.5)
    assert 1.1 < float(kernel(squared, median_bandwidths(w)).mean()) < 1.6


def test_median_bandwidths_are_parts_of_half_the_median_squared_distance() -> None:
    # Points on a line at 0, 1 and 3: squared distances 1, 4, 9.
    assert median_bandwidths(rows((0.0,), (1.0,), (3.0,))).tolist() == [0.5, 1.0, 2.0, 4.0]


def test_centroids_are_plain_means_over_clients_and_the_spread_is_a_mean_over_elements() -> None:
    Q = P @ A.T + B
    Q_bar, _ = class_vectors.class_means([(Q, Y)], 2)
    torch.testing.assert_close(Q_bar, rows((0.8, 0.8, 2.2), (0, 2, 2)))
    torch.testing.assert_close(means_of_batch(Q, Y, 2), Q_bar)
    assert float(nn.functional.mse_loss(Q, Q_bar[Y])) == pytest.approx(0.16, abs=1e-9)


def test_the_transformer_normalises_by_the_batch_in_training_and_by_running_statistics_otherwise() -> None:
    F = FeatureTransformer(2, 3).double()
    state = F.layers.state_dict()
    state["0.weight"], state["0.bias"] = rows((1, 0), (0, -1)), torch.tensor([0.0, 1.0])
    state["3.weight"], state["3.bias"] = A, B
    F.layers.load_state_dict(state)
    inputs = rows((1, 0), (0.6, 0.8), (0, 1), (-0.6, 0.8))
    evaluated = rows((1, 2, 3), (0.6, 0.4, 1.8), (0, 0, 1), (0, 0.4, 1.2))
    torch.testing.assert_close(F.eval()(inputs), evaluated, atol=1e-3, rtol=0)
    trained = rows((1.2372, 3.3848, 3.9296), (0.5773, 0, 1.5773), (0, 0, 1), (0, 0, 1))
    got = F.train()(inputs)
    torch.testing.assert_close(got, trained, atol=1e-3, rtol=0)
    statistics = dict(F.named_buffers())
    torch.testing.assert_close(statistics["layers.1.running_mean"], torch.tensor([0.025, 0.035]).double())
    torch.testing.assert_close(
        statistics["layers.1.running_var"], torch.tensor([0.9490, 0.9197]).double(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("samples", "sizes"), [(2, [2]), (101, [101]), (200, [100, 100]), (201, [100, 101])])
def test_no_minibatch_has_a_single_prototype_and_none_is_left_out(samples: int, sizes: list[int]) -> None:
    batches = list(minibatches(samples, 100, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(samples))


def test_parameters_of_the_transformer_are_as_many_as_published() -> None:
    assert sum(p.numel() for p in FeatureTransformer(10, 512).parameters()) == 5_762
    assert sum(p.numel() for p in FeatureTransformer(100, 512).parameters()) == 62_012


def noisy_prototypes(C: int = 10, clients: int = 10) -> tuple[Tensor, Tensor]:
    from flgen.models.simplex_etf import simplex_etf, unit_length

    draws = torch.Generator().manual_seed(3)
    V = simplex_etf(C, draws).float()
    y = torch.arange(C).repeat(clients)
    return unit_length(V.T[y] + 0.3 * torch.randn(len(y), C, generator=draws)), y


@pytest.mark.parametrize("centroids", ["table", "batch"])
def test_training_gathers_each_class_and_spreads_classes_over_the_prior(centroids: str) -> None:
    H, (prototypes, y) = 32, noisy_prototypes()
    torch.manual_seed(0)
    F = FeatureTransformer(10, H)
    draws = torch.Generator().manual_seed(4)
    prior = normal(H)
    betas = median_bandwidths(prior(500, draws))  # type: ignore[operator]
    options = AlignmentTraining(centroids=centroids)  # type: ignore[arg-type]

    def measured() -> dict[str, float]:
        with torch.no_grad():
            Q = F.eval()(prototypes)
        Q_bar, _ = class_vectors.class_means([(Q, y)], 10)
        w = prior(len(y), draws), prior(len(y), draws)  # type: ignore[operator]
        return health(Q, y, Q_bar.float(), *w, betas)

    before = measured()
    e, _ = class_vectors.class_means([(F(prototypes).detach(), y)], 10)
    losses = train(F, prototypes, y, e.float(), prior, betas, draws, options)  # type: ignore[arg-type]
    after = measured()
    assert before["alignment/norm_ratio"] < 0.3
    assert 0.6 < after["alignment/norm_ratio"] < 1.1
    assert 0.6 < after["alignment/separation_ratio"] < 1.2
    assert after["alignment/mmd_excess"] < 0.5 * before["alignment/mmd_excess"]
    assert after["alignment/mse"] < 0.3  # a valid latent has 1
    assert losses["alignment/mmd_loss"] < before["alignment/mmd_excess"]


def test_health_shows_what_the_loss_hides_where_published_kernels_are_blind() -> None:
    """Outputs far from every valid latent, but far from each other: the loss is at its floor, the norms are not."""
    H, n = 4096, 20
    draws = torch.Generator().manual_seed(4)
    w, other, Q = (torch.randn(n, H, generator=draws) for _ in range(3))
    figures = health(3 * Q, torch.arange(n), 3 * Q, w, other, BETAS)
    assert abs(figures["alignment/mmd_excess"]) < 1e-6
    assert figures["alignment/norm_ratio"] == pytest.approx(3, rel=0.02)
    assert figures["alignment/separation_ratio"] == pytest.approx(3, rel=0.02)
    assert health(w, torch.arange(n), w, w, other, BETAS)["alignment/mse"] == 0


def test_a_table_learns_beside_the_transformer_and_batch_means_leave_it_alone() -> None:
    prototypes, y = noisy_prototypes()
    for centroids in ("table", "batch"):
        torch.manual_seed(0)
        F, e = FeatureTransformer(10, 8), torch.zeros(10, 8)
        options = AlignmentTraining(epochs=2, centroids=centroids)  # type: ignore[arg-type]
        betas = torch.tensor([4.0])
        train(F, prototypes, y, e, normal(8), betas, torch.Generator().manual_seed(1), options)  # type: ignore[arg-type]
        assert (e.abs().sum() > 0) == (centroids == "table")
        assert not F.training


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"clip_norm": 0.0}, {"compactness": -1.0}]
)
def test_numbers_out_of_range_are_refused_by_name(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"--method.alignment.{name} is"):
        dataclasses.replace(AlignmentTraining(), **options)  # type: ignore[arg-type]
