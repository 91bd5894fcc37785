"""FedOpt by hand: each rule's two steps, alone and in rounds, its defaults, its moments in a checkpoint."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Pull, Remembering, Trial, row
from quadratic_clients import Quadratic, assert_close

from flgen import FedOpt
from flgen.errors import UsageError
from flgen.methods.fedopt import server_step

UPDATES = ((0.1, -0.2), (0.05, 0.4))
RATES = {"beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
# gptfl.md, section 10, check 4: x_2 and x_3 from x_1 = (1, 1) at eta_g = 0.1.
WORKED = [
    ("fedadam", RATES, ((1.0905028312, 0.9048739483), (1.2054505515, 0.9530270753))),
    ("fedyogi", RATES, ((1.0904987562, 0.904875078), (1.2050184444, 0.9529808704))),
    ("fedadagrad", {"beta_1": 0.0, "tau": 1e-3}, ((1.0990049999, 0.90049875), (1.1433281482, 0.9897416927))),
    ("fedadam_torch", RATES, ((1.099009901, 0.9004975124), (1.1911869814, 0.9369432057))),
    # By hand: m is (0.1, -0.2), then (0.9 * 0.1 + 0.05, -0.9 * 0.2 + 0.4).
    ("fedavgm", {"beta_1": 0.9}, ((1.01, 0.98), (1.024, 1.002))),
]


@pytest.mark.parametrize(("rule", "rates", "course"), WORKED)
def test_the_worked_example_of_each_rule(rule: Any, rates: dict[str, float], course: Any) -> None:
    x = torch.ones(2, dtype=torch.float64)
    moments: dict[str, torch.Tensor] = {}
    for update, expected in zip(UPDATES, course, strict=True):
        before = {name: moment.clone() for name, moment in moments.items()}
        step, after = server_step(rule, torch.tensor(update, dtype=torch.float64), moments, eta_g=0.1, **rates)
        assert all(torch.equal(moments[name], moment) for name, moment in before.items())
        x, moments = x + step, after
        assert_close(x, *expected)


@pytest.mark.parametrize(("rule", "rates", "course"), WORKED)
def test_the_worked_example_of_each_rule_in_rounds(rule: Any, rates: dict[str, float], course: Any) -> None:
    method = FedOpt(ONE_STEP, rule, server_learning_rate=0.1, **rates)
    # A step at rate 1 ends on the target: the two clients' updates have the wanted mean.
    model = Quadratic([1, 1], [[0, 0], [0, 0]], learning_rate=1.0)
    trial = Trial(method, model, (1, 3))
    for t, (update, expected) in enumerate(zip(UPDATES, course, strict=True), start=1):
        aim = method.w_t + torch.tensor(update, dtype=torch.float64)
        model.targets = torch.stack([aim + 3, aim - 1])
        trial.round(t)
        assert_close(method.w_t, *expected)


def test_plain_steps_go_their_share_of_the_way_to_the_mean() -> None:
    method = FedOpt(ONE_STEP, "sgd", server_learning_rate=0.5)
    Trial(method, Quadratic([0.5, 0.5], [[1, -2], [3, 0], [-1, 4]], learning_rate=1.0), (10, 30, 60)).round(1)
    assert_close(method.w_t, 0.45, 1.35)  # half way from (0.5, 0.5) to (0.4, 2.2)
    assert method.moments == {}


def test_momentum_at_rate_1_begins_as_the_mean() -> None:
    method = FedOpt(ONE_STEP, "fedavgm")
    Trial(method, Quadratic([0.5, 0.5], [[1, -2], [3, 0], [-1, 4]], learning_rate=1.0), (10, 30, 60)).round(1)
    assert_close(method.w_t, 0.4, 2.2)


@pytest.mark.parametrize("rule", ["fedadam", "sgd"])
def test_buffers_take_the_average(rule: Any) -> None:
    method = FedOpt(ONE_STEP, rule, server_learning_rate=0.1)
    Trial(method, Remembering([0], [[10], [-2]]), (1, 3)).round(1)
    assert float(method.w_t[1] - method.w_1[1]) == 0.25 * 1 + 0.75 * 2
    assert all(len(moment) == 1 for moment in method.moments.values())


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedadam_torch"])
def test_moments_go_on_after_a_checkpoint(rule: Any) -> None:
    def trial() -> Trial:
        return Trial(FedOpt(ONE_STEP, rule, server_learning_rate=0.1), Pull([0, 1], [[10, 0], [-2, 5]]), (1, 3))

    whole, first, second = trial(), trial(), trial()
    for t in (1, 2, 3):
        whole.round(t)
    for t in (1, 2):
        first.round(t)
    file = io.BytesIO()
    torch.save(first.method.state_dict(), file)
    file.seek(0)
    second.method.load_state_dict(torch.load(file, weights_only=True))
    without = second.method.w_t.clone()
    second.round(3)
    assert torch.equal(second.method.w_t, whole.method.w_t)
    assert not torch.equal(second.method.w_t, without)
    for name, moment in whole.method.moments.items():
        assert torch.equal(second.method.moments[name], moment), name


@pytest.mark.parametrize(
    ("rule", "defaults"),
    [
        ("fedadam", (0.01, 0.9, 0.99, 1e-3)),
        ("fedyogi", (0.01, 0.9, 0.99, 1e-3)),
        ("fedadagrad", (0.01, 0.0, None, 1e-3)),
        ("fedadam_torch", (0.01, 0.9, 0.999, 1e-8)),
        ("fedavgm", (1.0, 0.9, None, None)),
        ("sgd", (1.0, None, None, None)),
    ],
)
def test_every_rule_has_its_defaults_and_can_be_given_them_again(rule: Any, defaults: tuple[float | None, ...]) -> None:
    method = FedOpt(rule=rule)
    again = FedOpt(rule=rule, **{name: getattr(method, name) for name in ("server_learning_rate", *RATES)})
    for made in (method, again):
        assert (made.server_learning_rate, made.beta_1, made.beta_2, made.tau) == defaults


def test_a_beta_of_zero_is_not_taken_for_none() -> None:
    method = FedOpt(ONE_STEP, "fedavgm", beta_1=0.0)
    trial = Trial(method, Pull([0], [[10]]), (1,))
    for t in (1, 2):
        trial.round(t)
    assert torch.allclose(method.w_t, row(1.9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server_learning_rate": 0.0}, "--method.server_learning_rate is 0.0: give a number above 0"),
        ({"beta_1": 1.0}, "--method.beta_1 is 1.0: give 0 or more, below 1"),
        ({"beta_2": -0.1}, "--method.beta_2 is -0.1: give 0 or more, below 1"),
        ({"tau": 0.0}, "--method.tau is 0.0: give a number above 0"),
        (
            {"rule": "fedavgm", "beta_2": 0.9},
            "--method.beta_2 is 0.9, but --method.rule fedavgm has none: leave it out",
        ),
        ({"rule": "sgd", "beta_1": 0.9}, "--method.beta_1 is 0.9, but --method.rule sgd has none: leave it out"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FedOpt(**options)
