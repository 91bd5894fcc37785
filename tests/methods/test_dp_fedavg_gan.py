"""DP-FedAvg-GAN by hand: a client's steps, the clip, the noise, the server's steps, and the budget that ends a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from digit_trial import dense_bytes, traffic
from peer_trial import Trial
from torch import Tensor

from flgen import IID, Digits, DPFedAvgGAN, ImageGAN, SecureAggregation, SmallCNN, Star
from flgen.data.image_set import to_unit_range
from flgen.errors import UsageError
from flgen.experiment.records import read_metrics
from flgen.federation.flat_parameters import flatten_in_place
from flgen.methods.dp_fedavg_gan import generator_loss
from flgen.models.discriminator import discriminator_loss
from flgen.privacy.accounting import epsilon_spent, noise_multiplier
from flgen.privacy.noise import NoiseSource
from flgen.privacy.update_privacy import UpdatePrivacy


def small_gan() -> ImageGAN:
    return ImageGAN(image_size=8, latent=4, width=4, discriminator_width=4)


def trial(clients: int = 1, rounds: int = 4, clients_per_round: int | None = None, **options: Any) -> Trial:
    small = {"local_steps": 2, "batch_size": 8, "generator_steps": 2, "generator_batch_size": 8}
    method = DPFedAvgGAN(**{**small, "recalibration_batches": 2, "privacy": None, **options})
    shares = IID(clients=clients)
    return Trial(
        method, small_gan(), data=Digits(), partition=shares, rounds=rounds, clients_per_round=clients_per_round
    )


def sent_by_all(begun: Trial) -> Tensor:
    """What clients send in round 1, (K, d)."""
    method = begun.method
    method.on_local_step = lambda done, steps: None
    download = {"generator": method.theta_G.clone(), "discriminator": method.theta_D.clone()}
    uploads = [method.client_step(client, download, 1) for client in begun.job.federation.clients]
    return torch.stack([upload["update"].tensor for upload in uploads])


def steps_by_hand(gan: Any, optimizer: torch.optim.Optimizer, client: Any, steps: int) -> None:
    """Take a client's steps of the discriminator in round 1."""
    z = client.random("noise", 1)
    gan.train()
    for images, _ in client.data.batches(8, client.random("reals", 1), steps=steps):
        with torch.no_grad():
            fake = gan.generator(gan.generator.noise(8, z))
        real_logits, fake_logits = gan.discriminator(to_unit_range(images)), gan.discriminator(fake)
        D, D_fake = torch.sigmoid(real_logits), torch.sigmoid(fake_logits)
        optimizer.zero_grad()
        (-D.log().mean() - (1 - D_fake).log().mean()).backward()
        optimizer.step()


@pytest.mark.parametrize(("optimizer", "steps"), [("sgd", 1), ("adam", 1), ("sgd", 3), ("adam", 3)])
def test_one_client_without_privacy_takes_plain_steps_and_then_the_server_does(optimizer: Any, steps: int) -> None:
    options = {"optimizer": optimizer, "local_steps": steps, "learning_rate": 0.01, "betas": (0.4, 0.9)}
    federated = trial(**options, generator_steps=2, generator_learning_rate=0.02)
    (client,) = federated.job.federation.clients
    federated.round(1)

    gan, streams = small_gan(), client.streams
    gan.reset_weights(streams.torch("weights"))
    parameters = list(gan.discriminator.parameters())
    made = torch.optim.SGD(parameters, 0.01) if optimizer == "sgd" else torch.optim.Adam(parameters, 0.01, (0.4, 0.9))
    steps_by_hand(gan, made, client, steps)
    torch.testing.assert_close(federated.method.theta_D, flatten_in_place(parameters), rtol=1e-4, atol=1e-6)

    adam = torch.optim.Adam(gan.generator.parameters(), 0.02, (0.4, 0.9))
    z = streams.torch("generator noise", round=1)
    for _ in range(2):
        adam.zero_grad()
        (-torch.sigmoid(gan.discriminator(gan.generator(gan.generator.noise(8, z)))).log().mean()).backward()
        adam.step()
    theta_G = flatten_in_place(list(gan.generator.parameters()))
    torch.testing.assert_close(federated.method.theta_G, theta_G, rtol=1e-3, atol=1e-4)


def test_losses_are_those_of_the_log_odds() -> None:
    real, fake = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, -math.log(3), math.log(4)])
    expected = (math.log(2) + math.log(4 / 3)) / 2 + (math.log(2) + math.log(4 / 3) + math.log(5)) / 3
    assert float(discriminator_loss(real, fake)) == pytest.approx(expected)
    assert float(generator_loss(fake)) == pytest.approx((math.log(2) + math.log(4) + math.log(5 / 4)) / 3)


def test_the_discriminator_moves_by_the_mean_of_the_updates() -> None:
    federated, watched = trial(clients=3), trial(clients=3)
    federated.round(1)
    moved = federated.method.theta_D.double() - watched.method.theta_D.double()
    torch.testing.assert_close(moved, sent_by_all(watched).double().mean(0), rtol=0, atol=1e-7)


def test_momentum_keeps_a_share_of_the_last_movement() -> None:
    options = {"server_learning_rate": 0.5, "server_momentum": 0.9}
    federated, plain = trial(**options), trial(server_learning_rate=0.5)
    start = plain.method.theta_D.double()
    federated.round(1)
    plain.round(1)
    torch.testing.assert_close(federated.method.theta_D, plain.method.theta_D)
    (Delta,) = sent_by_all(trial()).double()
    torch.testing.assert_close(plain.method.theta_D.double() - start, 0.5 * Delta, rtol=0, atol=1e-7)
    for each in (federated, plain):
        each.round(2)
    difference = federated.method.theta_D.double() - plain.method.theta_D.double()
    torch.testing.assert_close(difference, 0.5 * 0.9 * Delta, rtol=0, atol=1e-7)


def test_updates_are_clipped_and_the_share_of_those_is_reported() -> None:
    norms = sent_by_all(trial(clients=4)).double().norm(dim=1)
    S = float(norms.median())
    privacy = UpdatePrivacy(epsilon=None, noise_multiplier=1e-9, update_clip=S)
    clipped = sent_by_all(trial(clients=4, privacy=privacy)).double()
    torch.testing.assert_close(clipped.norm(dim=1), norms.clamp(max=S), rtol=1e-6, atol=0)
    metrics = trial(clients=4, privacy=privacy).round(1).metrics
    assert metrics["privacy/clipped"] == float((norms > S).double().mean())
    assert 0 < metrics["privacy/clipped"] < 1
    assert "privacy/clipped" not in trial(clients=4).round(1).metrics


@pytest.mark.parametrize("secure", [False, True])
def test_noise_is_exactly_that_of_the_multiplier_and_the_clip(secure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[tuple[torch.Tensor, float, torch.Tensor]] = []
    release = NoiseSource.release

    def overheard(source: NoiseSource, exact: torch.Tensor, std: float, *name: Any, **more: Any) -> torch.Tensor:
        released.append((exact, std, release(source, exact, std, *name, **more)))
        return released[-1][2]

    monkeypatch.setattr(NoiseSource, "release", overheard)
    K, S, sigma = 3, 0.01, 2.0
    privacy = UpdatePrivacy(epsilon=None, noise_multiplier=sigma, update_clip=S)
    star = Star(secure_aggregation=SecureAggregation(fraction_bits=24) if secure else None)
    federated, watched = trial(K, privacy=privacy, topology=star), trial(K, privacy=privacy)
    start = watched.method.theta_D.double()
    federated.round(1)
    d = len(start)
    sensitivity = S + math.sqrt(d) * 2.0 ** -(25 if secure else 33)
    ((exact, std, noisy),) = released
    assert std == pytest.approx(sigma * sensitivity)
    torch.testing.assert_close(exact, sent_by_all(watched).double().sum(0), rtol=0, atol=2e-7)
    moved = federated.method.theta_D.double() - start
    torch.testing.assert_close(moved, noisy / K, rtol=0, atol=2e-7)
    assert float((noisy - exact).std()) == pytest.approx(sigma * S, rel=0.1)
    assert float((noisy - exact).norm()) > K * S  # or the comparison would not see it


def test_a_secret_names_other_noise_than_the_seed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    moved = []
    for key in (None, str(secret)):
        privacy = UpdatePrivacy(epsilon=None, noise_multiplier=1.0, noise_key=key)
        federated = trial(privacy=privacy)
        federated.round(1)
        moved.append(federated.method.theta_D)
        said = federated.method.provenance()["privacy"]["noise_from"]
        assert said == ("the run's seed (simulation)" if key is None else "a secret file")
    assert not torch.allclose(*moved)
    with pytest.raises(UsageError, match=r"--method.privacy.noise_key .*missing: cannot be read"):
        trial(privacy=UpdatePrivacy(noise_key=str(tmp_path / "missing"))).method.exhausted(1)


def test_planned_rounds_spend_the_budget_and_no_more() -> None:
    federated = trial(rounds=4, privacy=UpdatePrivacy(epsilon=3.0, delta=1e-5))
    method = federated.method
    z = noise_multiplier(3.0, 1e-5, 4)
    spent = [method.round_metrics(t)["privacy/epsilon"] for t in (1, 2, 4)]
    assert spent == pytest.approx([epsilon_spent(z, 1e-5, t) for t in (1, 2, 4)])
    assert spent[-1] == pytest.approx(3.0, rel=1e-6)
    assert method.exhausted(4) == ""
    assert method.exhausted(5).startswith("round 5 would spend epsilon 3.")
    record = method.provenance()["privacy"]
    assert (record["unit"], record["noise_multiplier"], record["budget_epsilon"]) == ("client", pytest.approx(z), 3.0)


def test_without_privacy_nothing_is_claimed_and_nothing_ends_the_run() -> None:
    method = trial().method
    assert method.exhausted(10**6) == ""
    assert method.provenance() == {}
    assert "privacy/epsilon" not in method.round_metrics(1)


def test_a_client_pays_for_the_rounds_that_it_takes_part_in() -> None:
    privacy = UpdatePrivacy(epsilon=3.0)
    federated = trial(clients=6, rounds=8, clients_per_round=2, privacy=privacy)
    federation = federated.job.federation
    cohorts = [[client.id for client in federation.cohort(t)] for t in range(1, 9)]
    most = max(sum(k in cohort for cohort in cohorts) for k in range(6))
    assert 1 < most < 8
    assert federated.method.round_metrics(8)["privacy/epsilon"] == pytest.approx(3.0, rel=1e-6)
    assert federated.method.budget.z == pytest.approx(noise_multiplier(3.0, 1e-5, most))


def test_noise_that_overspends_at_once_is_refused() -> None:
    with pytest.raises(UsageError, match="the first release would spend epsilon"):
        trial(privacy=UpdatePrivacy(epsilon=1.0, noise_multiplier=0.1))


def test_sums_whose_rounding_is_not_counted_are_refused_with_privacy_alone() -> None:
    privacy = UpdatePrivacy(epsilon=3.0)
    with pytest.raises(UsageError, match=r"--method.topology.reduction fast rounds sums by an amount that the sensit"):
        trial(privacy=privacy, topology=Star(reduction="fast"))
    trial(topology=Star(reduction="fast"))
    hidden = Star(reduction="fast", secure_aggregation=SecureAggregation())  # which has a fixed point of its own
    trial(clients=3, privacy=privacy, topology=hidden)


def test_a_run_ends_with_its_budget(fit_small: Any, tmp_path: Path) -> None:
    within = epsilon_spent(2.0, 1e-5, 2)
    privacy = UpdatePrivacy(epsilon=1.01 * within, noise_multiplier=2.0)
    ended = fit_small(tmp_path / "run", method="DPFedAvgGAN", rounds=5, method_options={"privacy": privacy})
    assert ended.round == 2
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["round"] for row in rows] == [1, 2]
    assert rows[-1]["privacy/epsilon"] == pytest.approx(within)
    assert '"event": "budget"' in (tmp_path / "run" / "events.jsonl").read_text()


def test_more_rounds_do_not_weaken_the_noise_of_a_run_that_is_continued(fit_small: Any, tmp_path: Path) -> None:
    options = {"method": "DPFedAvgGAN", "method_options": {"privacy": UpdatePrivacy(epsilon=3.0)}, "every": 1}
    fit_small(tmp_path / "run", rounds=2, **options)
    ended = fit_small(tmp_path / "run", rounds=6, devices=2, ckpt_path="last", **options)
    assert ended.round == 2  # all is spent, on every rank


def test_a_client_sends_the_discriminator_alone() -> None:
    gan = small_gan()
    d, g = (sum(p.numel() for p in part.parameters()) for part in (gan.discriminator, gan.generator))
    down, up = traffic(trial(clients=2).round(1))
    assert up == 2 * dense_bytes("update", d)
    assert down == 2 * (dense_bytes("discriminator", d) + dense_bytes("generator", g))


def test_images_come_from_the_servers_generator() -> None:
    federated = trial()
    before = federated.method.samples(20, 1)["generator"]
    federated.round(1)
    sent_by_all(federated)  # leaves other weights in the module
    drawn = federated.method.samples(20, 1)
    assert list(drawn) == ["generator"]
    assert drawn["generator"].shape == (20, 1, 8, 8)
    assert not torch.equal(drawn["generator"], before)
    assert torch.equal(drawn["generator"], federated.method.samples(20, 1)["generator"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_steps": 0}, "--method.local_steps is 0: give 1 or more"),
        ({"generator_steps": 0}, "--method.generator_steps is 0: give 1 or more"),
        ({"generator_batch_size": 1}, "--method.generator_batch_size is 1: give 2 or more"),
        ({"server_learning_rate": 0.0}, "--method.server_learning_rate is 0.0: give a number above 0"),
        ({"server_momentum": 1.0}, "--method.server_momentum is 1: give 0 or more, below 1"),
        ({"betas": (1.0, 0.9)}, "--method.betas is 1, 0.9: give 0 or more, below 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DPFedAvgGAN(**options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            SmallCNN(image_size=8, width=4),
            r"SmallCNN cannot be trained by DPFedAvgGAN \(it has no generator, discrimin",
        ),
        (ImageGAN(16, latent=4, width=4), "--model draws images of 1 x 16 x 16, --data has 1 x 8 x 8"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(model: Any, message: str) -> None:
    data = Digits()
    data.setup()
    with pytest.raises(UsageError, match=message):
        DPFedAvgGAN().prepare(model, data)
