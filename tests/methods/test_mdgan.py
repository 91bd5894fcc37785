"""MD-GAN by hand: the generator's gradient is that of the mean loss, and discriminators change places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import dense_bytes, digit_trial, traffic
from linear_gan import LinearGAN, cross_entropy, discriminators, gan_trial, judged_noise, plain_gan

from flgen import MDGAN, ImageGAN, SmallCNN
from flgen.errors import UsageError
from flgen.wire.codecs import decode_payload, encode_payload

FAST = {"batch_size": 6, "generator_learning_rate": 0.01, "discriminator_learning_rate": 0.02}


@pytest.mark.parametrize("kind", ["non_saturating", "saturating"])
def test_the_generators_gradient_is_that_of_the_mean_loss_over_clients(kind: Any) -> None:
    method = MDGAN(local_steps=2, generator_loss=kind, swap_epochs=None, **FAST)
    trial = gan_trial(method, clients=3)
    w = method.g.copy().view(3, 64).requires_grad_()
    outcome = trial.round(1)
    D = [torch.sigmoid(judged_noise(method, 1) @ w @ v) for v in discriminators(trial)]
    losses = [-d.log() if kind == "non_saturating" else (1 - d).log() for d in D]
    loss = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(loss, w)
    assert torch.allclose(method.g.grad.view(3, 64), gradient, atol=1e-7)
    assert gradient.abs().max() > 1e-3
    assert outcome.metrics["train/generator_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_with_one_client_it_is_a_plain_gan() -> None:
    method = MDGAN(local_steps=3, fake_batches=2, **FAST)
    trial = gan_trial(method, clients=1)
    for t in (1, 2, 3):
        trial.round(t)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return -torch.sigmoid(logits).log().mean()

    w, v = plain_gan(trial, 3, cross_entropy, loss)
    assert torch.allclose(method.g.vector.view(3, 64), w, atol=1e-5)
    assert torch.allclose(discriminators(trial)[0], v, atol=1e-5)


def test_discriminators_begin_differently_and_clients_that_are_not_asked_keep_theirs() -> None:
    trial = gan_trial(MDGAN(swap_epochs=None, **FAST), clients=3, clients_per_round=1)
    first, second = (trial.job.federation.cohort(t)[0].id for t in (1, 2))
    assert first != second
    trial.round(1)
    kept = trial.state(first)["discriminator"]
    trial.round(2)
    assert torch.equal(trial.state(first)["discriminator"], kept)
    initial = [trial.method.initial_state(client)["discriminator"] for client in trial.job.federation.clients]
    assert len({tuple(v.tolist()) for v in initial}) == 3


def test_discriminators_move_on_in_one_circle_every_m_e_over_b_rounds() -> None:
    method = MDGAN(swap_epochs=2.0, batch_size=100)
    trial = gan_trial(method, clients=5)
    m = sum(client.samples for client in trial.job.federation.clients) / 5
    period = round(2 * m / 100)
    assert period > 2
    assert [t for t in range(1, 3 * period + 1) if method.hand_over(t)] == [period, 2 * period, 3 * period]
    circles = [method.hand_over(t) for t in (period, 2 * period)]
    for moves in circles:
        at, visited = 0, []
        for _ in range(5):
            visited.append(at)
            at = moves[at]
        assert (at, sorted(visited)) == (0, [0, 1, 2, 3, 4])
    assert circles[0] != circles[1]


@pytest.mark.parametrize(("clients", "epochs"), [(1, 1.0), (4, None)])
def test_nobody_moves_alone_or_if_it_is_not_wanted(clients: int, epochs: float | None) -> None:
    method = MDGAN(swap_epochs=epochs, batch_size=500)
    gan_trial(method, clients=clients)
    assert [method.hand_over(t) for t in range(1, 10)] == [{}] * 9


def test_after_a_round_of_moves_every_client_has_the_discriminator_of_another_and_its_own_moments() -> None:
    stay, move = MDGAN(swap_epochs=None, **FAST), MDGAN(swap_epochs=0.001, **FAST)
    trials = [gan_trial(method, clients=4) for method in (stay, move)]
    outcomes = [trial.round(1) for trial in trials]
    for giver, receiver in move.hand_over(1).items():
        before, after = trials[0].state(receiver), trials[1].state(receiver)
        assert torch.equal(after["discriminator"], trials[0].state(giver)["discriminator"])
        assert not torch.equal(after["discriminator"], before["discriminator"])
        assert torch.equal(after["optimizer.exp_avg"], before["optimizer.exp_avg"])
    assert [row.link for row in outcomes[0].ledger] == ["server->client", "client->server"]
    (row,) = (row for row in outcomes[1].ledger if row.link == "client->client")
    assert (row.messages, row.bytes) == (4, 4 * dense_bytes("discriminator", 64))


def test_only_the_weights_are_handed_over() -> None:
    method = MDGAN(**FAST)
    trial = gan_trial(method, clients=2)
    trial.round(1)
    handed = decode_payload(encode_payload(method.handed_over(trial.state(0))))
    assert list(handed) == ["discriminator"]
    assert torch.equal(handed["discriminator"], trial.state(0)["discriminator"])


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("float16", 2)])
def test_images_travel_as_narrow_as_asked(dtype: Any, item: int) -> None:
    trial = gan_trial(MDGAN(local_steps=2, fake_batches=2, image_dtype=dtype, swap_epochs=None, **FAST), clients=2)
    down, up = traffic(trial.round(1))
    shape = (1, 8, 8)
    assert down == 2 * (dense_bytes("X_d", 12, *shape, item=item) + dense_bytes("X_g", 6, *shape, item=item))
    assert up == 2 * dense_bytes("feedback", 6, *shape, item=item)


def test_what_it_draws_with_and_what_it_saves_is_the_generator() -> None:
    method = MDGAN(batch_size=4, recalibration_batches=2)
    trial = digit_trial(method, 2, ImageGAN(image_size=8, latent=4, width=4, discriminator_width=4))
    for t in (1, 2):
        trial.round(t)
    drawn = method.samples(5, 2)["dense"]
    assert (drawn.shape, drawn.dtype) == ((5, 1, 8, 8), torch.uint8)
    other = MDGAN(batch_size=4, recalibration_batches=2)
    digit_trial(other, 2, ImageGAN(image_size=8, latent=4, width=4, discriminator_width=4))
    assert not torch.equal(other.samples(5, 2)["dense"], drawn)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.samples(5, 2)["dense"], drawn)
    small = MDGAN(batch_size=4)
    gan_trial(small, 2)
    with pytest.raises(
        UsageError, match=r"the checkpoint has .* weights, this generator 192: give the --model options"
    ):
        small.load_state_dict(method.state_dict())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"local_steps": 0}, "--method.local_steps is 0: give 1 or more"),
        ({"fake_batches": 0}, "--method.fake_batches is 0: give 1 or more"),
        (
            {"local_steps": 2, "fake_batches": 3},
            "--method.fake_batches is 3, --method.local_steps 2: a step takes one batch, the others would be sent for "
            "nothing; give as many batches as steps, or fewer",
        ),
        ({"swap_epochs": 0.0}, "--method.swap_epochs is 0.0: give a number above 0"),
        ({"betas": (0.5, 1.0)}, "--method.betas is 0.5, 1: give 0 or more, below 1"),
        ({"generator_learning_rate": 0.0}, "--method.generator_learning_rate is 0.0: give a number above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        MDGAN(**options)
    assert str(caught.value) == said


def test_a_model_without_a_discriminator_is_refused() -> None:
    trial = gan_trial(MDGAN(), 2)
    with pytest.raises(
        UsageError, match=r"--model SmallCNN cannot be trained by MDGAN .*: use a GAN, such as ImageGAN"
    ):
        trial.method.prepare(SmallCNN(image_size=8, width=4), trial.job.data)
    trial.method.prepare(LinearGAN(), trial.job.data)
