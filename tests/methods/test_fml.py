"""FML: both losses, whom they train, and the proxy's mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import dense_bytes, digit_trial, traffic
from mixed_trial import logits_of_check_9_10, mixed_trial, two_networks

from flgen import FML, FedAvg, LGFedAvg, LocalTraining, PooledClassifier
from flgen.errors import UsageError
from flgen.methods.fml import mutual_losses

TRAINING = LocalTraining(epochs=1, batch_size=128, clip_norm=10.0)
Y = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("share", "losses"), [(0.5, (0.537987, 1.037987)), (1.0, (0.395495, 1.395495)), (0.0, (0.680479, 0.680479))]
)
def test_a_loss_is_cross_entropy_and_the_divergence_from_the_other(share: float, losses: tuple[float, float]) -> None:
    # Check 9.10 of the specification.
    L_local, L_proxy = mutual_losses(*logits_of_check_9_10(), Y, share, share)
    assert (L_local.item(), L_proxy.item()) == pytest.approx(losses, abs=1e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_each_loss_trains_its_own_network_alone(which: int) -> None:
    """In the published code each trains both (section 8, defect 21)."""
    for fidelity in ("corrected", "reference"):
        both = logits_of_check_9_10()
        mutual_losses(*both, Y, 0.5, 0.5, fidelity)[which].backward()  # type: ignore[arg-type]
        assert float(both[which].grad.abs().max()) > 0.05  # type: ignore[union-attr]
        assert (both[1 - which].grad is None) == (fidelity == "corrected")


def test_as_published_divergences_are_divided_by_the_classes() -> None:
    losses = [loss.item() for loss in mutual_losses(*logits_of_check_9_10(), Y, 0.5, 0.5, "reference")]
    assert losses == pytest.approx([0.5 * (0.395495 + 0.226826), 0.5 * (1.395495 + 0.226826)], abs=1e-6)


def test_without_mutual_learning_the_proxy_is_fedavgs_and_the_networks_train_alone() -> None:
    proxy, common, alone = FML(TRAINING, 1.0, 1.0, init="shared"), FedAvg(TRAINING, "uniform"), FML(TRAINING, 1.0, 0.5)
    trials = [digit_trial(method) for method in (proxy, common, alone)]
    for t in (1, 2):
        for trial in trials:
            trial.round(t)
    assert torch.allclose(proxy.theta_t, common.w_t, atol=1e-6)

    # With one client LG-FedAvg sends a client its own head back: it trains alone.
    one, lonely = FML(TRAINING, 1.0, 0.3, init="shared"), LGFedAvg(TRAINING, init="shared")
    trials = [digit_trial(method, clients=1) for method in (one, lonely)]
    for t in (1, 2):
        for trial in trials:
            trial.round(t)
    assert torch.allclose(trials[0].state(0)["weights"], trials[1].state(0)["weights"], atol=1e-6)


def test_a_client_takes_both_steps_on_the_same_batch() -> None:
    """One step against the two losses written out again, each with a gradient of its own."""
    training = LocalTraining(epochs=1, batch_size=10_000, clip_norm=10.0)
    trial = digit_trial(FML(training, alpha=0.7, beta=0.2), clients=2, model=two_networks())
    method, client = trial.method, trial.job.federation.clients[1]
    ((x, y),) = client.data.in_order(10_000)
    x = method.data.standardize(x)
    client.state = method.initial_state(client)
    (w, theta), (a, b) = two_networks().models[::-1], (client.state["weights"], method.theta_t)
    for network, vector in ((w, a), (theta, b)):
        torch.nn.utils.vector_to_parameters(vector, network.parameters())
    o, o_g = w(x), theta(x)
    p, p_g = o.softmax(dim=1), o_g.softmax(dim=1)
    ce = torch.nn.functional.cross_entropy
    L_local = 0.7 * ce(o, y) + 0.3 * (p_g.detach() * (p_g.log().detach() - p.log())).sum() / len(y)
    L_proxy = 0.2 * ce(o_g, y) + 0.8 * (p.detach() * (p.log().detach() - p_g.log())).sum() / len(y)
    expected = []
    for network, loss in ((w, L_local), (theta, L_proxy)):
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        stepped = [tensor - 0.1 * g for tensor, g in zip(network.parameters(), gradients, strict=True)]
        expected.append(torch.cat([tensor.detach().reshape(-1) for tensor in stepped]))

    method.on_local_step = lambda done, steps: None
    sent = method.client_step(client, {"proxy": method.theta_t}, 1)
    assert torch.allclose(client.state["weights"], expected[0], atol=1e-6)
    assert torch.allclose(sent["proxy"].tensor, expected[1], atol=1e-6)
    assert client.metrics["train/loss"] == pytest.approx(L_local.item(), rel=1e-4)
    assert client.metrics["train/proxy_loss"] == pytest.approx(L_proxy.item(), rel=1e-4)


def test_the_server_takes_the_plain_mean_and_what_travels_is_the_formula() -> None:
    trial = mixed_trial(FML(TRAINING), samples=(4, 30, 12))
    assert {client.samples for client in trial.job.federation.clients} == {12, 120, 72}
    method, sent = trial.method, []
    client_step = method.client_step

    def watched(client: Any, download: Any, t: int) -> Any:
        payload = client_step(client, download, t)
        sent.append(payload["proxy"].tensor.clone())
        return payload

    method.client_step = watched
    outcome = trial.round(1)
    assert torch.allclose(method.theta_t, torch.stack(sent).mean(dim=0), atol=1e-6)
    theta_p = sum(p.numel() for p in two_networks().models[0].parameters())
    formula = method.round_metrics(1)
    for way in ("up", "down"):
        assert outcome.metrics[f"comm/{way}_scalars/proxy"] == formula[f"comm/{way}_scalars_formula"] == 3 * theta_p
    assert traffic(outcome) == (3 * dense_bytes("proxy", theta_p),) * 2


def test_the_formula_gives_the_published_numbers() -> None:
    # Section 6: CIFAR-100, 20 clients; the proxy is the 4-layer CNN with features 512 wide.
    proxy = PooledClassifier("cnn4", classes=100, feature_width=512)
    method = FML()
    method.theta = torch.nn.utils.parameters_to_vector(proxy.parameters())
    assert method.published_scalars(20, 900) == (18_494_160, 18_494_160)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_shares_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--method.{name} is {value}: give a share from 0 to 1"):
        FML(**{name: value})  # type: ignore[arg-type]
