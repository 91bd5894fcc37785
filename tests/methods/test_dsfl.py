"""DS-FL: entropy-reduction averaging, the order of a client's steps, and that no weight is ever sent."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from digit_trial import ENOUGH, TWO_EPOCHS, dense_bytes, digit_trial, skewed_trial, traffic
from peer_trial import steps_seen

from flgen import DSFL, Digits, LocalTraining, SmallCNN
from flgen.errors import UsageError
from flgen.methods import distillation
from flgen.methods.dsfl import entropy_reduction


def entropy(p: torch.Tensor) -> float:
    return float(torch.special.entr(p).sum())


def test_entropy_reduction_averaging_is_a_softmax_of_mean_probabilities() -> None:
    # Check 9 of the specification.
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64)
    p_bar = p.mean(dim=0, keepdim=True)
    assert p_bar[0].tolist() == pytest.approx([0.4, 0.4, 0.2], abs=1e-9)
    p_hat = entropy_reduction(p_bar, 0.1)
    assert p_hat[0].tolist() == pytest.approx([0.4683105308, 0.4683105308, 0.0633789383], abs=1e-9)
    assert entropy(p_bar) == pytest.approx(1.0549, abs=5e-5)
    assert entropy(p_hat) == pytest.approx(0.8854, abs=5e-5)


def test_sharpening_is_capped_by_the_range_of_probabilities() -> None:
    certain = torch.zeros(1, 100, dtype=torch.float64)
    certain[0, 0] = 1
    p_hat = entropy_reduction(certain, 0.1)[0]
    assert float(p_hat[0] / p_hat[1]) == pytest.approx(math.exp(10))


@pytest.mark.parametrize("aggregation", ["ERA", "SA"])
def test_the_server_sends_what_it_makes_of_the_clients_mean(aggregation: Any) -> None:
    method = DSFL(TWO_EPOCHS, public_data=Digits(), public_samples=30, aggregation=aggregation)
    trial = digit_trial(method)
    said: list[torch.Tensor] = []
    client_step = method.client_step

    def spy(*arguments: Any) -> Any:
        payload = client_step(*arguments)
        said.append(payload["probabilities"].tensor)
        return payload

    method.client_step = spy  # type: ignore[method-assign]
    trial.round(1)
    assert len(said) == 4
    assert all(torch.allclose(p_k.sum(dim=1), torch.ones(30)) for p_k in said)
    p_bar = torch.stack(said).mean(dim=0)
    expected = entropy_reduction(p_bar, 0.1) if aggregation == "ERA" else p_bar
    sent = method.download(2)["soft_labels"].tensor
    assert torch.allclose(sent, expected, atol=1e-5)
    assert method.round_metrics(1)["distillation/entropy_nats"] == pytest.approx(entropy(sent) / 30, rel=1e-5)


def test_a_client_learns_the_last_consensus_then_its_own_data_and_speaks_about_new_samples() -> None:
    method = DSFL(TWO_EPOCHS, public_data=Digits(), public_samples=30, distillation_epochs=1)
    trial = digit_trial(method)
    calls: list[tuple[str, int]] = []
    train = method.resident.train

    def spy(client: Any, t: int, on_step: Any, **options: Any) -> None:
        calls.append((options.get("purpose", "batches"), client.id))
        train(client, t, on_step, **options)

    method.resident.train = spy  # type: ignore[method-assign]
    trial.round(1)
    assert calls == [("batches", k) for k in range(4)]
    calls.clear()
    trial.round(2)
    assert calls == [(purpose, k) for k in range(4) for purpose in ("public batches", "batches")]
    first, second = (method.open_subset(t) for t in (1, 2))
    images = [next(iter(subset.in_order(30)))[0] for subset in (first, second)]
    assert not torch.equal(*images)
    assert torch.equal(images[0], next(iter(method.open_subset(1).in_order(30)))[0])


def test_everybody_learns_about_public_samples_as_they_are() -> None:
    training = LocalTraining(epochs=1, batch_size=32, augmentation="crop_flip")
    method = DSFL(training, public_data=Digits(), public_samples=30, distillation_epochs=1)
    trial = digit_trial(method)
    trial.round(1)
    learnt: list[tuple[torch.Tensor, torch.Tensor]] = []
    train = method.resident.train

    def spy(*about: Any, loss: Any = None, **options: Any) -> None:
        def watched(batch: Any, index: int) -> Any:
            learnt.append(batch)
            return loss(batch, index)

        train(*about, loss=watched if loss else None, **options)

    method.resident.train = spy  # type: ignore[method-assign]
    ((images, _),) = method.open_subset(1).in_order(30)
    trial.round(2)
    assert len(learnt) == 4
    assert all(torch.equal(x, method.data.standardize(images[o])) for x, o in learnt)


def test_a_client_keeps_its_model_while_it_is_not_called() -> None:
    method = DSFL(TWO_EPOCHS, public_data=Digits(), public_samples=30)
    trial = digit_trial(method, clients_per_round=1)
    (first,) = trial.job.federation.cohort(1)
    trial.round(1)
    kept = trial.state(first.id)["weights"]
    assert not torch.equal(kept, method.w_1)
    t = next(t for t in range(2, 20) if trial.job.federation.cohort(t)[0].id != first.id)
    (other,) = trial.job.federation.cohort(t)
    assert torch.equal(method.initial_state(other)["weights"], method.w_1)
    trial.round(t)
    assert torch.equal(trial.state(first.id)["weights"], kept)
    assert not torch.equal(trial.state(other.id)["weights"], kept)


def test_local_steps_are_counted_over_both_parts() -> None:
    method = DSFL(TWO_EPOCHS, public_data=Digits(), public_samples=40, distillation_epochs=3)
    trial = digit_trial(method, clients_per_round=1)
    trial.round(1)
    seen: list[tuple[int, int, int]] = []
    trial.round(2, call=steps_seen(seen))
    (client,) = trial.job.federation.cohort(2)
    steps = 3 * 2 + 2 * -(-client.samples // 32)
    assert seen == [(client.id, step, steps) for step in range(1, steps + 1)]


def test_the_servers_model_learns_from_what_clients_say() -> None:
    method = DSFL(ENOUGH, public_data=Digits(), public_samples=400)
    trial = skewed_trial(method)
    losses = []
    for t in (1, 2):
        trial.round(t)
        losses.append(method.round_metrics(t)["distillation/loss"])
    assert method.evaluate(2)["test/accuracy"] > 0.5
    # The steps of a round lower the loss on the round's own samples.
    p_hat, subset = method.p_hat, method.open_subset(2)
    assert p_hat is not None
    method.load(method.w_server)
    after = float(distillation.soft_cross_entropy(distillation.logits_on(method.resident, subset), p_hat))
    assert after < losses[-1]
    assert all(0 < tested["test/accuracy_trained"] <= 1 for tested in trial.evaluate(2).values())


def test_traffic_is_two_rows_of_probabilities_per_public_sample_and_no_weights() -> None:
    sizes = []
    for width in (2, 6):
        method = DSFL(TWO_EPOCHS, public_data=Digits(), public_samples=30)
        model = SmallCNN(image_size=8, width=width)
        trial = digit_trial(method, clients=5, clients_per_round=3, model=model)
        up, down = dense_bytes("probabilities", 30, 10), dense_bytes("soft_labels", 30, 10)
        assert traffic(trial.round(1)) == (0, 3 * up)  # nobody has said anything yet
        sizes.append(traffic(trial.round(2)))
        assert sizes[-1] == (3 * down, 3 * up)
    assert sizes[0] == sizes[1]


def test_fewer_public_samples_than_asked_for_are_all_taken() -> None:
    method = DSFL(public_data=Digits(test_fraction=0.9), public_samples=1000)
    digit_trial(method)
    assert method.open_subset(1).samples == len(method.public_data.train) < 1000


@pytest.mark.parametrize(("option", "value"), [("public_samples", 0), ("distillation_epochs", 0), ("temperature", 0.0)])
def test_a_number_out_of_its_range_is_one_line(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        DSFL(public_data=Digits(), **{option: value})
