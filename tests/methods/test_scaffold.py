"""SCAFFOLD by hand: control variates of both options, where the average ends up, and what it refuses to train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_trial import Pull, Remembering, Trial, row, steps_seen
from quadratic_clients import Quadratic, assert_close

from flgen import FedAvg, LocalTraining, Scaffold, SmallCNN
from flgen.errors import UsageError

TWO_STEPS = LocalTraining(epochs=2, batch_size=1000)
TARGETS, CURVATURES = (1.0, -1.0), (1.0, 3.0)


def two_bowls() -> Quadratic:
    """f_1 = 1/2 (x - 1)^2, f_2 = 3/2 (x + 1)^2, whose sum is least at -0.5."""
    return Quadratic([0], [[c] for c in TARGETS], CURVATURES)


def algorithm(
    option: str, rates: Sequence[float], cohorts: Sequence[Sequence[int]] = (), eta_g: float = 1.0
) -> tuple[float, float, list[float]]:
    """Return x, c and the c_k after some rounds of two steps each, in plain numbers."""
    x, c, c_k = 0.0, 0.0, [0.0, 0.0]

    def gradient(k: int, at: float) -> float:
        return CURVATURES[k] * (at - TARGETS[k])

    for t, eta_l in enumerate(rates):
        cohort = cohorts[t] if cohorts else (0, 1)
        moved, changed = 0.0, 0.0
        for k in cohort:
            y = x
            for _ in range(2):
                y -= eta_l * (gradient(k, y) - c_k[k] + c)
            new = gradient(k, x) if option == "I" else c_k[k] - c + (x - y) / (2 * eta_l)
            moved, changed, c_k[k] = moved + y - x, changed + new - c_k[k], new
        x, c = x + eta_g * moved / len(cohort), c + changed / 2
    return x, c, c_k


def test_the_worked_example() -> None:
    # gptfl.md, section 10, check 3
    method = Scaffold(TWO_STEPS)
    trial = Trial(method, two_bowls())
    trial.round(1)
    assert_close(method.w_t, -0.16)
    assert_close(method.c, 0.8)
    assert_close(torch.cat([trial.state(k)["control"] for k in (0, 1)]), -0.95, 2.55)
    trial.round(2)
    assert_close(method.w_t, -0.2815)
    assert_close(method.c, 0.6075)
    assert_close(torch.cat([trial.state(k)["control"] for k in (0, 1)]), -1.1895, 2.4045)


def test_two_rounds_of_option_i() -> None:
    method = Scaffold(TWO_STEPS, option="I")
    trial = Trial(method, two_bowls())
    trial.round(1)
    assert_close(torch.cat([trial.state(k)["control"] for k in (0, 1)]), -1, 3)
    trial.round(2)
    assert_close(method.w_t, -0.284)
    assert_close(method.c, algorithm("I", [0.1, 0.1])[1])


def test_it_ends_at_the_optimum_and_fedavg_beside_it() -> None:
    scaffold, fedavg = Scaffold(TWO_STEPS), FedAvg(TWO_STEPS)
    trials = [Trial(method, two_bowls()) for method in (scaffold, fedavg)]
    course = []
    for t in range(1, 201):
        for trial in trials:
            trial.round(t)
        course.append(float(fedavg.w_t))
    assert_close(torch.tensor(course[:2], dtype=torch.float64), -0.16, -0.264)
    assert_close(scaffold.w_t, -0.5)
    assert_close(fedavg.w_t, -0.4571428571)


@pytest.mark.parametrize("option", ["I", "II"])
def test_every_round_divides_by_the_learning_rate_that_it_used(option: Any) -> None:
    training = LocalTraining(epochs=2, batch_size=1000, learning_rate_decay=0.5)
    method = Scaffold(training, option=option, server_learning_rate=0.5)
    trial = Trial(method, two_bowls())
    for t in (1, 2, 3):
        trial.round(t)
    x, c, c_k = algorithm(option, [0.1, 0.05, 0.025], eta_g=0.5)
    assert_close(method.w_t, x)
    assert_close(method.c, c)
    assert_close(torch.cat([trial.state(k)["control"] for k in (0, 1)]), *c_k)


def test_a_client_that_is_left_out_keeps_its_control_variate_and_c_moves_by_those_who_are_there() -> None:
    trial = Trial(Scaffold(TWO_STEPS), two_bowls(), clients_per_round=1)
    cohorts = [[client.id for client in trial.job.federation.cohort(t)] for t in range(1, 5)]
    assert {k for cohort in cohorts for k in cohort} == {0, 1}
    for t in range(1, 5):
        trial.round(t)
        x, c, c_k = algorithm("II", [0.1] * t, cohorts)
        assert_close(trial.method.w_t, x)
        assert_close(trial.method.c, c)
        for k in (0, 1):
            assert_close(trial.state(k).get("control", torch.zeros(1, dtype=torch.float64)), c_k[k])
        if t == 1:  # the number of the specification, or its counterpart for the other client
            assert_close(trial.method.c, -0.475 if cohorts[0] == [0] else 1.275)


def test_one_more_pass_of_option_i_is_the_gradient_over_all_batches() -> None:
    class Uneven(Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return len(batch[1]) * super().training_step(batch, batch_idx)

    method = Scaffold(LocalTraining(epochs=1, batch_size=4), option="I")
    steps: list[tuple[int, int, int]] = []
    trial = Trial(method, Uneven([0], [[1.0]], learning_rate=0.01), (10,))
    trial.round(1, call=steps_seen(steps))
    # Batches of 4, 4 and 2 samples with gradients of -4, -4 and -2, each weighted by its samples.
    assert_close(trial.state(0)["control"], -(4 * 4 + 4 * 4 + 2 * 2) / 10)
    assert steps == [(0, done, 6) for done in range(1, 7)]


def test_a_batch_that_a_module_passes_over_does_not_count_in_the_pass_of_option_i() -> None:
    class Choosy(Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else len(batch[1]) * super().training_step(batch, batch_idx)

    trial = Trial(
        Scaffold(LocalTraining(epochs=1, batch_size=4), option="I"), Choosy([0], [[1.0]], learning_rate=0.01), (10,)
    )
    trial.round(1)
    assert_close(trial.state(0)["control"], -(4 * 4 + 2 * 2) / 6)  # of the batches of 4, 4 and 2 two


@pytest.mark.parametrize("option", ["I", "II"])
def test_buffers_are_averaged_and_have_no_control_variate(option: Any) -> None:
    method = Scaffold(TWO_STEPS, option=option, server_learning_rate=0.5)
    trial = Trial(method, Remembering([0], [[1], [3]]), (1, 3))
    trial.round(1)
    # Labels plus one, over two steps; the pass of option I leaves no trace.
    assert float(method.w_t[1] - method.w_1[1]) == 0.5 * (2 + 4)
    assert torch.allclose(method.w_t[:1], row(0.5 * 0.5 * (0.19 + 0.57)))
    assert len(method.c) == len(trial.state(0)["control"]) == 1


def test_batches_that_a_module_passes_over_are_no_steps() -> None:
    class Choosy(Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            passed_over = batch_idx == 1 or int(batch[1][0]) == 1
            return None if passed_over else super().training_step(batch, batch_idx)

    method = Scaffold(TWO_STEPS)
    trial = Trial(method, Choosy([0], [[1.0], [5.0]]))
    trial.round(1)
    # One step of the first client, whose gradient it is; none of the second.
    assert_close(torch.cat([trial.state(k)["control"] for k in (0, 1)]), -1.0, 0.0)
    assert_close(method.c, -0.5)


def test_a_round_moves_four_times_the_model_per_client() -> None:
    outcome = Trial(Scaffold(TWO_STEPS), Pull([0.0] * 1000, [[1.0] * 1000] * 3), (1, 1, 1)).round(1)
    scalars = 4 * 3 * 1000
    assert 4 * scalars <= outcome.metrics["comm/bytes"] <= 4 * scalars + 12 * 64
    assert outcome.metrics["comm/up_bytes"] == pytest.approx(outcome.metrics["comm/down_bytes"], abs=3 * 64)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"momentum": 0.9}, "--model SmallCNN is trained by SGD with momentum 0.9, .*: give --model.momentum 0$"),
        ({"weight_decay": 5e-4}, "by SGD with weight_decay 0.0005, .*: give --model.weight_decay 0$"),
        ({"learning_rate": 0.0}, "at learning rate 0.0, .* need one above 0"),
    ],
)
def test_what_is_not_plain_sgd_is_refused_before_the_run_folder_is_made(
    model: dict[str, float], message: str, fit_small: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fit_small(tmp_path / "run", method="Scaffold", model=SmallCNN(image_size=8, width=4, **model))
    assert not (tmp_path / "run").exists()


def test_another_optimiser_and_a_second_learning_rate_are_refused() -> None:
    class ByAdam(Pull):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    class TwoRates(Pull):
        def configure_optimizers(self) -> Any:
            other = torch.nn.Parameter(torch.zeros(1))
            return torch.optim.SGD([{"params": [self.w], "lr": 0.1}, {"params": [other], "lr": 0.2}])

    data: Any = None
    with pytest.raises(UsageError, match=r"--model ByAdam is trained by Adam, but .* need plain torch.optim.SGD"):
        Scaffold().prepare(ByAdam([0], [[1]]), data)
    with pytest.raises(UsageError, match=r"--model TwoRates is trained at learning rate 0\.1, 0\.2, but"):
        Scaffold().prepare(TwoRates([0], [[1]]), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server_learning_rate": 0.0}, "--method.server_learning_rate is 0.0: give a number above 0"),
        ({"training": LocalTraining(clip_norm=10.0)}, "--method.training.clip_norm is 10.0, but .*: give null"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scaffold(**options)
