"""FedAvg of a generator by hand: a client's steps are plain Adam steps, the server's model is a mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import dense_bytes, traffic
from peer_trial import Trial
from torch import Tensor

from flgen import IID, DenseGenerator, Digits, Dirichlet, FedAvgGenerator, KernelMMD, Prism, ResnetGenerator, SmallCNN
from flgen.data.image_set import to_bytes
from flgen.errors import UsageError
from flgen.federation.flat_parameters import flatten_in_place
from flgen.wire import codecs

SMALL = {"image_size": 8, "latent": 4, "width": 4}


def small_generator() -> DenseGenerator:
    return DenseGenerator(**SMALL, loss=KernelMMD(real_batch=8))


def trial(partition: Any, data: Any = None, **options: Any) -> Trial:
    method = FedAvgGenerator(**{"local_steps": 2, "batch_size": 8, "recalibration_batches": 2, **options})
    return Trial(method, small_generator(), data=data or Digits(), partition=partition)


def trained_alone(trained: Trial, client: int, w_t: Tensor, t: int = 1) -> Tensor:
    """w_k of one client that begins round t at w_t."""
    trained.method.on_local_step = lambda done, steps: None
    upload = trained.method.client_step(trained.job.federation.clients[client], {"weights": w_t}, t)
    weights: Tensor = upload["weights"].tensor.clone()
    return weights


def test_one_client_takes_plain_adam_steps() -> None:
    federated = trial(IID(clients=1), local_steps=3, learning_rate=0.01, betas=(0.4, 0.9))
    (client,) = federated.job.federation.clients
    federated.round(1)

    streams, generator, loss = client.streams, small_generator(), KernelMMD(real_batch=8)
    generator.reset_weights(streams.torch("weights"))
    state = loss.prepare(client.data, client.random("statistics", 0))
    adam = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.4, 0.9), fused=True)
    z, reals = client.random("noise", 1), client.data.batches(8, client.random("reals", 1), steps=3)
    for real, _ in reals:
        adam.zero_grad()
        loss(generator(generator.noise(8, z)), state, real).backward()
        adam.step()
    assert torch.equal(federated.method.w_t, flatten_in_place(list(generator.parameters())))


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_server_takes_the_mean_of_what_clients_send(weighting: Any) -> None:
    shares = Dirichlet(clients=3, alpha=0.5)
    federated, alone = (trial(shares, weighting=weighting) for _ in range(2))
    federated.round(1)
    w_t = alone.method.w_t.clone()
    sent = torch.stack([trained_alone(alone, k, w_t) for k in range(3)]).double()
    n = torch.tensor([client.samples for client in alone.job.federation.clients], dtype=torch.float64)
    p = n / n.sum() if weighting == "samples" else torch.full((3,), 1 / 3, dtype=torch.float64)
    assert len(set(n.tolist())) > 1
    torch.testing.assert_close(federated.method.w_t.double(), p @ sent, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(federated.method.w_t, w_t)


def test_adams_moments_stay_with_the_client_while_its_weights_are_replaced() -> None:
    federated = trial(IID(clients=2))
    for t in (1, 2):
        federated.round(t)
    for client in (0, 1):
        state = federated.state(client)
        assert int(state["optimizer.step"]) == 4  # two rounds of two steps
        assert state["optimizer.exp_avg"].abs().sum() > 0
        assert "weights" not in state
    assert not torch.equal(federated.state(0)["optimizer.exp_avg"], federated.state(1)["optimizer.exp_avg"])


def test_the_loss_falls() -> None:
    federated = trial(IID(clients=2), local_steps=10, batch_size=16, learning_rate=0.005)
    first, *_, last = (federated.round(t).metrics["train/loss"] for t in range(1, 6))
    assert last < first / 2


def test_every_weight_travels_as_a_float_both_ways() -> None:
    federated = trial(IID(clients=3))
    d = sum(parameter.numel() for parameter in small_generator().parameters())
    assert traffic(federated.round(1)) == (3 * dense_bytes("weights", d), 3 * dense_bytes("weights", d))


def test_initial_weights_are_those_of_the_seed_whatever_the_model_had() -> None:
    other = small_generator()
    other.reset_weights(torch.Generator().manual_seed(9))
    begun = Trial(FedAvgGenerator(), other, data=Digits(), partition=IID(clients=2))
    assert torch.equal(begun.method.w_t, trial(IID(clients=2)).method.w_t)
    assert begun.method.draws_weights == "its weights are those of --seed_everything"


def test_images_are_drawn_with_the_mean_and_recalibrated_statistics() -> None:
    federated = trial(IID(clients=2))
    federated.round(1)
    trained_alone(federated, 0, federated.method.w_t)  # somebody's weights and batches are left in the module
    drawn = federated.method.samples(20, 1)
    assert list(drawn) == ["generator"]

    streams, generator = federated.job.streams, small_generator()
    with torch.no_grad():
        flatten_in_place(list(generator.parameters())).copy_(federated.method.w_t)
        generator.recalibrate(streams.torch("recalibration", round=1), 2)
        expected = to_bytes(generator(generator.noise(128, streams.torch("evaluation noise"))))[:20]
    assert torch.equal(drawn["generator"], expected)


def test_prisms_images_come_from_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def noise(self: Any, count: int, generator: torch.Generator) -> Tensor:
        seen.append(torch.randn(count, self.latent, 1, 1, generator=generator))
        return seen[-1]

    dense = trial(IID(clients=2))
    masked = ResnetGenerator(**SMALL, loss=KernelMMD(real_batch=8))
    prism = Trial(Prism(recalibration_batches=2), masked, data=Digits(), partition=IID(clients=2))
    for each in (dense, prism):
        monkeypatch.setattr(type(each.method.generator), "noise", noise)
    dense.method.samples(5, 1)
    prism.method.samples(5, 1)
    assert len(seen) == 3 + 3 * 3
    for first, second in zip(seen[:3], seen[3:6], strict=True):
        assert torch.equal(first, second)


def test_updates_are_how_far_a_client_moved() -> None:
    federated = trial(IID(clients=2))
    upload = {"weights": codecs.dense(torch.tensor([3.0, 1.0]))}
    update = federated.method.update_of({"weights": torch.tensor([1.0, 2.0])}, upload)
    assert update.tolist() == [2.0, -1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_steps": 0}, "--method.local_steps is 0: give 1 or more"),
        ({"batch_size": 0}, "--method.batch_size is 0: give 1 or more"),
        ({"recalibration_batches": 0}, "--method.recalibration_batches is 0: give 1 or more"),
        ({"learning_rate": 0.0}, "--method.learning_rate is 0.0: give a number above 0"),
        ({"betas": (0.5, 1.0)}, "--method.betas is 0.5, 1: give 0 or more, below 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FedAvgGenerator(**options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SmallCNN(image_size=8, width=4), r"SmallCNN cannot be trained by FedAvgGenerator \(it has no noise, loss, "),
        (DenseGenerator(**SMALL), r"DenseGenerator cannot be trained by FedAvgGenerator \(it has no loss\): use a "),
        (
            DenseGenerator(16, latent=4, width=4, loss=KernelMMD()),
            "--model draws images of 1 x 16 x 16, --data has 1 x 8",
        ),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(model: Any, message: str) -> None:
    data = Digits()
    data.setup()
    with pytest.raises(UsageError, match=message):
        FedAvgGenerator().prepare(model, data)
