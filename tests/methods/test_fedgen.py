"""FedGen: the generator's loss, what clients add to theirs, and what travels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from digit_trial import ENOUGH, TWO_EPOCHS, Constant, dense_bytes, digit_trial, skewed_trial, traffic

from flgen import Digits, FedAvg, FedGen, LocalTraining, SmallCNN, Star
from flgen.errors import UsageError
from flgen.methods.distillation import feature_size
from flgen.methods.fedgen import diversity_loss, label_shares, regularisation
from flgen.privacy.secure_aggregation import SecureAggregation

SMALL: dict[str, Any] = {"hidden": 16, "noise": 8, "generated_batch_size": 8, "generator_steps": 4}


def test_diversity_falls_when_far_noise_makes_far_features() -> None:
    # Check 12 of the specification.
    eps, z = (torch.tensor(v, dtype=torch.float64) for v in ([[0.0, 0], [1, 1]], [[0.0, 1], [2, 1]]))
    assert float(diversity_loss(eps, z)) == pytest.approx(0.6065306597, abs=1e-9)
    assert float(diversity_loss(eps, z[:1].expand(2, 2))) == 1.0
    assert float(diversity_loss(eps, 2 * z)) == pytest.approx(math.exp(-1))


def test_a_label_is_shared_among_those_who_hold_it() -> None:
    omega = label_shares(torch.tensor([[3, 0, 0], [1, 5, 0]]))
    assert omega.tolist() == [[0.75, 0, 0], [0.25, 1, 0]]


def test_the_strength_decays_from_the_first_round_and_has_a_floor() -> None:
    assert regularisation(10, 0.98, 0) == 10
    assert regularisation(10, 0.98, 1) == pytest.approx(9.8)
    assert regularisation(10, 0.98, 10_000) == 1e-4


def test_a_module_without_a_head_or_with_another_feature_size_is_refused() -> None:
    data, model = Digits(), SmallCNN(image_size=8, width=4)
    assert feature_size(model, data, None, "FedGen") == feature_size(model, data, 16, "FedGen") == 16
    with pytest.raises(UsageError, match=r"--method.features is 32, but the head of --model SmallCNN takes 16: give"):
        FedGen(features=32).prepare(model, data)
    with pytest.raises(UsageError, match=r"Constant cannot be trained by FedGen \(it has no features and no head\)"):
        FedGen().prepare(Constant(10), data)

    class Maps(SmallCNN):
        def features(self, inputs: Any) -> Any:
            return self.network[:2](inputs)

        def head(self, z: Any) -> Any:
            return self.network[2:](z)

    with pytest.raises(UsageError, match=r"features\(\) returns shape \(2, 4, 8, 8\) .* FedGen needs \(2, d_z\)"):
        FedGen().prepare(Maps(image_size=8, width=4), data)


def test_the_generator_learns_what_each_head_takes_for_a_label_by_the_labels_that_its_client_holds() -> None:
    method = FedGen(TWO_EPOCHS, **{**SMALL, "generator_steps": 1, "diversity": 0.5})
    digit_trial(method, clients=2)
    draws = torch.Generator().manual_seed(1)
    w = torch.stack([method.w_1 + 0.3 * torch.randn(len(method.w_1), generator=draws) for _ in range(2)])
    counts = torch.zeros(2, 10, dtype=torch.int64)
    counts[0, 3], counts[1, 3], counts[1, 7] = 1, 3, 2
    drawn: dict[str, Any] = {}
    draw = method.G.draw

    def spy(y: torch.Tensor, generator: torch.Generator) -> Any:
        eps, z = draw(y, generator)
        drawn.update(y=y, eps=eps, z=z.detach())
        return eps, z

    method.G.draw = spy  # type: ignore[method-assign]
    g_before = method.g_t.clone()
    loss = method.train_generator(1, w, counts)

    y, z = drawn["y"], drawn["z"]
    assert set(y.tolist()) == {3, 7}  # nobody has another
    assert float(drawn["eps"].min()) >= 0
    assert float(drawn["eps"].max()) <= 1
    expected = 0.5 * float(diversity_loss(drawn["eps"], z))
    for k in range(2):
        method.load(w[k])
        ce = torch.nn.functional.cross_entropy(method.model.head(z), y, reduction="none")
        share = torch.where(y == 3, (0.25, 0.75)[k], (0.0, 1.0)[k])
        expected += float((share * ce).mean().detach())
    assert loss == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(method.g_t, g_before)
    assert method.known.nonzero().flatten().tolist() == [3, 7]


def test_the_generators_loss_falls_and_its_learning_rate_decays() -> None:
    method = FedGen(ENOUGH, hidden=32, noise=8, generator_steps=100, generator_learning_rate=3e-3, decay=0.5)
    trial = skewed_trial(method)
    trial.round(1)
    first = method.round_metrics(1)
    assert first["generator/strength"] == 0
    w, counts = method.w_t.unsqueeze(0), torch.ones(1, 10, dtype=torch.int64)
    again = [method.train_generator(t, w, counts) for t in (1, 2)]
    assert again[1] < again[0] < first["generator/loss"]
    assert method.adam.param_groups[0]["lr"] == pytest.approx(1.5e-3)
    assert method.adam.param_groups[0]["weight_decay"] == 1e-2


def test_the_first_round_is_fedavg_and_then_clients_learn_from_what_the_others_know() -> None:
    method, averaged = FedGen(ENOUGH, hidden=64, noise=8, strength=1.0), FedAvg(ENOUGH)
    trials = [skewed_trial(each) for each in (method, averaged)]
    for trial in trials:
        trial.round(1)
    assert torch.allclose(method.w_t, averaged.w_t, atol=1e-6)
    for trial in trials:
        trial.round(2)
    assert method.evaluate(2)["test/accuracy"] > averaged.evaluate(2)["test/accuracy"]


def test_a_clients_loss_is_its_own_and_two_terms_of_generated_features() -> None:
    method = FedGen(LocalTraining(epochs=3, batch_size=32), **SMALL, strength=2.0, decay=0.5, regularised_epochs=2)
    trial = digit_trial(method)
    trial.round(1)
    client = trial.job.federation.clients[0]
    download = {name: entry.tensor for name, entry in method.download(2).items()}
    method.load(download["weights"])
    loss = method.regularised_loss(client, download, 2)
    drawn: list[Any] = []
    draw = method.G.draw

    def spy(y: torch.Tensor, generator: torch.Generator) -> Any:
        drawn.append((y, *draw(y, generator)))
        return drawn[-1][1:]

    method.G.draw = spy  # type: ignore[method-assign]
    x, y = next(method.resident.batches(client, client.data, "trial", 2, epochs=1))
    value = float(loss((x, y), 0).detach())

    (y_hat, _, z_hat), (y_again, _, z) = drawn
    assert len(y_hat) == 8
    assert set(y_hat.tolist()) <= set(method.known.nonzero().flatten().tolist())
    assert torch.equal(y_again, y)
    F, model = torch.nn.functional, method.model
    f = model(x)
    target = torch.softmax(model.head(z), dim=1)
    kl = (target * (target.log() - torch.log_softmax(f, dim=1))).sum(dim=1).mean()
    terms = [term.detach() for term in (F.cross_entropy(f, y), F.cross_entropy(model.head(z_hat), y_hat), kl)]
    assert value == pytest.approx(float(terms[0] + 8 / 32 * 1.0 * terms[1] + 1.0 * terms[2]), rel=1e-5)

    # After the first two epochs clients are on their own.
    later = 2 * -(-client.samples // 32)
    assert float(loss((x, y), later - 1).detach()) != pytest.approx(float(terms[0]), rel=1e-4)
    assert float(loss((x, y), later).detach()) == pytest.approx(float(terms[0]), rel=1e-6)


def test_the_target_of_the_divergence_gets_no_gradient() -> None:
    method = FedGen(TWO_EPOCHS, **SMALL)
    trial = digit_trial(method)
    trial.round(1)
    client = trial.job.federation.clients[0]
    download = {name: entry.tensor for name, entry in method.download(2).items()}
    method.load(download["weights"])
    loss = method.regularised_loss(client, download, 2)
    x, y = next(method.resident.batches(client, client.data, "trial", 2, epochs=1))
    method.model.zero_grad()
    method.G.zero_grad()
    loss((x, y), 0).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in method.G.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in method.model.parameters())


def test_traffic_is_fedavgs_and_a_generator_down_with_label_counts_up_and_known_labels_down() -> None:
    method = FedGen(TWO_EPOCHS, **SMALL)
    trial = digit_trial(method, clients=5, clients_per_round=3)
    d_G = sum(p.numel() for p in method.G.parameters()) + 2 * 16  # and BatchNorm's running mean and variance
    assert len(method.g) == d_G
    model, counts = dense_bytes("weights", len(method.w)), dense_bytes("label_counts", 10, item=8)
    labels = 20 + 8 + len("labels") + 2  # ten bits
    assert traffic(trial.round(1)) == (3 * model, 3 * (model + counts))  # there is no generator yet
    assert traffic(trial.round(2)) == (3 * (model + dense_bytes("generator", d_G) + labels), 3 * (model + counts))


def test_it_refuses_secure_aggregation_and_says_why() -> None:
    method = FedGen(topology=Star(secure_aggregation=SecureAggregation()))
    with pytest.raises(UsageError, match=r"FedGen cannot run .* \(its generator learns from every client's last layer"):
        digit_trial(method)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("features", 0),
        ("hidden", 0),
        ("noise", 0),
        ("generated_batch_size", 1),
        ("generator_steps", 0),
        ("generator_learning_rate", 0.0),
        ("generator_weight_decay", -1.0),
        ("decay", 1.5),
        ("diversity", -1.0),
        ("strength", -1.0),
        ("regularised_epochs", -1),
    ],
)
def test_a_number_out_of_its_range_is_one_line(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        FedGen(**{option: value})
