"""A proxy beside networks of the clients' own: where it begins, what trains whom, what becomes of its buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import digit_trial
from mixed_trial import HELD, logits_of_check_9_10, mixed_trial, two_kinds, two_networks, with_state
from peer_trial import Trial

from flgen import FML, IID, Digits, FedKD, LocalTraining, SmallCNN
from flgen.errors import UsageError
from flgen.methods.fedkd import distillation_losses
from flgen.methods.fml import mutual_losses
from flgen.methods.shared_proxy import divergence

TRAINING = LocalTraining(epochs=1, batch_size=128, clip_norm=10.0)
METHODS = pytest.mark.parametrize("method", [FML, FedKD])


def test_a_divergence_is_a_mean_over_samples() -> None:
    """The published code's is C times weaker (section 8, defect 20)."""
    o, o_g = logits_of_check_9_10()
    assert divergence(o, o_g).item() == pytest.approx(0.680479, abs=1e-6)
    assert divergence(o, o_g, "reference").item() == pytest.approx(0.226826, abs=1e-6)
    assert divergence(o, o).item() == pytest.approx(0, abs=1e-12)


def test_a_divergence_trains_the_taught_alone() -> None:
    """The published code's trains both (section 8, defect 21)."""
    o, o_g = logits_of_check_9_10()
    divergence(o, o_g).backward()
    assert o_g.grad is None
    assert float(o.grad.abs().max()) > 0.1  # type: ignore[union-attr]
    divergence(o, o_g, "reference").backward()
    assert float(o_g.grad.abs().max()) > 0.01  # type: ignore[union-attr]


@METHODS
@pytest.mark.parametrize("fidelity", ["corrected", "reference"])
def test_a_step_follows_the_losses_of_the_fidelity_that_is_asked_for(method: Any, fidelity: Any) -> None:
    """With "reference" both losses train both networks, and divergences are C times weaker."""
    trial = mixed_trial(method(LocalTraining(batch_size=12 * len(HELD[1])), fidelity=fidelity))
    own, client = trial.method, with_state(trial, 1)
    W_h = client.state.get("feature_map", torch.zeros(16, 16)).clone().requires_grad_()
    theta, w = two_networks().models
    for network, vector in ((w, client.state["weights"]), (theta, own.theta_t)):
        torch.nn.utils.vector_to_parameters(vector.clone(), network.parameters())
    ((x, y),) = client.data.in_order(10_000)
    x = trial.job.data.standardize(x)
    f, f_g = w.features(x), theta.features(x)
    o, o_g = w.head(f), theta.head(f_g)
    if method is FML:
        losses = mutual_losses(o, o_g, y, 0.5, 0.5, fidelity)
    else:
        losses = distillation_losses(o, o_g, y, f, f_g, W_h, fidelity)
    sum(losses).backward()  # type: ignore[union-attr]

    own.client_step(client, {"proxy": own.theta_t}, 1)
    for network, after in ((w, client.state["weights"]), (theta, own.theta)):
        expected = [parameter - 0.1 * parameter.grad for parameter in network.parameters()]
        assert torch.allclose(after, torch.nn.utils.parameters_to_vector(expected), atol=1e-6)
    if method is FedKD:
        assert torch.allclose(client.state["feature_map"], W_h - 0.1 * W_h.grad, atol=1e-6)


@METHODS
def test_the_proxy_has_the_architecture_that_is_named(method: Any) -> None:
    sizes = [sum(p.numel() for p in network.parameters()) for network in two_kinds().models]
    for number in (0, 1):
        trial = digit_trial(method(TRAINING, proxy=number), model=two_kinds())
        assert len(trial.method.theta_t) == sizes[number]
        assert (len(trial.method.buffers_t) > 0) == (number == 1)
    with pytest.raises(UsageError, match=r"--method.proxy is 2, but --model has 2 networks: count them from 0"):
        method(proxy=2).prepare(two_kinds(), Digits())
    with pytest.raises(UsageError, match=r"--method.proxy is 1, but --model has 1 network: count them from 0"):
        method(proxy=1).prepare(SmallCNN(image_size=8), Digits())
    with pytest.raises(UsageError, match=r"--method.proxy is -1: give 0 or more"):
        method(proxy=-1)


@METHODS
def test_the_proxy_begins_with_a_draw_of_the_servers_or_as_its_network_was_built(method: Any) -> None:
    def first(**options: Any) -> torch.Tensor:
        return digit_trial(method(TRAINING, **options), model=two_kinds()).method.theta_t

    built = torch.cat([p.detach().reshape(-1) for p in two_kinds().models[0].parameters()])
    for options in ({"init": "shared"}, {"fidelity": "reference"}):
        assert torch.equal(first(**options), built)
    assert torch.equal(first(), first())
    assert not torch.equal(first(), built)
    trial = digit_trial(method(TRAINING), model=two_kinds())
    own = trial.method.initial_state(trial.job.federation.clients[0])["weights"]
    assert not torch.equal(own, trial.method.theta_t)


@METHODS
def test_a_model_that_has_been_trained_before_can_be_trained_again(method: Any) -> None:
    model = two_kinds()
    for _ in range(2):
        trial = digit_trial(method(TRAINING, init="shared"), model=model)
        before = trial.method.theta_t.clone()
        trial.round(1)
        assert not torch.equal(trial.method.theta_t, before)


@METHODS
def test_clients_with_different_networks_learn_and_report_theirs_and_the_proxy(method: Any) -> None:
    training = LocalTraining(epochs=3, batch_size=16, clip_norm=10.0)
    trial = Trial(method(training), two_kinds(learning_rate=0.3), data=Digits(), partition=IID(clients=2))
    before = trial.evaluate(0)
    trial.round(1)
    after = trial.evaluate(1)
    for name in ("test/accuracy_trained", "test/accuracy_proxy"):
        means = [sum(client[name] for client in measured.values()) / len(measured) for measured in (before, after)]
        assert means[1] > means[0] + 0.1, name
    assert len(trial.state(0)["weights"]) != len(trial.state(1)["weights"])


@METHODS
def test_who_does_not_take_part_keeps_everything_and_can_be_tested(method: Any) -> None:
    trial = digit_trial(method(TRAINING), model=two_kinds(), clients_per_round=2)
    chosen = {client.id for client in trial.job.federation.cohort(1)}
    trial.round(1)
    (idle, *_) = {0, 1, 2, 3} - chosen
    assert trial.state(idle) == {}
    tested = trial.evaluate(1)
    assert set(tested) == {0, 1, 2, 3}
    assert {"test/accuracy_trained", "test/accuracy_proxy"} <= set(tested[idle])


@METHODS
def test_the_proxys_buffers_are_averaged_and_travel_beside_its_weights(method: Any) -> None:
    """The published code leaves them where they are (section 8, defect 21)."""
    trial = mixed_trial(method(TRAINING, proxy=1), model=two_kinds(), samples=(4, 30, 12))
    assert {client.samples for client in trial.job.federation.clients} == {12, 120, 72}  # which count alike
    own = trial.method
    before, client_step, seen = own.buffers_t.clone(), own.client_step, []

    def watched(client: Any, download: Any, t: int) -> Any:
        assert torch.equal(download["buffers"], own.buffers_t)
        sent = client_step(client, download, t)
        seen.append(sent["buffers"].tensor.clone())
        return sent

    own.client_step = watched
    outcome = trial.round(1)
    assert torch.allclose(own.buffers_t, torch.stack(seen).mean(dim=0), atol=1e-6)
    assert not torch.allclose(own.buffers_t, before)
    assert "proxy_buffers" not in trial.state(0)
    for way in ("up", "down"):
        assert outcome.metrics[f"comm/{way}_scalars/buffers"] == 3 * len(before)
    assert own.published_scalars(3, 0)[1] == 3 * len(own.theta_t)
    trial.round(2)


@METHODS
def test_as_published_every_client_keeps_the_proxys_buffers_for_itself(method: Any) -> None:
    trial = digit_trial(method(TRAINING, proxy=1, fidelity="reference"), model=two_kinds())
    first = trial.method.buffers_t.clone()
    outcome = trial.round(1)
    assert "comm/up_scalars/buffers" not in outcome.metrics
    kept = [trial.state(k)["proxy_buffers"] for k in range(4)]
    assert not torch.allclose(kept[0], first)
    assert not torch.allclose(kept[0], kept[2])
    assert torch.equal(trial.method.buffers_t, first)
    client = trial.job.federation.clients[2]
    client.state = trial.state(2)
    trial.method.load_proxy(client, trial.method.theta_t, {})
    assert torch.equal(trial.method.common.buffers, kept[2])


@METHODS
def test_the_work_on_both_networks_is_counted(method: Any) -> None:
    trial = digit_trial(method(TRAINING))
    flops = trial.round(1).clients[0]["flops/client_round"]
    trial.method.common.add_flops(client := trial.job.federation.clients[0], client.samples)
    assert flops == 2 * client.metrics["flops/client_round"] - 2 * flops > 0
    assert trial.method.expected_work(client) == client.samples * 2 * len(trial.method.theta_t)


@METHODS
def test_the_proxys_learning_rate_decays_and_its_gradient_is_clipped(method: Any) -> None:
    def moved(**options: Any) -> float:
        training = LocalTraining(epochs=1, batch_size=10_000, **options)
        trial = digit_trial(method(training, init="shared"), clients=1, model=two_kinds())
        own, client = trial.method, trial.job.federation.clients[0]
        client.state, own.on_local_step = own.initial_state(client), lambda done, steps: None
        download = {"proxy": own.theta_t}
        own.client_step(client, download, 3)
        return float((own.theta - own.theta_t).norm())

    free = moved()
    assert moved(learning_rate_decay=0.5) == pytest.approx(free / 4, rel=1e-3)
    assert moved(clip_norm=0.01) == pytest.approx(0.01 * 0.1, rel=1e-3)
    assert moved(clip_norm=1000.0) == pytest.approx(free, rel=1e-6)


@METHODS
def test_a_checkpoint_brings_the_proxy_back(method: Any) -> None:
    trial = digit_trial(method(TRAINING, proxy=1), model=two_kinds())
    trial.round(1)
    other = digit_trial(method(TRAINING, proxy=1), model=two_kinds()).method
    other.load_state_dict(trial.method.state_dict())
    for name, entry in trial.method.download(2).items():
        assert torch.equal(other.download(2)[name].tensor, entry.tensor)
    assert torch.equal(other.theta_t, trial.method.theta_t)
    assert torch.equal(other.buffers_t, trial.method.buffers_t)
