"""GS-WGAN by hand: penalty, clip and noise are exact, and the budget is that of whole clients and whole batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from digit_trial import digit_trial
from linear_gan import LinearDiscriminator, discriminators, gan_trial, judged_noise, plain_gan
from torch import Tensor

from flgen import GSWGAN, ImageGAN
from flgen.federation.interruption import ClientStepInterrupted
from flgen.privacy.accounting import epsilon_spent
from flgen.privacy.gradient_privacy import GradientPrivacy
from flgen.privacy.noise import NoiseSource

FAST: dict[str, Any] = {"batch_size": 6, "generator_learning_rate": 0.01, "discriminator_learning_rate": 0.02}
Z = GradientPrivacy(epsilon=None, noise_multiplier=0.7, gradient_clip=0.3)


def penalised(D: LinearDiscriminator, real: Tensor, fake: Tensor, draws: torch.Generator) -> Tensor:
    """The gradient of a linear critic is its vector, wherever the penalty is taken."""
    return D(fake).mean() - D(real).mean() + 10 * (D.v.norm() - 1).square()


def test_without_privacy_and_with_one_client_it_is_plain_wgan_gp() -> None:
    method = GSWGAN(local_steps=3, fake_batches=2, warm_up_steps=0, privacy=None, **FAST)
    trial = gan_trial(method, clients=1)
    for t in (1, 2, 3):
        trial.round(t)
    w, v = plain_gan(trial, 3, penalised, lambda logits: -logits.mean())
    assert torch.allclose(method.g.vector.view(3, 64), w, atol=1e-5)
    assert torch.allclose(discriminators(trial)[0], v, atol=1e-5)
    assert "privacy/epsilon" not in method.round_metrics(3)
    assert method.provenance() == {}


def test_the_penalty_is_taken_between_real_and_generated_images() -> None:
    class Quadratic(LinearDiscriminator):
        """1/2 ||x||^2, whose gradient is x."""

        def forward(self, images: Tensor) -> Tensor:
            return 0.5 * images.flatten(1).square().sum(dim=1) + 0 * self.v.sum()

    method = GSWGAN(warm_up_steps=0, gradient_penalty=3.0, **FAST)
    gan_trial(method, clients=2)
    method.D = Quadratic()
    real, fake = torch.full((4, 1, 8, 8), 1.0), torch.full((4, 1, 8, 8), 0.5)
    draws = torch.Generator().manual_seed(5)
    share = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(5)).flatten()
    length = 8 * (share + (1 - share) * 0.5)  # of 64 equal pixels
    expected = 8.0 - 32.0 + 3 * (length - 1).square().mean()
    loss = method.discriminator_loss(real, fake, draws).detach()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_an_answer_is_the_clipped_gradients_and_the_noise_of_its_stream() -> None:
    method = GSWGAN(warm_up_steps=0, privacy=Z, **FAST)
    trial = gan_trial(method, clients=2)
    v = torch.zeros(64)
    v[:2] = torch.tensor([3.0, 4.0])
    method.d_k.load(v)
    client = trial.job.federation.clients[1]
    sent = method.answer(client, torch.zeros(6, 1, 8, 8), 4)["feedback"].tensor
    std = 0.7 * 2 * 0.3 * math.sqrt(6)
    clipped = torch.zeros(64)
    clipped[:2] = torch.tensor([-0.18, -0.24])  # 5 is cut to 0.3
    exact = clipped.view(1, 1, 8, 8).expand(6, 1, 8, 8)
    noise = sent.double() - exact
    assert client.metrics["privacy/clipped"] == 1.0
    assert float(noise.std()) == pytest.approx(std, rel=0.1)
    for other in (NoiseSource.of_run(0), NoiseSource.of_run(1)):
        drawn = other.release(exact.double(), std, "feedback", round=4, client=1) - exact
        assert not torch.isclose(noise, drawn).any()  # of a clip that ends in other bits, or with another secret


def test_the_noise_of_two_runs_with_one_secret_does_not_cancel() -> None:
    def sent(direction: float) -> Tensor:
        method = GSWGAN(warm_up_steps=0, privacy=Z, **FAST)
        trial = gan_trial(method, clients=2)
        method.d_k.load(torch.full((64,), direction))
        upload = method.answer(trial.job.federation.clients[1], torch.zeros(6, 1, 8, 8), 4)
        return upload["feedback"].tensor.double()

    one, other = sent(1.0), sent(-1.0)
    assert torch.equal(one, sent(1.0))
    std = 0.7 * 2 * 0.3 * math.sqrt(6)
    between = one - other  # of opposite gradients of norm 0.3, each pixel 0.3 / 8
    assert float((between + 2 * 0.3 / 8).std()) == pytest.approx(math.sqrt(2) * std, rel=0.1)


def test_the_generator_goes_along_what_was_sent() -> None:
    method = GSWGAN(warm_up_steps=0, privacy=Z, **FAST)
    trial = gan_trial(method, clients=3, clients_per_round=1)
    (client,) = trial.job.federation.cohort(1)
    trial.round(1)
    method.d_k.load(trial.state(client.id)["discriminator"])
    F = method.answer(client, torch.zeros(6, 1, 8, 8), 1)["feedback"].tensor.view(6, 64)
    assert torch.allclose(method.g.grad.view(3, 64), judged_noise(method, 1).T @ F / 6, atol=1e-5)


def test_what_is_spent_is_that_of_the_client_asked_most_often() -> None:
    method = GSWGAN(warm_up_steps=0, privacy=GradientPrivacy(epsilon=4.0, delta=1e-5), **FAST)
    trial = gan_trial(method, clients=3, clients_per_round=1, rounds=6)
    asked = [trial.job.federation.cohort(t)[0].id for t in range(1, 7)]
    most = max(asked.count(client) for client in asked)
    assert 1 < most < 6
    for t in range(1, 7):
        assert method.exhausted(t) == ""
        trial.round(t)
    spent = method.round_metrics(6)["privacy/epsilon"]
    assert spent == pytest.approx(4.0, rel=1e-6)
    assert spent == epsilon_spent(method.budget.z, 1e-5, most)
    beyond = next(t for t in range(7, 100) if trial.job.federation.most_rounds(t) > most)
    assert method.exhausted(beyond).startswith(f"round {beyond} would spend epsilon ")
    assert method.provenance()["privacy"]["unit"] == "client"


def test_a_run_that_is_continued_for_longer_keeps_its_noise() -> None:
    def run_of(rounds: int) -> GSWGAN:
        method = GSWGAN(warm_up_steps=0, **FAST)
        gan_trial(method, clients=2, rounds=rounds)
        return method

    short, long = run_of(2), run_of(8)
    z = short.budget.z
    assert long.budget.z > z
    long.load_state_dict(short.state_dict())
    assert long.budget.z == z
    assert long.exhausted(2) == ""
    assert long.exhausted(3) != ""


def warm(steps: int, seen: list[Any] | None = None) -> Any:
    method = GSWGAN(local_steps=2, warm_up_steps=steps, privacy=None, batch_size=4, fake_batches=1)
    trial = digit_trial(method, 2, ImageGAN(image_size=8, latent=4, width=4, discriminator_width=4))
    g = method.g.copy()
    for client in trial.job.federation.clients:
        client.state = method.initial_state(client)
        before = client.state["discriminator"]
        method.on_local_step = lambda done, steps: None if seen is None else seen.append((done, steps))  # type: ignore
        method.warm_up(client)
        assert not torch.equal(client.state["discriminator"], before)
    assert torch.equal(method.g.vector, g)
    return trial


def test_discriminators_are_warmed_up_alone_and_the_servers_generator_takes_no_notice() -> None:
    seen: list[Any] = []
    states = [[client.state for client in warm(steps, seen).job.federation.clients] for steps in (3, 3, 4)]
    assert seen[:6] == [(step, 6) for step in range(1, 7)]
    for k in (0, 1):
        assert torch.equal(states[0][k]["discriminator"], states[1][k]["discriminator"])
        assert not torch.equal(states[0][k]["discriminator"], states[2][k]["discriminator"])
        assert float(states[0][k]["optimizer.step"]) == 6


def test_a_client_is_warmed_up_before_its_first_answer_and_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    method = GSWGAN(warm_up_steps=2, privacy=None, **FAST)
    trial = gan_trial(method, clients=3, clients_per_round=1)
    warmed: list[int] = []
    warm_up = GSWGAN.warm_up
    monkeypatch.setattr(GSWGAN, "warm_up", lambda self, client: (warmed.append(client.id), warm_up(self, client)))
    asked = []
    for t in range(1, 9):
        asked.append(trial.job.federation.cohort(t)[0].id)
        trial.round(t)
    assert warmed == list(dict.fromkeys(asked))
    assert len(warmed) < len(asked)


def test_a_stop_signal_in_a_warm_up_leaves_the_server_as_it_was() -> None:
    method = GSWGAN(local_steps=1, fake_batches=1, warm_up_steps=5, privacy=None, **FAST)
    trial = gan_trial(method, clients=2)
    g, (client, _) = method.g.copy(), trial.job.federation.clients

    def stop(done: int, steps: int) -> None:
        if done == 3:
            raise ClientStepInterrupted

    client.state = method.initial_state(client)
    method.on_local_step = stop
    with pytest.raises(ClientStepInterrupted):
        method.warm_up(client)
    assert torch.equal(method.g.vector, g)
    trial.round(1)
    again = GSWGAN(local_steps=1, fake_batches=1, warm_up_steps=5, privacy=None, **FAST)
    gan_trial(again, clients=2).round(1)
    assert torch.equal(method.g.vector, again.g.vector)
