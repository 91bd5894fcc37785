"""FedProx by hand: the pull is the gradient of a squared distance, is there before clipping, and is gone at mu = 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Pull, Remembering, Trial, row
from quadratic_clients import Quadratic, assert_close
from torch import Tensor

from flgen import FedProx, LocalTraining
from flgen.errors import UsageError

TWO_STEPS = LocalTraining(epochs=2, batch_size=1000)


class ByStep(Quadratic):
    """One client, whose target is another one in each step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0.5 * (self.w[0] - self.targets[batch_idx]).square().sum()


def test_the_worked_example() -> None:
    # gptfl.md, section 10, check 2: the first step leads from x to w, where the pull is no longer zero.
    x, w, mu = (4.0, -2.0), (1.0, 2.0), 0.1
    to_w = [start - 2 * (start - end) for start, end in zip(x, w, strict=True)]  # at rate 0.5
    method = FedProx(TWO_STEPS, mu=mu)
    Trial(method, ByStep(x, [to_w, [0, 1]], learning_rate=0.5), (1,)).round(1)
    assert_close(method.w_t, 0.65, 1.3)

    at = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    task = 0.5 * (at - torch.tensor([0, 1])).square().sum()
    loss = task + mu / 2 * (at - torch.tensor(x)).square().sum()
    assert_close(loss.detach(), 2.25)
    (gradient,) = torch.autograd.grad(loss, at)
    assert_close(gradient, 0.7, 1.4)
    assert_close((at.detach() - method.w_t) / 0.5, *gradient.tolist())
    # Pulled by the distance itself, not its square, the step would have ended elsewhere.
    unsquared = 0.5 * (at - torch.tensor([0, 1])).square().sum() + mu / 2 * (at - torch.tensor(x)).norm()
    assert_close(unsquared.detach(), 1.25)
    (other,) = torch.autograd.grad(unsquared, at)
    assert_close(other, 0.97, 1.04)
    assert not torch.allclose(at.detach() - 0.5 * other, method.w_t, atol=0.05)


def test_the_first_step_of_a_round_is_not_pulled_and_later_ones_are_pulled_to_what_was_sent() -> None:
    method = FedProx(TWO_STEPS, mu=0.5)
    trial = Trial(method, Quadratic([2], [[12], [-8]]), (1, 3))
    trial.round(1)
    # 2 -> 3 -> 3 + 0.1 (9 - 0.5 * 1), and its mirror image around 2
    assert_close(method.w_t, 0.25 * 3.85 + 0.75 * 0.15)
    x = 1.075
    trial.round(2)
    y = [x + 0.1 * (c - x) for c in (12, -8)]
    y = [w + 0.1 * ((c - w) - 0.5 * (w - x)) for w, c in zip(y, (12, -8), strict=True)]
    assert_close(method.w_t, 0.25 * y[0] + 0.75 * y[1])


def test_the_pull_is_clipped_with_the_gradient() -> None:
    # 0 -> 0.5 by a clipped step; there the pull 19 * 0.5 outweighs the gradient 9.5 - 10 + 0.5 = -9.5 to the bit.
    method = FedProx(LocalTraining(epochs=2, batch_size=1000, clip_norm=1.0), mu=19.0)
    Trial(method, Pull([0], [[10]], learning_rate=0.5), (1,)).round(1)
    assert torch.allclose(method.w_t, row(0.5), atol=1e-6)


def test_buffers_are_not_pulled() -> None:
    method = FedProx(TWO_STEPS, mu=0.5)
    Trial(method, Remembering([2], [[12], [-8]]), (1, 1)).round(1)
    assert torch.allclose(method.w_t[:1], row(2))
    assert float(method.w_t[1] - method.w_1[1]) == 3  # labels plus one, over two steps, averaged


def test_without_mu_nothing_is_done_to_a_gradient() -> None:
    method = FedProx(ONE_STEP, mu=0.0)
    trial = Trial(method, Pull([0], [[1]]), (1,))
    assert method.on_gradient(trial.job.federation.clients[0], {"weights": method.w_t}) is None


def test_it_aggregates_as_fedavg_does() -> None:
    assert FedProx().collection == "sample_weighted_sum"
    assert FedProx(weighting="uniform").collection == "sum"


@pytest.mark.parametrize("mu", [-0.1, float("nan")])
def test_a_negative_mu_is_refused(mu: float) -> None:
    with pytest.raises(UsageError, match=f"--method.mu is {mu}: give 0 or more"):
        FedProx(mu=mu)
