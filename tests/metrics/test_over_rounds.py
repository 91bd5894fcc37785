"""The final round and the best one of a run."""

from __future__ import annotations

import pytest

from flgen.errors import FlgenError
from flgen.metrics.over_rounds import (
    best_row,
    chosen_on_validation,
    chosen_row,
    falls,
    final_and_best,
    headline,
    validated_headline,
)

ROWS = [
    {"round": 1, "test/accuracy": 0.5, "test/loss": 1.5, "train/loss": 3.0},
    {"round": 2, "train/loss": 2.0},
    {"round": 3, "test/accuracy": 0.8, "test/loss": 0.5, "train/loss": 1.0},
    {"round": 4, "test/accuracy": 0.8, "test/loss": 0.4, "train/loss": 1.0},
    {"round": 5, "test/accuracy": 0.7, "test/loss": 0.9},
    {"round": 6, "train/loss": 0.5},
]


def test_the_final_value_is_the_last_one_and_the_best_the_first_of_the_largest() -> None:
    assert final_and_best(ROWS) == (0.7, 5, 0.8, 3)


def test_a_loss_is_best_where_it_is_smallest() -> None:
    assert final_and_best(ROWS, "test/loss") == (0.9, 5, 0.4, 4)
    assert [falls(name) for name in ("test/loss", "fid/digits", "test/threshold/fid/digits", "kid/x")] == [True] * 4
    assert [falls(name) for name in ("test/accuracy", "prdc/recall/digits")] == [False, False]


def test_a_run_without_the_metric_is_refused() -> None:
    with pytest.raises(FlgenError, match="no round has test/f1"):
        final_and_best(ROWS, "test/f1")


def test_rounds_are_judged_by_the_accuracy_of_the_common_model_before_the_clients_own_before_fid() -> None:
    assert best_row(ROWS) == ROWS[2]
    assert headline([{"round": 1, "test/accuracy_aggregated": 0.1, "test/accuracy_trained": 0.2}]) == (
        "test/accuracy_trained"
    )
    generated = [{"round": t, "kid/a": 0.0, "fid/a": fid, "fid/b": -fid} for t, fid in enumerate((9.0, 3.0, 5.0), 1)]
    assert headline(generated) == "fid/a"
    assert best_row(generated) == generated[1]
    assert best_row([{"round": 1, "train/loss": 1.0}]) is None


def validated(point: str, *values: tuple[float, float]) -> list[dict[str, float]]:
    """Return rows of (validation accuracy, test accuracy) of a model at a point of the round."""
    return [
        {
            "round": t,
            f"val/pooled/accuracy_{point}": val,
            f"test/accuracy_{point}": test + 0.01,
            f"test/pooled/accuracy_{point}": test,
            f"test/loss_{point}": 1 - test,
        }
        for t, (val, test) in enumerate(values, start=1)
    ]


def test_validation_samples_choose_the_first_of_the_best_rounds() -> None:
    rows = validated("trained", (0.5, 0.6), (0.7, 0.55), (0.7, 0.8), (0.6, 0.9))
    by = "val/pooled/accuracy_trained"
    assert chosen_on_validation(rows, "test/pooled/accuracy_trained") == (0.55, 2, by)
    # Accuracy decides, whatever is read.
    assert chosen_on_validation(rows, "test/loss_trained") == (pytest.approx(0.45), 2, by)
    assert chosen_row(rows) == rows[1]
    assert validated_headline(rows) == "test/pooled/accuracy_trained"


def test_a_round_without_validation_cannot_be_chosen() -> None:
    rows = [{"round": 1, "test/pooled/accuracy_trained": 0.9}, {"round": 2, "train/loss": 1.0}]
    rows += [{**row, "round": row["round"] + 2} for row in validated("trained", (0.1, 0.2))]
    assert chosen_on_validation(rows, "test/pooled/accuracy_trained") == (0.2, 3, "val/pooled/accuracy_trained")
    assert chosen_on_validation(ROWS, "test/accuracy") is None
    assert chosen_row(ROWS) is None
    assert validated_headline(ROWS) is None


def test_every_model_is_chosen_by_its_own_validation_accuracy() -> None:
    own, common = validated("trained", (0.9, 0.1), (0.1, 0.2)), validated("aggregated", (0.1, 0.3), (0.9, 0.4))
    rows = [{**a, **b, "test/accuracy": 0.5 + a["round"]} for a, b in zip(own, common, strict=True)]
    assert chosen_on_validation(rows, "test/accuracy_trained") == (0.11, 1, "val/pooled/accuracy_trained")
    assert chosen_on_validation(rows, "test/pooled/accuracy_aggregated") == (0.4, 2, "val/pooled/accuracy_aggregated")
    assert chosen_on_validation(rows, "test/accuracy") == (2.5, 2, "val/pooled/accuracy_aggregated")  # the common model
    assert chosen_row(rows) == rows[1]  # by test/accuracy, the headline
    assert validated_headline(rows) == "test/pooled/accuracy_trained"
    assert chosen_on_validation([{**row, "test/accuracy": 0.5} for row in own], "test/accuracy") is None
    assert validated_headline(common) == "test/pooled/accuracy_aggregated"
