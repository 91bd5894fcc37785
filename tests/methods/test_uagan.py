"""UA-GAN by hand: the generator's gradient is autograd's through the discriminator whose odds are the mean odds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from linear_gan import LinearGAN, discriminators, gan_trial, judged_noise
from peer_trial import Trial

from flgen import MDGAN, UAGAN, Digits, Dirichlet, SecureAggregation, Star
from flgen.errors import UsageError

FAST = {"batch_size": 6, "generator_learning_rate": 0.01, "discriminator_learning_rate": 0.02}


@pytest.mark.parametrize("kind", ["non_saturating", "saturating"])
def test_the_generators_gradient_is_autograds_through_the_pooled_discriminator(kind: Any) -> None:
    method = UAGAN(local_steps=2, generator_loss=kind, **FAST)
    trial = Trial(method, LinearGAN(), data=Digits(), partition=Dirichlet(clients=3, alpha=0.3))
    n = torch.tensor([client.samples for client in trial.job.federation.clients], dtype=torch.float64)
    assert len(set(n.tolist())) == 3
    w = method.g.copy().view(3, 64).double().requires_grad_()
    trial.round(1)
    D = torch.stack([torch.sigmoid(judged_noise(method, 1).double() @ w @ v.double()) for v in discriminators(trial)])
    pi = (n / n.sum()).view(3, 1)
    h = (pi * D / (1 - D)).sum(dim=0)
    D_ua = h / (1 + h)
    loss = (-D_ua.log() if kind == "non_saturating" else (1 - D_ua).log()).mean()
    (gradient,) = torch.autograd.grad(loss, w)
    assert torch.allclose(method.g.grad.view(3, 64).double(), gradient, atol=1e-7)
    assert gradient.abs().max() > 1e-3
    assert method.round_metrics(1)["train/generator_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_pooling_one_client_is_md_gan() -> None:
    methods = [UAGAN(**FAST), MDGAN(**FAST)]
    for method in methods:
        trial = gan_trial(method, clients=1)
        for t in (1, 2, 3):
            trial.round(t)
    assert torch.allclose(methods[0].g.vector, methods[1].g.vector, atol=1e-5)


def test_of_two_opinions_the_one_that_takes_an_image_for_real_counts() -> None:
    # D = 0.9 and 0.1: odds 9 and 1/9, pooled 41/9, so D_ua = 0.82 where the mean of D is 0.5.
    method = UAGAN(**FAST)
    trial = gan_trial(method, clients=2)
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 0, 0] = 1.0
    clients = trial.job.federation.clients
    odds, slopes = [], []
    for client, D in zip(clients, (0.9, 0.1), strict=True):
        v = torch.zeros(64)
        v[0] = torch.logit(torch.tensor(D))
        method.d_k.load(v)
        sent = method.answer(client, x, 1)
        odds.append(math.exp(8) * float(sent["odds"].tensor))
        slopes.append(math.exp(8) * float(sent["odds_gradient"].tensor[0, 0, 0, 0]))
    assert odds == pytest.approx([9.0, 1 / 9], rel=1e-5)
    assert slopes == pytest.approx([9 * 2.1972246, -2.1972246 / 9], rel=1e-5)
    h = sum(odds) / 2
    assert h / (1 + h) == pytest.approx(0.82, rel=1e-5)


def test_odds_are_sent_as_shares_of_the_largest() -> None:
    method = UAGAN(largest_log_odds=3.0, **FAST)
    trial = gan_trial(method, clients=2)
    method.d_k.load(torch.full((64,), 10.0))
    x = torch.stack([torch.full((1, 8, 8), value) for value in (1.0, -1.0)])
    sent = method.answer(trial.job.federation.clients[0], x, 1)
    assert torch.allclose(sent["odds"].tensor, torch.tensor([0.0, -6.0]).exp())
    # The direction of the log-odds beyond the bound is kept.
    expected = 10 * torch.tensor([0.0, -6.0]).exp().view(2, 1, 1, 1).expand(2, 1, 8, 8)
    assert torch.allclose(sent["odds_gradient"].tensor, expected)


@pytest.mark.parametrize("secure", [None, SecureAggregation()])
def test_images_that_all_clients_are_sure_of_are_summed_without_a_cut(secure: SecureAggregation | None) -> None:
    method = UAGAN(topology=Star(secure_aggregation=secure), **FAST)
    trial = gan_trial(method, clients=3)
    b = method.largest_log_odds
    X_g = torch.stack([torch.full((1, 8, 8), value) for value in (1.0, -1.0)])

    def opened(samples: int, v: float) -> Any:
        clients = trial.job.federation.clients
        collector = method.topology.open_round(
            1,
            method.collection,
            samples={client.id: samples for client in clients},
            rank_of={client.id: 0 for client in clients},
            download={},
            streams=trial.job.federation.streams,
        )
        method.d_k.load(torch.full((64,), v))
        for client in clients:
            collector.add(client.id, samples, method.answer(client, X_g, 1))
        return collector.collect([collector.roll_call()])

    uploads = opened(10**6, 3.5)  # log-odds of 224 and -224
    assert uploads.metrics.get("privacy/clipped_fraction", 0.0) == 0.0
    F = method.feedback(uploads)
    D_ua = torch.sigmoid(torch.tensor([b, -b], dtype=torch.float64))
    step = 2.0 ** -(32 if secure is None else 20)
    assert torch.allclose(F[0].double(), 3.5 * (D_ua[0] - 1).expand(1, 8, 8), rtol=3 * step)
    if secure is None:
        assert torch.allclose(F[1].double(), 3.5 * (D_ua[1] - 1).expand(1, 8, 8), rtol=1e-2)
    assert F[1].abs().max() <= 3.5 + step * math.exp(2 * b)  # rounding alone does not blow it up


def test_a_bound_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--method.largest_log_odds is 0\.0: give a number above 0"):
        UAGAN(largest_log_odds=0.0)
