"""FedKD: what teacher and student learn from each other, and a student that travels as low-rank updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import dense_bytes, digit_trial, traffic
from mixed_trial import logits_of_check_9_10, mixed_trial, two_networks, with_state

from flgen import FedKD, LocalTraining, SmallCNN, Star
from flgen.client_turns import ErrorPolicy
from flgen.errors import UsageError
from flgen.methods.fedkd import distillation_losses, energy_of_round
from flgen.privacy.secure_aggregation import SecureAggregation
from flgen.wire import low_rank

TRAINING = LocalTraining(epochs=1, batch_size=128, clip_norm=10.0)
Y = torch.tensor([0, 1])


def of_check_9_10() -> dict[str, torch.Tensor]:
    values = {"f": [[1.0, 0], [0, 1]], "f_g": [[1.0, 1], [0, 0]], "W_h": [[1.0, 0], [0, 1]]}
    others = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in values.items()}
    o, o_g = logits_of_check_9_10()
    return {"o": o, "o_g": o_g, **others}


def begun_with(trial: Any) -> list[torch.Tensor]:
    """The student that each client step of a trial begins with, from now on."""
    begun: list[torch.Tensor] = []
    load_proxy = trial.method.load_proxy

    def watched(client: Any, theta: torch.Tensor, download: Any) -> None:
        begun.append(theta.clone())
        load_proxy(client, theta, download)

    trial.method.load_proxy = watched
    return begun


def test_the_losses_are_weighted_by_how_far_both_can_be_trusted() -> None:
    # Check 9.10 of the specification: A = 0.395495 + 1.395495, L_d = 0.379946, L_h = 0.279175.
    L_teacher, L_student = distillation_losses(y=Y, **of_check_9_10())
    assert L_teacher.item() == pytest.approx(1.054616, abs=1e-6)
    assert L_student.item() == pytest.approx(1.395495 + 0.379946 + 0.279175, abs=1e-6)
    reference = [loss.item() for loss in distillation_losses(y=Y, fidelity="reference", **of_check_9_10())]
    assert reference == pytest.approx([L - 2 / 3 * 0.379946 for L in (L_teacher.item(), L_student.item())], abs=1e-6)


def test_the_map_is_applied_to_the_students_features() -> None:
    given = of_check_9_10()
    with torch.no_grad():
        given["W_h"].copy_(torch.tensor([[0.0, 1], [2, 0]]))  # of (1, 1) makes (1, 2), of (0, 0) nothing
        given["f"].copy_(torch.tensor([[1.0, 2], [0, 0]]))
    L_teacher, _ = distillation_losses(y=Y, **given)
    assert L_teacher.item() == pytest.approx(0.395495 + 0.379946, abs=1e-6)


@pytest.mark.parametrize(("which", "trained"), [(0, {"o", "f"}), (1, {"o_g", "f_g", "W_h"})])
def test_each_loss_trains_its_own_network_alone(which: int, trained: set[str]) -> None:
    """In the published code each trains everything (section 8, defect 21)."""
    given = of_check_9_10()
    distillation_losses(y=Y, **given)[which].backward()
    assert {name for name, tensor in given.items() if tensor.grad is not None} == trained
    given = of_check_9_10()
    distillation_losses(y=Y, fidelity="reference", **given)[which].backward()
    assert all(tensor.grad is not None for tensor in given.values())


def test_the_weight_is_no_reason_to_be_wrong() -> None:
    """A rises with the error, and what is divided by it falls: as published, part of the gradient asks for errors."""
    ce, given = 0.395495, of_check_9_10()
    L_h = distillation_losses(y=Y, **{**given, "o_g": given["o"]})[0]  # no divergence: CE + L_h
    assert L_h.item() == pytest.approx(ce + 0.5 / (2 * ce), abs=1e-5)
    (gradient,) = torch.autograd.grad(L_h, given["o"])
    (alone,) = torch.autograd.grad(torch.nn.functional.cross_entropy(given["o"], Y), given["o"])
    assert torch.allclose(gradient, alone)


def test_networks_that_are_sure_of_everything_have_finite_losses() -> None:
    o = torch.tensor([[200.0, 0, 0], [0, 200, 0]], requires_grad=True)
    f, f_g, W_h = (tensor.float() for tensor in list(of_check_9_10().values())[2:])
    L_teacher, L_student = distillation_losses(o, o, Y, f, f_g, W_h)
    (L_teacher + L_student).backward()
    for tensor in (L_teacher, L_student, o.grad):
        assert bool(tensor.isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize(("t", "energy"), [(1, 0.95003), (500, 0.965), (1000, 0.98), (1500, 0.98)])
def test_the_energy_rises_to_its_end_over_the_rounds(t: int, energy: float) -> None:
    # Check 9.10 of the specification, which counts from 0.
    assert energy_of_round(t, 1000, 0.95, 0.98) == pytest.approx(energy, abs=1e-9)


def test_the_energy_rises_over_the_runs_rounds_or_those_that_are_given() -> None:
    for rounds, energy in ((None, 0.965), (1, 0.98), (8, 0.9575)):
        trial = digit_trial(FedKD(TRAINING, energy_rounds=rounds), rounds=4)
        assert trial.method.energy(2) == pytest.approx(energy)


def test_clients_apply_the_servers_update_to_what_they_keep_and_stand_where_it_stands() -> None:
    trial = digit_trial(FedKD(TRAINING, energy_start=0.6, energy_end=0.6), model=two_networks())
    method, begun = trial.method, begun_with(trial)
    for t in (1, 2, 3):
        theta_t = method.theta_t.clone()
        assert ("ranks" in method.download(t)) == (t > 1)
        outcome = trial.round(t)
        for theta in begun[-4:]:
            assert torch.equal(theta, theta_t)
        assert torch.equal(trial.state(1)["student"], theta_t)
        assert (outcome.metrics["comm/down_scalars/proxy"] < 4 * len(theta_t)) == (t > 1)


def test_the_server_compresses_the_mean_of_the_updates_that_arrived() -> None:
    trial = mixed_trial(FedKD(TRAINING, energy_start=0.6, energy_end=0.6), samples=(4, 30, 12))
    assert {client.samples for client in trial.job.federation.clients} == {12, 120, 72}  # which count alike
    method, sent = trial.method, []
    client_step = method.client_step

    def watched(client: Any, download: Any, t: int) -> Any:
        payload = client_step(client, download, t)
        moved = method.theta - download["proxy"]
        arrived = low_rank.decompress(payload["proxy"].tensor, payload["ranks"].tensor, method.shapes)
        assert 0 < float((arrived - moved).norm()) < 0.65 * float(moved.norm())  # sqrt(1 - T)
        sent.append(arrived)
        return payload

    method.client_step = watched
    before = method.theta_t.clone()
    trial.round(1)
    mean = torch.stack(sent).mean(dim=0)
    compressed = low_rank.decompress(*low_rank.compress(mean, method.shapes, 0.6), method.shapes)
    assert torch.allclose(method.theta_t, before + compressed, atol=1e-6)
    assert not torch.allclose(compressed, mean, atol=1e-4)


def test_a_client_that_was_away_begins_where_the_server_stands() -> None:
    trial = digit_trial(FedKD(TRAINING), clients_per_round=2)
    begun = begun_with(trial)
    for t in (1, 2, 3, 4):
        assert "ranks" not in trial.method.download(t)
        theta_t = trial.method.theta_t.clone()
        trial.round(t)
        for theta in begun[-2:]:
            assert torch.equal(theta, theta_t)
    assert "student" not in trial.state(trial.job.federation.cohort(4)[0].id)


def test_after_a_round_that_a_client_missed_everybody_is_sent_the_student() -> None:
    trial = digit_trial(FedKD(TRAINING))
    method, client_step, begun = trial.method, trial.method.client_step, begun_with(trial)
    flat = {"battery": 2}

    def failing(client: Any, download: Any, t: int) -> Any:
        if (client.id, t) == (1, flat["battery"]):
            raise RuntimeError("its battery is empty")
        return client_step(client, download, t)

    method.client_step = failing
    given: list[bool] = []
    for t in (1, 2, 3, 4):
        theta_t = method.theta_t.clone()
        given.append("ranks" in method.download(t))
        trial.round(t, policy=ErrorPolicy("skip"))
        assert torch.equal(begun[-1], theta_t)
        assert torch.equal(trial.state(3)["student"], theta_t)
    assert given == [False, True, False, True]
    tested = trial.evaluate(4)
    assert len({client["test/accuracy_proxy"] for client in tested.values()}) > 1


def test_whole_weights_can_be_factored_instead_and_say_where_everybody_begins() -> None:
    options = {"energy_start": 0.6, "energy_end": 0.6, "compress": "weights"}
    trial = digit_trial(FedKD(TRAINING, **options), clients_per_round=2)  # type: ignore[arg-type]
    begun = begun_with(trial)
    for t in (1, 2, 3):
        download = trial.method.download(t)
        assert ("ranks" in download) == (t > 1)
        theta_t = trial.method.theta_t.clone()
        trial.round(t)
        assert torch.equal(begun[-1], theta_t)
    values, ranks = (download[name].tensor for name in ("proxy", "ranks"))
    assert len(values) == low_rank.count_numbers(ranks, trial.method.shapes) < len(theta_t)


@pytest.mark.parametrize("energy", [0.5, 0.95])
def test_what_travels_is_the_formula_by_the_ratio_that_is_reported(energy: float) -> None:
    trial = digit_trial(FedKD(TRAINING, energy_start=energy, energy_end=energy), model=two_networks())
    theta_p = len(trial.method.theta_t)
    for t in (1, 2):
        outcome = trial.round(t)
        said = trial.method.round_metrics(t)
        for way, ratio in (("up", said["compression/ratio"]), ("down", said["compression/ratio_down"])):
            counted = outcome.metrics[f"comm/{way}_scalars/proxy"]
            assert counted == said[f"comm/{way}_scalars_formula"]
            assert counted == pytest.approx(4 * theta_p * ratio)
            assert ratio < 1 or (t, way) == (1, "down")
        assert said["compression/energy"] == pytest.approx(energy)
    tensors = len(trial.method.shapes)
    per_client = dense_bytes("proxy", 0) + 20 + 8 + len("ranks") + 4 * tensors
    for way, number in zip(("down", "up"), traffic(outcome), strict=True):
        assert number == 4 * per_client + 4 * outcome.metrics[f"comm/{way}_scalars/proxy"]


def test_less_energy_is_less_traffic() -> None:
    def ratio(energy: float) -> float:
        trial = digit_trial(FedKD(TRAINING, energy_start=energy, energy_end=energy))
        trial.round(1)
        return trial.method.round_metrics(1)["compression/ratio"]

    assert ratio(0.5) < ratio(0.9) < ratio(1.0) == 1


def test_a_clients_map_is_its_own_and_persists() -> None:
    trial = digit_trial(FedKD(TRAINING), model=two_networks())
    first = [trial.method.initial_state(client)["feature_map"] for client in trial.job.federation.clients]
    assert not torch.equal(first[0], first[1])
    assert first[0].shape == (16, 16)
    assert 0.2 < float(first[0].abs().max()) <= 0.25  # as nn.Linear draws it: within 1 / sqrt(16)
    maps = [first[0]]
    for t in (1, 2):
        trial.round(t)
        maps.append(trial.state(0)["feature_map"])
        assert not torch.equal(maps[-1], maps[-2])

    still = digit_trial(FedKD(TRAINING), model=SmallCNN(image_size=8, width=4, learning_rate=0.0))
    for t in (1, 2):
        still.round(t)
    assert torch.equal(still.state(0)["feature_map"], first[0])


def test_the_maps_learning_rate_decays_and_its_gradient_is_clipped() -> None:
    def moved(**options: Any) -> float:
        training = LocalTraining(epochs=1, batch_size=10_000, **options)
        trial = mixed_trial(FedKD(training, init="shared"))
        client, method = with_state(trial, 0), trial.method
        before = client.state["feature_map"].clone()
        method.client_step(client, {"proxy": method.theta_t}, 3)
        return float((client.state["feature_map"] - before).norm())

    free = moved()
    assert moved(learning_rate_decay=0.5) == pytest.approx(free / 4, rel=1e-3)
    assert moved(clip_norm=0.001) == pytest.approx(0.001 * 0.1, rel=1e-2)
    assert moved(clip_norm=1000.0) == pytest.approx(free, rel=1e-6)


def test_secure_aggregation_is_refused() -> None:
    method = FedKD(TRAINING, topology=Star(secure_aggregation=SecureAggregation()))
    with pytest.raises(UsageError, match=r"FedKD cannot run under .* \(clients send factors of ranks of their own\)"):
        digit_trial(method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy_start": 0.0}, "--method.energy_start is 0.0: give a share above 0, at most 1"),
        ({"energy_end": 1.1}, "--method.energy_end is 1.1: give a share above 0, at most 1"),
        ({"energy_rounds": 0}, "--method.energy_rounds is 0: give 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FedKD(**options)
