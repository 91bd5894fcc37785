"""Fed-ET: who is sure counts more, who disagrees is heard, and which layer is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import ENOUGH, TWO_EPOCHS, dense_bytes, digit_trial, gathered, skewed_trial, traffic

from flgen import VGG19, ConvNet, Digits, FedAvg, FedET, SmallCNN, Star
from flgen.errors import UsageError
from flgen.methods.fedet import disagreement, representation_parameters, transfer_loss, weighted_consensus
from flgen.privacy.secure_aggregation import SecureAggregation

FEW: dict[str, Any] = {"distillation_steps": 4, "distillation_batch_size": 16}


def doubles(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_weights_consensus_and_who_disagrees() -> None:
    # Check 10 of the specification: one public sample, two clients.
    s = doubles([[4, 0, -1]], [[0, 1, 2]])
    assert s.var(dim=2).flatten().tolist() == pytest.approx([7, 1])
    alpha, consensus = weighted_consensus(s)
    assert alpha.flatten().tolist() == pytest.approx([0.875, 0.125], abs=1e-9)
    assert consensus[0].tolist() == pytest.approx([3.5, 0.125, -0.625], abs=1e-9)
    spread = s.var(dim=2, correction=0)  # the population's variance weighs alike
    assert torch.allclose(spread / spread.sum(dim=0), alpha)
    y_hat = consensus.argmax(dim=1)
    assert y_hat.tolist() == [0]
    s_div, disagreed = disagreement(s, alpha, y_hat)
    assert disagreed.tolist() == [True]
    assert s_div[0].tolist() == pytest.approx([0, 1, 2], abs=1e-9)  # client 2 alone, its weight renormalised to 1


def test_two_who_disagree_share_the_weight_between_them() -> None:
    s = doubles([[9, 0, 0]], [[0, 3, 0]], [[0, 0, 6]])
    alpha, _ = weighted_consensus(s)
    s_div, _ = disagreement(s, alpha, torch.tensor([0]))
    assert s_div[0].tolist() == pytest.approx([0, 3 * 9 / 45, 6 * 36 / 45])


def test_nobody_who_disagrees_and_nobody_who_prefers_anything_divide_nothing_by_nothing() -> None:
    agreed = doubles([[4, 0, -1]], [[2, 1, 0]])
    alpha, consensus = weighted_consensus(agreed)
    s_div, disagreed = disagreement(agreed, alpha, consensus.argmax(dim=1))
    assert disagreed.tolist() == [False]
    assert s_div.tolist() == [[0, 0, 0]]

    indifferent = doubles([[1, 1, 1]], [[2, 2, 2]])
    alpha, consensus = weighted_consensus(indifferent)
    assert alpha.flatten().tolist() == [0.5, 0.5]
    assert consensus.tolist() == [[1.5, 1.5, 1.5]]

    # The only one who disagrees prefers nothing: it has no weight.
    s = doubles([[0, 0, 5]], [[1, 1, 1]])
    alpha, consensus = weighted_consensus(s)
    s_div, disagreed = disagreement(s, alpha, consensus.argmax(dim=1))
    assert disagreed.tolist() == [False]
    assert torch.isfinite(s_div).all()


def test_the_loss_is_cross_entropy_and_a_share_of_the_divergence_where_somebody_disagrees() -> None:
    f = doubles([0.5, 1, -1], [2, 0, 0]).requires_grad_()
    y_hat, s_div, disagreed = torch.tensor([0, 0]), doubles([0, 1, 2], [0, 0, 0]), torch.tensor([True, False])
    ce = torch.nn.functional.cross_entropy(f, y_hat)
    kl = torch.nn.functional.kl_div(torch.log_softmax(f[0], 0), torch.softmax(s_div[0], 0), reduction="sum")
    loss = transfer_loss(f, y_hat, s_div, disagreed, 0.05)
    assert float(loss.detach()) == pytest.approx(float((ce + 0.05 * kl / 2).detach()), abs=1e-12)
    assert float(transfer_loss(f, y_hat, s_div, disagreed, 0.0).detach()) == pytest.approx(float(ce.detach()))
    loss.backward()
    expected = torch.softmax(f.detach()[1], 0) - doubles(1, 0, 0)  # the second sample feels cross-entropy alone
    assert f.grad is not None
    assert torch.allclose(f.grad[1], expected / 2)


def test_the_shared_layer_is_the_last_linear_one_before_the_classifier_or_the_classifier() -> None:
    two = SmallCNN(image_size=8, width=4)
    assert representation_parameters(two, None) == ["network.7.weight", "network.7.bias"]
    one = ConvNet(image_size=8, width=4)
    assert representation_parameters(one, None) == ["linear.weight", "linear.bias"]
    with torch.device("meta"):
        vgg = VGG19()
    assert [vgg.get_parameter(name).shape for name in representation_parameters(vgg, None)] == [(4096, 4096), (4096,)]
    assert representation_parameters(two, ["network.0.*", "*.9.bias"]) == [
        "network.0.weight",
        "network.0.bias",
        "network.9.bias",
    ]
    with pytest.raises(
        UsageError, match=r"--method.representation has 'fc.*', which names no parameter; there are net"
    ):
        representation_parameters(two, ["fc.*"])


def test_the_servers_layer_is_the_clients_mean_before_it_learns_and_theirs_after_it_has_learnt() -> None:
    method = FedET(TWO_EPOCHS, public_data=Digits(), **FEW)
    trial = digit_trial(method, clients=2)
    shared = method.is_shared
    assert int(shared.sum()) == sum(p.numel() for p in method.model.network[7].parameters())
    for client, samples in zip(trial.job.federation.clients, (1, 3), strict=True):
        client.samples = samples
    draws = torch.Generator().manual_seed(0)
    a, b = (method.w_1 + 0.1 * torch.randn(len(method.w_1), generator=draws) for _ in range(2))
    f_1, before = method.f.clone(), []

    def spy(t: int, samples: Any, s: Any) -> dict[str, float]:
        before.append(method.w.clone())
        assert samples.samples == 64
        assert s.shape == (2, 64, 10)
        return FedET.transfer(method, t, samples, s)

    method.transfer = spy  # type: ignore[method-assign]
    method.aggregate(1, gathered({"weights": a}, {"weights": b}, samples=4))
    assert torch.allclose(before[0][shared], ((a + b) / 2)[shared])  # clients count alike
    assert torch.equal(before[0][~shared], f_1[~shared])  # the rest is the server's own
    assert not torch.equal(method.f, before[0])
    assert torch.equal(method.w_t[shared], method.f[shared])
    assert torch.allclose(method.w_t[~shared], (0.25 * a + 0.75 * b)[~shared])


def test_the_servers_model_learns_what_clients_agree_on_and_is_the_one_that_is_tested() -> None:
    method = FedET(ENOUGH, public_data=Digits(), distillation_learning_rate=0.05)
    trial = skewed_trial(method)
    losses = []
    for t in (1, 2):
        trial.round(t)
        losses.append(method.round_metrics(t))
    assert losses[1]["distillation/loss"] < losses[0]["distillation/loss"]
    assert 0 < losses[1]["distillation/disagreement"] < 1
    assert method.evaluate(2)["test/accuracy"] > 0.5
    assert torch.equal(method.w, method.f)
    assert not torch.equal(method.f, method.w_t)
    fresh = FedET(ENOUGH, public_data=Digits())
    skewed_trial(fresh)
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh.w, method.f)  # who goes on with the module has the server's model
    assert torch.equal(fresh.w_t, method.w_t)


def test_one_client_whose_layer_is_shared_trains_as_in_fedavg_elsewhere() -> None:
    method, averaged = FedET(TWO_EPOCHS, public_data=Digits(), **FEW), FedAvg(TWO_EPOCHS)
    for each in (method, averaged):
        digit_trial(each, clients=1).round(1)
    rest = ~method.is_shared
    assert torch.equal(method.w_t[rest], averaged.w_t[rest])
    assert not torch.equal(method.w_t, averaged.w_t)


def test_traffic_is_two_client_models_per_client() -> None:
    method = FedET(TWO_EPOCHS, public_data=Digits(), **FEW)
    trial = digit_trial(method, clients=5, clients_per_round=3)
    model = dense_bytes("weights", len(method.w))
    for t in (1, 2):
        assert traffic(trial.round(t)) == (3 * model, 3 * model)


def test_it_refuses_secure_aggregation_and_says_why() -> None:
    method = FedET(public_data=Digits(), topology=Star(secure_aggregation=SecureAggregation()))
    with pytest.raises(
        UsageError, match=r"FedET cannot run .* \(its server runs every client's model .* weighs what ea"
    ):
        digit_trial(method)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("diversity", -0.1),
        ("distillation_steps", 0),
        ("distillation_batch_size", 0),
        ("distillation_learning_rate", 0.0),
    ],
)
def test_a_number_out_of_its_range_is_one_line(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        FedET(public_data=Digits(), **{option: value})
