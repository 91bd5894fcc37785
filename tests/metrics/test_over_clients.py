"""Means over clients, and how far test results are apart."""

from __future__ import annotations

import math

import pytest

from flgen.metrics.over_clients import over_clients


def test_every_client_that_reports_a_metric_has_the_same_weight() -> None:
    reported = {0: {"train/loss": 1.0, "flops/client_round": 4}, 1: {"train/loss": 2.0}, 2: {"train/loss": 6.0}}
    assert over_clients(reported) == {"train/loss": 3.0, "flops/client_round": 4.0}


def test_test_results_also_have_a_spread_and_a_worst_decile() -> None:
    accuracy = [0.9, 0.5, 0.7, 0.3]
    summary = over_clients({client: {"test/accuracy_trained": value} for client, value in enumerate(accuracy)})
    assert list(summary) == [
        "test/accuracy_trained",
        "test/std/accuracy_trained",
        "test/worst_decile/accuracy_trained",
    ]
    assert summary["test/accuracy_trained"] == pytest.approx(0.6)
    # squared distances from the mean: 0.09, 0.01, 0.01, 0.09; divided by 4, not by 3
    assert summary["test/std/accuracy_trained"] == pytest.approx(math.sqrt(0.05))
    assert summary["test/worst_decile/accuracy_trained"] == 0.3


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (100, 10)])
def test_the_worst_decile_is_a_tenth_of_the_clients_rounded_up(clients: int, worst: int) -> None:
    reported = {client: {"test/accuracy": float((7 * client) % clients)} for client in range(clients)}
    values = sorted(metrics["test/accuracy"] for metrics in reported.values())
    assert over_clients(reported)["test/worst_decile/accuracy"] == pytest.approx(sum(values[:worst]) / worst)


def test_of_a_loss_the_highest_are_the_worst() -> None:
    summary = over_clients({client: {"test/loss_aggregated": float(client)} for client in range(20)})
    assert summary["test/worst_decile/loss_aggregated"] == 18.5
    assert summary["test/loss_aggregated"] == 9.5


def test_values_are_added_in_the_order_of_ids_whoever_reports_first() -> None:
    values = {0: 0.1, 1: 1e16, 2: 0.7, 3: -1e16, 4: 0.2}
    forwards = over_clients({client: {"test/accuracy": values[client]} for client in range(5)})
    backwards = over_clients({client: {"test/accuracy": values[client]} for client in (3, 1, 4, 0, 2)})
    assert forwards == backwards
    assert forwards["test/accuracy"] == (0.1 + 1e16 + 0.7 - 1e16 + 0.2) / 5


def test_samples_of_all_clients_are_pooled() -> None:
    # fedktl.md, check 9.13: 8 of 10 and 45 of 90 right
    reported = {0: {"test/accuracy_trained": 0.8, "val/accuracy_trained": 1.0}, 1: {"test/accuracy_trained": 0.5}}
    summary = over_clients(reported, {"test": {0: 10, 1: 90}, "val": {0: 4, 1: 0}})
    assert summary["test/accuracy_trained"] == pytest.approx(0.65)
    assert summary["test/pooled/accuracy_trained"] == pytest.approx(0.53)
    assert summary["val/pooled/accuracy_trained"] == summary["val/accuracy_trained"] == 1.0
    assert {name: summary[name] for name in over_clients(reported)} == over_clients(reported)


def test_only_means_over_a_clients_own_samples_are_pooled() -> None:
    samples = {"test": {0: 1, 1: 3}, "val": {0: 0, 1: 0}}
    names = ["test/accuracy", "test/f1_macro_trained", "train/loss", "val/accuracy_trained", "test/loss_aggregated"]
    summary = over_clients({client: {name: float(client) for name in names} for client in (0, 1)}, samples)
    assert {name: value for name, value in summary.items() if "pooled" in name} == {"test/pooled/loss_aggregated": 0.75}


def test_one_client_has_no_spread_and_no_client_no_metric() -> None:
    assert over_clients({7: {"test/accuracy": 0.25}}) == {
        "test/accuracy": 0.25,
        "test/std/accuracy": 0.0,
        "test/worst_decile/accuracy": 0.25,
    }
    assert over_clients({}) == {}
    assert over_clients({0: {}}) == {}
