"""FedAvg by hand: the mean, the buffers, the models that clients keep, and fine-tuning after the last round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Pull, Remembering, Trial, row
from quadratic_clients import Quadratic, assert_close

from flgen import FedAvg, LocalTraining


def test_the_mean_is_weighted_by_samples() -> None:
    method = FedAvg(ONE_STEP)
    trial = Trial(method, Pull([0], [[10], [-2]]), (1, 3))
    trial.round(1)  # 1 and -0.2
    assert torch.allclose(method.w_t, row(0.25 * 1 - 0.75 * 0.2))
    trial.round(2)  # 1.09 and -0.11
    assert torch.allclose(method.w_t, row(0.19))
    assert trial.state(0) == trial.state(1) == {}


def test_without_further_wishes_only_the_new_mean_is_tested() -> None:
    trial = Trial(FedAvg(ONE_STEP), Pull([0], [[10], [-2]]), (1, 3), rounds=1)
    trial.round(1)
    tested = trial.evaluate(1)
    assert tested[0] == {"test/accuracy_aggregated": pytest.approx(9.9**2)}
    assert tested[1] == {"test/accuracy_aggregated": pytest.approx(2.1**2)}


def test_a_kept_model_is_the_one_that_its_client_trained_last_however_long_ago() -> None:
    targets = [4.0, 8.0, -6.0]
    trial = Trial(
        FedAvg(ONE_STEP, keep_personal=True), Pull([1], [[c] for c in targets]), (1, 1, 1), clients_per_round=1
    )
    w, trained = 1.0, [1.0, 1.0, 1.0]
    chosen = set()
    for t in range(1, 5):
        (client,) = trial.job.federation.cohort(t)
        trial.round(t)
        # A cohort of one: its model is the next mean.
        w = trained[client.id] = w + 0.1 * (targets[client.id] - w)
        chosen.add(client.id)
        for k, tested in trial.evaluate(t).items():
            assert tested == {
                "test/accuracy_aggregated": pytest.approx((w - targets[k]) ** 2, rel=1e-5),
                "test/accuracy_trained": pytest.approx((trained[k] - targets[k]) ** 2, rel=1e-5),
            }
            assert (trial.state(k) == {}) == (k not in chosen)
        if t == 2:
            assert len(chosen) < 3  # somebody was tested with w_1
    assert len(chosen) > 1


@pytest.mark.parametrize(("fine_tune", "tuned"), [("annealed", (1.0265, 1.2265)), ("reset", (1.183, 1.583))])
def test_fine_tuning_follows_the_last_round_at_its_rate_or_the_first_ones(
    fine_tune: Any, tuned: tuple[float, float]
) -> None:
    training = LocalTraining(batch_size=1000, learning_rate_decay=0.5)
    method = FedAvg(training, keep_personal=True, fine_tune=fine_tune)
    trial = Trial(method, Pull([0], [[4], [8]]), rounds=2)
    trial.round(1)
    assert torch.allclose(method.w_t, row(0.6))
    for tested in trial.evaluate(1).values():
        assert tested.keys() == {"test/accuracy_aggregated", "test/accuracy_trained"}

    trial.round(2)  # at 0.05, to 0.77 and 0.97
    for k, target in enumerate((4, 8)):
        assert trial.evaluate(2)[k] == {
            "test/accuracy_aggregated": pytest.approx((target - 0.87) ** 2, rel=1e-5),
            "test/accuracy_fine_tuned": pytest.approx((target - tuned[k]) ** 2, rel=1e-5),
            "test/accuracy_trained": pytest.approx((target - (0.77, 0.97)[k]) ** 2, rel=1e-5),
        }
    # It was thrown away.
    assert torch.allclose(method.w_t, row(0.87))
    assert torch.allclose(trial.state(0)["weights"], row(0.77))


@pytest.mark.parametrize(("weighting", "mean"), [("samples", (0.4, 2.2)), ("uniform", (1.0, 2 / 3))])
def test_clients_count_by_their_samples_or_all_alike(weighting: Any, mean: tuple[float, float]) -> None:
    # gptfl.md, section 10, check 1: one step at rate 1 ends on the target.
    method = FedAvg(ONE_STEP, weighting=weighting)
    model = Quadratic([0.5, 0.5], [[1, -2], [3, 0], [-1, 4]], learning_rate=1.0)
    Trial(method, model, (10, 30, 60)).round(1)
    assert_close(method.w_t, *mean)


def test_in_small_cohorts_clients_count_by_the_samples_of_those_who_are_there() -> None:
    method = FedAvg(ONE_STEP)
    targets = [1.0, 3.0, -1.0]
    trial = Trial(method, Quadratic([0], [[c] for c in targets], learning_rate=1.0), (10, 30, 60), clients_per_round=2)
    cohort = trial.job.federation.cohort(1)
    trial.round(1)
    n = sum(client.samples for client in cohort)
    assert_close(method.w_t, sum(client.samples / n * targets[client.id] for client in cohort))


def test_floating_buffers_are_averaged_and_every_client_counts_batches_from_the_servers_number() -> None:
    counted: list[int] = []

    class Watched(Remembering):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.training:
                counted.append(int(self.batches))
            return super().training_step(batch, batch_idx)

    model = Watched([0], [[10], [-2]])
    model.batches += 40  # as after training before the federation
    method = FedAvg(LocalTraining(epochs=2, batch_size=1000))
    trial = Trial(method, model, (1, 3))
    for t in (1, 2):
        seen = float(method.w_t[1])
        trial.round(t)
        assert float(method.w_t[1]) == seen + 0.25 * 2 + 0.75 * 4
    assert counted == [40, 41] * 4


def test_a_round_moves_twice_the_model_per_client() -> None:
    outcome = Trial(FedAvg(ONE_STEP), Pull([0.0] * 1000, [[1.0] * 1000] * 3), (1, 1, 1)).round(1)
    scalars = 2 * 3 * 1000
    assert 4 * scalars <= outcome.metrics["comm/bytes"] <= 4 * scalars + 6 * 64
