"""Sub-FedAvg by hand: when a client prunes, what it takes away, and the mean over those who hold a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peer_trial import Pull, Trial, mask, row, steps_seen

from flgen import FedAvg, LocalTraining, SubFedAvg
from flgen.client_turns import ClientFailed
from flgen.errors import UsageError

TWO_EPOCHS = LocalTraining(epochs=2, batch_size=1000)
START, TARGET = [1.0, 1.5, 3.0, 4.0], [3.0, 0.0, 3.0, 4.0]
# Under SGD at 0.1: [1.2, 1.35, 3, 4] after one epoch, [1.38, 1.215, 3, 4] after two. The smallest changes its place.
TRAINED = row(1.38, 1.215, 3, 4)


class Graded(Pull):
    """Has an accuracy that is given, and keeps the weights that were tested."""

    grade = 1.0

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.tested = self.w[0].clone()
        self.log("test/accuracy", torch.tensor(self.grade))


def pruning_trial(grade: float = 1.0, **options: Any) -> Trial:
    """Two clients with the same loss, of which each would prune one weight of four."""
    model = Graded(START, [TARGET, TARGET])
    model.grade = grade
    return Trial(SubFedAvg(TWO_EPOCHS, **{"prune_share": 0.25, **options}), model)


def test_a_mask_is_adopted_if_it_moves_leaves_enough_and_is_good_enough() -> None:
    trial = pruning_trial()
    outcome = trial.round(1)
    # m' = [0, 1, 1, 1] and m'' = [1, 0, 1, 1]
    assert torch.equal(trial.state(0)["mask"], mask(1, 0, 1, 1))
    assert torch.allclose(trial.job.model.tested, row(1.38, 0, 3, 4))
    assert outcome.metrics["mask/density"] == 0.75
    # Nobody holds the second weight: the server's stays.
    assert torch.allclose(trial.method.w_t, row(1.38, 1.5, 3, 4))


@pytest.mark.parametrize(
    ("grade", "options"),
    [
        (1.0, {"mask_change": 0.5}),  # m' and m'' differ in two bits of four
        (1.0, {"density": 1.0}),  # no more than the client has
        (0.5, {}),  # no better than the least accuracy
        (0.9, {"least_accuracy": 0.9}),
        (1.0, {"prune_share": 0.0}),
    ],
)
def test_otherwise_the_client_keeps_its_mask_and_sends_what_it_trained(grade: float, options: dict[str, Any]) -> None:
    trial = pruning_trial(grade, **options)
    trial.round(1)
    assert torch.equal(trial.state(0)["mask"], mask(1, 1, 1, 1))
    assert torch.allclose(trial.method.w_t, TRAINED)


def test_each_condition_is_met_just_beyond_its_limit() -> None:
    trial = pruning_trial(0.51, mask_change=0.49, density=0.99, least_accuracy=0.5)
    trial.round(1)
    assert torch.equal(trial.state(0)["mask"], mask(1, 0, 1, 1))


def test_the_accuracy_that_decides_is_on_the_clients_own_training_samples() -> None:
    seen: list[int] = []

    class Counting(Graded):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(len(batch[1]))
            super().test_step(batch, batch_idx)

    Trial(SubFedAvg(TWO_EPOCHS, prune_share=0.25), Counting(START, [TARGET, TARGET]), (7, 5)).round(1)
    assert seen == [7, 5]


def test_a_module_without_an_accuracy_cannot_decide() -> None:
    class Silent(Pull):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test/loss", torch.tensor(0.0))

    trial = Trial(SubFedAvg(TWO_EPOCHS, prune_share=0.25), Silent(START, [TARGET, TARGET]))
    with pytest.raises(ClientFailed, match=r"round 1, client 0 .*Silent logs no test/accuracy in test_step"):
        trial.round(1)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("alive", [1, 2, 20, 21, 41, 60])
def test_pruning_clears_what_is_below_the_percentile_of_what_is_left(share: float, alive: int) -> None:
    method = SubFedAvg(TWO_EPOCHS, prune_share=share)
    method.sizes = [80, 5]
    draws = torch.Generator().manual_seed(alive)
    w = torch.randn(85, generator=draws)
    m = torch.zeros(85, dtype=torch.bool)
    m[torch.randperm(80, generator=draws)[:alive]] = True
    m[80] = True  # a second layer with one weight, which is never below itself
    pruned = method.prune(m, w)
    limit = np.percentile(w[:80][m[:80]].abs().numpy(), 100 * share)
    assert torch.equal(pruned, m & ((w.abs() >= float(limit)) | (torch.arange(85) == 80)))


def test_percentiles_are_of_each_layer() -> None:
    method = SubFedAvg(TWO_EPOCHS, prune_share=0.5)
    method.sizes = [3, 3]
    w = row(1, -2, 3, -100, 200, 300)
    assert torch.equal(method.prune(mask(1, 1, 1, 1, 1, 1), w), mask(0, 1, 1, 0, 1, 1))
    assert torch.equal(method.prune(mask(0, 1, 1, 1, 0, 0), w), mask(0, 0, 1, 1, 0, 0))


def holders() -> dict[int, dict[str, torch.Tensor]]:
    return {0: {"mask": mask(1, 1, 0, 0)}, 1: {"mask": mask(1, 0, 1, 0)}}


def test_each_weight_is_averaged_over_those_who_hold_it_and_kept_if_nobody_does() -> None:
    model = Pull([1, 2, 3, 4], [[2, 4, 9, 9], [3, 9, 5, 9]])
    trial = Trial(SubFedAvg(TWO_EPOCHS), model, (1, 3), states=holders())  # half of it left: nothing more to prune
    trial.round(1)
    # Two steps go 0.19 of the way: client 0 to [1.19, 2.38, -, -], client 1 to [1.38, -, 3.38, -]
    assert torch.allclose(trial.method.w_t, row(1.285, 2.38, 3.38, 4))
    assert torch.equal(trial.state(0)["mask"], mask(1, 1, 0, 0))
    # Tested as w m_k.
    accuracy = 0.715**2 + 1.62**2 + 9**2 + 9**2
    assert trial.evaluate(1)[0] == {"test/accuracy_aggregated": pytest.approx(accuracy, rel=1e-5)}


def test_a_client_that_was_not_chosen_is_tested_with_the_whole_model() -> None:
    trial = Trial(SubFedAvg(TWO_EPOCHS), Pull([1, 2], [[3, 2], [3, 2]]), clients_per_round=1)
    (chosen,) = trial.job.federation.cohort(1)
    trial.store.stage(chosen.id, {"mask": mask(1, 0)})
    trial.store.commit()
    trial.round(1)
    tested = trial.evaluate(1)
    assert tested[chosen.id]["test/accuracy_aggregated"] == pytest.approx(1.62**2 + 2**2, rel=1e-5)
    assert tested[1 - chosen.id]["test/accuracy_aggregated"] == pytest.approx(1.62**2, rel=1e-5)


class Biased(Pull):
    """Has a bias and a scale beside its row, before and after it; all are pulled towards the first target."""

    def __init__(self, start: list[float], targets: list[list[float]]) -> None:
        super().__init__(start, targets)
        self.bias = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("running", torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        pull = 0.5 * (self.bias - self.targets[batch[1][0]][:2]).square().sum()
        if self.training:
            self.running += batch[1][0] + 1
        return super().training_step(batch, batch_idx) + pull


def test_biases_and_buffers_are_averaged_over_everybody() -> None:
    model = Biased([1, 2, 3, 4], [[2, 4, 9, 9], [3, 9, 5, 9]])
    trial = Trial(SubFedAvg(TWO_EPOCHS), model, (1, 3), states=holders())
    trial.round(1)
    bias, w, running = trial.method.w_t.split([2, 4, 1])
    assert torch.allclose(bias, row(0.19 * 2.5, 0.19 * 6.5))
    assert torch.allclose(w, row(1.285, 2.38, 3.38, 4))
    assert torch.allclose(running, row((2 * 1 + 2 * 2) / 2))
    assert torch.equal(trial.state(1)["mask"], mask(1, 0, 1, 0))


def test_what_a_mask_leaves_out_takes_no_part_in_the_loss() -> None:
    class Summed(Pull):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return 0.5 * (self.w.sum() - 11).square()

    states = {k: {"mask": mask(1, 0)} for k in range(2)}
    trial = Trial(SubFedAvg(TWO_EPOCHS), Summed([1, 5], [[0, 0]] * 2), states=states)
    trial.round(1)
    assert torch.allclose(trial.method.w_t, row(2.9, 5))  # 1, then 2: the 5 is not in the sum


def test_gradients_are_masked_before_they_are_clipped() -> None:
    training = LocalTraining(epochs=2, batch_size=1000, clip_norm=10.0)
    states = {k: {"mask": mask(1, 0)} for k in range(2)}
    trial = Trial(SubFedAvg(training), Pull([0, 7], [[30, -40]] * 2, learning_rate=1.0), states=states)
    trial.round(1)
    assert torch.allclose(trial.method.w_t, row(20, 7))


def test_masks_only_lose_weights_until_the_density_asked_for() -> None:
    targets = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    start = torch.randn(40, generator=torch.Generator().manual_seed(2))
    model = Graded(start.tolist(), targets.tolist(), learning_rate=0.3)
    trial = Trial(SubFedAvg(TWO_EPOCHS, density=0.6, prune_share=0.1, mask_change=1e-9), model)
    masks = [mask(*[1] * 40)]
    for t in range(1, 16):
        trial.method.w_t = start.clone()  # far from the targets: the order of the weights keeps changing
        trial.round(t)
        new = trial.state(0)["mask"]
        assert not (new & ~masks[-1]).any()
        masks.append(new)
    assert 0.5 < float(masks[-1].float().mean()) <= 0.6


def test_progress_counts_the_steps_of_all_epochs_as_one_row() -> None:
    steps: list[tuple[int, int, int]] = []
    training = LocalTraining(epochs=3, batch_size=2)
    Trial(SubFedAvg(training), Pull([1, 2], [[1, 2], [2, 1]]), (5, 1)).round(1, call=steps_seen(steps))
    assert steps == [(0, done, 9) for done in range(1, 10)] + [(1, done, 3) for done in range(1, 4)]


def test_one_that_never_prunes_is_uniform_averaging() -> None:
    class Uniform(FedAvg):
        collection = "sum"

    def average(method: FedAvg) -> torch.Tensor:
        trial = Trial(method, Pull(START, [TARGET, [9, 9, -9, 0]]), (1, 5))
        for t in (1, 2, 3):
            trial.round(t)
        return method.w_t

    training = LocalTraining(epochs=3, batch_size=1000, learning_rate_decay=0.9, clip_norm=2.0)
    ours, theirs = average(SubFedAvg(training, density=1.0)), average(Uniform(training))
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(ours, row(*START), atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 1.5}, "--method.density is 1.5: give a share from 0 to 1"),
        ({"prune_share": -0.1}, "--method.prune_share is -0.1: give a share from 0 to 1"),
        ({"least_accuracy": 2}, "--method.least_accuracy is 2: give a share from 0 to 1"),
        ({"training": LocalTraining(epochs=1)}, "--method.training.epochs is 1, but SubFedAvg compares .* give 2 or"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SubFedAvg(**options)
