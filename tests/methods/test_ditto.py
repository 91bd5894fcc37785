"""Ditto by hand: the pull follows each step; and what it leaves of FedAvg and of Local."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Pull, Trial, row, steps_seen

from flgen import Digits, Ditto, FedAvg, Local, LocalTraining, Shards, SmallCNN
from flgen.errors import UsageError


def test_two_rounds_of_both_models() -> None:
    method = Ditto(ONE_STEP, personal_epochs=2, penalty=0.5)
    trial = Trial(method, Pull([2], [[12], [-8]]), (1, 3))
    trial.round(1)
    assert torch.allclose(method.w_t, row(0.25 * 3 + 0.75 * 1))
    # v: 2 -> 3 -> 2.95 -> 3.855 -> 3.76225, and its mirror image around 2
    assert torch.allclose(trial.state(0)["weights"], row(3.76225))
    assert torch.allclose(trial.state(1)["weights"], row(0.23775))

    trial.round(2)
    assert torch.allclose(method.w_t, row(0.25 * 2.55 + 0.75 * 0.55))
    # from its own v, towards w_2 = 1.5: 4.586025 -> 4.43172375 -> 5.188551375 -> 5.00412380625
    assert torch.allclose(trial.state(0)["weights"], row(5.0041238))


def test_a_client_that_is_chosen_late_begins_its_own_model_at_the_very_first_weights() -> None:
    method = Ditto(ONE_STEP, personal_epochs=1, penalty=0.5)
    trial = Trial(method, Pull([2], [[12], [12]]))
    method.w_t = row(5)  # as after some rounds without it
    trial.round(2)
    assert torch.allclose(trial.state(0)["weights"], row(3 + 0.05 * 2))


def test_the_pull_is_not_clipped() -> None:
    training = LocalTraining(batch_size=1000, clip_norm=1.0)
    method = Ditto(training, personal_epochs=1, penalty=0.5)
    trial = Trial(method, Pull([2], [[12], [12]]), states={0: {"weights": row(102)}})
    trial.round(1)
    assert torch.allclose(trial.state(0)["weights"], row(101.9 - 0.05 * 99.9))
    assert torch.allclose(trial.state(1)["weights"], row(2.1 - 0.05 * 0.1))
    assert torch.allclose(method.w_t, row(2.1))


def test_the_pull_weakens_with_the_learning_rate() -> None:
    training = LocalTraining(batch_size=1000, learning_rate_decay=0.5)
    trial = Trial(Ditto(training, 1, 0.5), Pull([2], [[12], [12]]), states={0: {"weights": row(4)}})
    trial.round(2)
    assert torch.allclose(trial.state(0)["weights"], row(4.4 - 0.05 * 0.5 * 2.4))


def test_progress_counts_the_steps_of_both_models_as_one_row() -> None:
    steps: list[tuple[int, int, int]] = []
    training = LocalTraining(epochs=1, batch_size=2)
    Trial(Ditto(training, personal_epochs=2), Pull([0], [[1], [2]]), (5, 1)).round(1, call=steps_seen(steps))
    assert steps == [(0, done, 9) for done in range(1, 10)] + [(1, done, 3) for done in range(1, 4)]


def test_clients_test_the_mean_and_the_model_of_their_own_which_those_not_chosen_keep() -> None:
    trial = Trial(Ditto(ONE_STEP, 1, 0.5), Pull([2], [[12], [12]]), clients_per_round=1)
    (chosen,) = trial.job.federation.cohort(1)
    trial.round(1)
    tested = trial.evaluate(1)
    for k in (0, 1):
        v = 2.95 if k == chosen.id else 2.0
        assert tested[k] == {
            "test/accuracy_aggregated": pytest.approx(9.0**2),
            "test/accuracy_trained": pytest.approx((12 - v) ** 2, rel=1e-5),
        }


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_the_common_model_is_fedavgs_bit_for_bit(penalty: float) -> None:
    training = LocalTraining(epochs=2, batch_size=128, learning_rate_decay=0.9, clip_norm=1.0)

    def common(method: Any) -> torch.Tensor:
        torch.manual_seed(0)
        trial = Trial(method, SmallCNN(image_size=8, width=2), data=Digits(), partition=Shards(clients=3))
        for t in (1, 2):
            trial.round(t)
        return method.w_t

    ditto = Ditto(training, personal_epochs=1, penalty=penalty)
    assert torch.equal(common(ditto), common(FedAvg(training)))
    assert not torch.equal(ditto.w_t, ditto.w_1)


def test_without_a_penalty_the_models_of_their_own_are_locals() -> None:
    def own(method: Any) -> list[torch.Tensor]:
        trial = Trial(method, Pull([2, 0.3], [[12, 1], [-8, 7]]), (4, 3))
        for t in (1, 2, 3):
            trial.round(t)
        return [trial.state(k)["weights"] for k in (0, 1)]

    local = own(Local(LocalTraining(epochs=3, batch_size=1000)))
    for ours, theirs in zip(own(Ditto(ONE_STEP, personal_epochs=3, penalty=0.0)), local, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"personal_epochs": 0}, "--method.personal_epochs is 0: give 1 or more"),
        ({"penalty": -0.1}, "--method.penalty is -0.1: give 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Ditto(**options)
