"""FedFOMO by hand: what a peer's model is worth, how far the client moves, and whom it asks next."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from peer_trial import ONE_STEP, Pull, Remembering, Trial, row

from flgen import Digits, FedFOMO, LocalTraining, Ring, Shards, SmallCNN
from flgen.errors import UsageError


def scored(w: float, *p: float) -> dict[str, torch.Tensor]:
    return {"weights": row(w), "scores": torch.tensor(p, dtype=torch.float64)}


def three_clients(**options: Any) -> Trial:
    """Weights 0, 4, -2; targets 10, 0, -2; 8 samples each, of which 2 weigh models."""
    method = FedFOMO(ONE_STEP, neighbours=2, validation_fraction=0.25, **options)
    states = {0: scored(0, 0, 0, 0), 1: scored(4, 0, 0, 0), 2: scored(-2, 0, 0, 0)}
    return Trial(method, Pull([0], [[10], [0], [-2]]), (8, 8, 8), states=states)


def test_a_client_moves_towards_what_is_better_on_its_validation_samples() -> None:
    trial = three_clients()
    trial.round(1)
    # Client 0, L = (w - 10)^2 over two samples: u = 1; omega 16 for client 1's 4, -22 for client 2's -2, 19 for u.
    assert torch.allclose(trial.state(0)["weights"], row((16 * 4 + 19 * 1) / 35))
    assert torch.allclose(trial.state(0)["scores"], torch.tensor([19.0, 16, -22]).double(), atol=1e-4)
    # Client 1, L = w^2: u = 3.6; omega 4 for client 0's 0, 2 for client 2's -2, 7.6 for u.
    assert torch.allclose(trial.state(1)["weights"], row(4 - (4 * 4 + 2 * 6 + 7.6 * 0.4) / 13.6))
    assert torch.allclose(trial.state(1)["scores"], torch.tensor([4.0, 7.6, 2]).double(), atol=1e-4)
    # Client 2 is where it wants to be: u is w, at distance 0, and nobody is better.
    assert torch.equal(trial.state(2)["weights"], row(-2))
    assert torch.allclose(trial.state(2)["scores"], torch.tensor([-2.0, -6, 0]).double())


def test_scores_add_up_and_those_of_clients_not_heard_stay() -> None:
    trial = three_clients(exploration=0.0)
    trial.method.neighbours = 1
    states = {0: scored(0, 1, 5, 2), 1: scored(4, 3, 0, 0), 2: scored(-2, 0, 0, 0)}
    for k, state in states.items():
        trial.store.stage(k, state)
    trial.store.commit()
    trial.round(1)
    # Each hears one: client 0 asks 1, client 1 asks 0, client 2 knows nobody and asks 0.
    assert torch.allclose(trial.state(0)["scores"], torch.tensor([20.0, 21, 2]).double(), atol=1e-4)
    assert torch.allclose(trial.state(1)["scores"], torch.tensor([7.0, 7.6, 0]).double(), atol=1e-4)
    assert torch.allclose(trial.state(2)["scores"], torch.tensor([-2.0, 0, 0]).double())


def test_training_is_lost_if_nothing_is_better_than_the_last_model() -> None:
    states = {0: scored(0, 0, 0), 1: scored(-5, 0, 0)}
    model = Pull([0], [[1], [-5]], learning_rate=3.0)  # a step from 0 leads past 1, to 3
    trial = Trial(FedFOMO(ONE_STEP), model, (2, 2), states=states)
    outcome = trial.round(1)
    assert outcome.clients[0]["test/accuracy_trained"] == pytest.approx(4)
    assert outcome.clients[0]["test/accuracy_aggregated"] == pytest.approx(1)
    assert torch.equal(trial.state(0)["weights"], row(0))
    assert torch.allclose(trial.state(0)["scores"], torch.tensor([-0.5, -17.5 / 5]).double())


def test_clients_are_tested_after_training_and_then_after_mixing() -> None:
    outcome = three_clients().round(1)
    assert outcome.clients[0]["test/accuracy_trained"] == pytest.approx(81)
    assert outcome.clients[0]["test/accuracy_aggregated"] == pytest.approx((83 / 35 - 10) ** 2)


def test_a_client_that_no_model_of_a_peer_can_serve_is_not_harmed_by_it() -> None:
    states = {0: scored(0, 0, 0), 1: scored(3e19, 0, 0)}  # whose loss on client 0's samples is beyond float32
    trial = Trial(FedFOMO(ONE_STEP), Pull([0], [[10], [3e19]]), (2, 2), states=states)
    trial.round(1)
    assert torch.equal(trial.state(0)["weights"], row(1))
    assert torch.isfinite(trial.state(0)["scores"]).all()


def five_clients(**options: Any) -> Trial:
    model = Pull([0], [[0]] * 5)
    return Trial(FedFOMO(ONE_STEP, neighbours=2, **options), model, [2] * 5)


def choices(trial: Trial, rounds: int, scores: list[float]) -> Counter[tuple[int, ...]]:
    """Whom client 2 chooses, how often."""
    client = trial.job.federation.clients[2]
    client.state = scored(0, *scores)
    return Counter(trial.method.choose(client, (0, 1, 3, 4), t) for t in range(1, rounds + 1))


def test_without_exploration_the_best_scores_are_chosen_and_of_equals_the_first() -> None:
    trial = five_clients(exploration=0.0)
    assert choices(trial, 20, [-1, 3, 9, 0, 2]) == {(1, 4): 20}
    assert choices(trial, 20, [0, 0, 9, 0, 0]) == {(0, 1): 20}
    assert choices(trial, 20, [-5, -4, 9, -3, 0]) == {(3, 4): 20}


def test_exploring_clients_choose_at_random_without_replacement_and_never_themselves() -> None:
    chosen = choices(five_clients(exploration=1.0), 300, [9, 9, 9, 0, 0])
    assert chosen.keys() == {(0, 1), (0, 3), (0, 4), (1, 3), (1, 4), (3, 4)}
    assert all(25 < times < 80 for times in chosen.values())


def test_exploration_is_a_probability() -> None:
    best = choices(five_clients(exploration=0.3), 300, [9, 9, 9, 0, 0])[0, 1]
    assert best / 300 == pytest.approx(0.7 + 0.3 / 6, abs=0.1)


def test_who_wants_more_peers_than_there_are_hears_all_of_them() -> None:
    trial = three_clients()
    trial.method.neighbours = 10
    rows = trial.round(1).ledger
    assert [row.messages for row in rows] == [6]


def test_peers_are_chosen_among_those_that_the_topology_lets_through() -> None:
    trial = five_clients(exploration=0.5, topology=Ring())
    trial.method.neighbours = 1
    heard: dict[int, set[int]] = {k: set() for k in range(5)}
    mix = trial.method.mix

    def listen(client: Any, inbox: Any, t: int) -> None:
        assert len(inbox) == 2
        assert client.id in inbox
        heard[client.id] |= inbox.keys() - {client.id}
        mix(client, inbox, t)

    trial.method.mix = listen
    for t in range(1, 13):
        trial.round(t)
    assert heard == {k: {(k - 1) % 5, (k + 1) % 5} for k in range(5)}


class Shown(Pull):
    """Keeps the sizes of the batches that it learns from and of those that it is only weighed on."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.sizes.append((self.training, len(batch[1])))
        return super().training_step(batch, batch_idx)

    sizes: list[tuple[bool, int]] = []  # noqa: RUF012


def test_validation_samples_are_not_trained_on() -> None:
    training = LocalTraining(epochs=2, batch_size=4)
    states = {0: scored(0, 0, 0), 1: scored(1, 0, 0)}
    trial = Trial(FedFOMO(training, validation_fraction=0.25), Shown([0], [[1], [2]]), (8, 8), states=states)
    Shown.sizes.clear()
    trial.round(1)
    weighed, trained = (False, 2), [(True, 4), (True, 2)]
    each = [weighed, *trained, *trained, weighed, weighed]  # w_k; two passes; the peer's and u_k
    assert Shown.sizes == each * 2


def test_the_split_is_a_tenth_without_overlap_and_the_same_in_every_round() -> None:
    trial = Trial(FedFOMO(ONE_STEP), SmallCNN(image_size=8, width=2), data=Digits(), partition=Shards(clients=3))

    def images(data: Any) -> list[bytes]:
        return [image.numpy().tobytes() for x, _ in data.in_order(100) for image in x]

    for client in trial.job.federation.clients:
        rest, validation = (images(part) for part in client.split(0.1))
        assert len(validation) == client.samples // 10
        assert sorted(rest + validation) == sorted(images(client.data))
        assert [images(part) for part in client.split(0.1)] == [rest, validation]


@pytest.mark.parametrize(("fraction", "samples", "held_back"), [(0.1, 5, 1), (0.29, 100, 29), (0.5, 3, 1)])
def test_the_validation_split_is_rounded_down_but_never_empty(fraction: float, samples: int, held_back: int) -> None:
    trial = Trial(FedFOMO(ONE_STEP), Pull([0], [[1], [2]]), (samples, 2))
    rest, validation = trial.job.federation.clients[0].split(fraction)
    assert (rest.samples, validation.samples) == (samples - held_back, held_back)


def test_a_client_that_cannot_hold_a_sample_back_is_refused_before_the_run() -> None:
    with pytest.raises(UsageError, match=r"client 1 has 1 sample, but FedFOMO .* or raise --partition.min_samples"):
        Trial(FedFOMO(ONE_STEP), Pull([0], [[1], [2]]), (2, 1))


def test_buffers_move_with_the_weights_and_do_not_count_as_distance() -> None:
    states = {0: scored(0, 0, 0), 1: scored(4, 0, 0)}
    for k, state in states.items():
        state["buffers"], state["counters"] = row(100.0 * k), torch.tensor([k])
    trial = Trial(FedFOMO(ONE_STEP), Remembering([0], [[10], [0]]), (2, 2), states=states)
    trial.round(1)
    # One sample held back: omega 8 for client 1's 4 with buffer 100, 9.5 for u = 1 with buffer 0 + 1.
    assert torch.allclose(trial.state(0)["weights"], row((8 * 4 + 9.5 * 1) / 17.5))
    assert torch.allclose(trial.state(0)["buffers"], row((8 * 100 + 9.5 * 1) / 17.5))
    assert int(trial.state(0)["counters"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "--method.neighbours is 0: give 1 or more"),
        ({"exploration": 1.5}, "--method.exploration is 1.5: give a probability from 0 to 1"),
        ({"validation_fraction": 0.0}, "--method.validation_fraction is 0.0: give a share between 0 and 1"),
        ({"validation_fraction": 1.0}, "--method.validation_fraction is 1.0: give a share between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FedFOMO(**options)
