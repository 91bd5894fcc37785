"""The final round and the best one of a run."""

from __future__ import annotations

import pytest

from flgen.errors import FlgenError
from flgen.metrics.over_rounds import best_row, falls, final_and_best, headline

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
