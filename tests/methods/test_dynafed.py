"""DynaFed: images through which SGD repeats the rounds, and a server that learns them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from digit_trial import TWO_EPOCHS, Constant, dense_bytes, digit_trial, traffic

from flgen import ConvNet, Digits, DynaFed, FedAvg, SmallCNN
from flgen.data import LabelledData
from flgen.data import siamese_augmentation as augmentation
from flgen.errors import FlgenError, UsageError
from flgen.federation.flat_parameters import named_parts
from flgen.methods.distillation import logits_on, soft_cross_entropy
from flgen.methods.dynafed import matching_loss, pick_target

FEW: dict[str, Any] = {
    "trajectory_rounds": 2,
    "images_per_class": 1,
    "synthesis_steps": 2,
    "inner_steps": 2,
    "fine_tune_epochs": 2,
    "fine_tune_batch_size": 4,
}


def test_the_loss_is_the_share_of_the_way_that_is_left() -> None:
    # Check 12 of the specification.
    start, target, student = (torch.tensor(v, dtype=torch.float64) for v in ([0.0, 0], [1.0, 2], [0.5, 1.5]))
    assert float(matching_loss(student, start, target)) == pytest.approx(0.1, abs=1e-9)
    assert float(matching_loss(start, start, target)) == 1
    assert float(matching_loss(target, start, target)) == 0


def test_a_target_is_two_or_more_of_the_models_that_follow_the_start() -> None:
    draws = torch.Generator().manual_seed(0)
    picked = [pick_target(6, 3, draws) for _ in range(500)]  # x^0 .. x^5
    assert {start for start, _ in picked} == {0, 1, 2, 3}
    assert {len(target) for _, target in picked} == {2, 3}
    for start, target in picked:
        assert len(set(target)) == len(target)
        assert all(start < number <= min(start + 3, 5) for number in target)
    assert pick_target(3, 3, draws) == (0, [1, 2])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No augmentation."""
    monkeypatch.setattr(augmentation, "siamese", lambda images, draws: images)


def unrolled_trial(**options: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    method = DynaFed(TWO_EPOCHS, **{**FEW, **options})
    torch.manual_seed(3)
    digit_trial(method, model=ConvNet(image_size=8, channels=1, width=2))
    draws = torch.Generator().manual_seed(1)
    U = torch.randn(10, 1, 8, 8, generator=draws)
    p = torch.softmax(torch.randn(10, 10, generator=draws), dim=1)
    return method, U, p


@pytest.mark.usefixtures("plain")
def test_inner_steps_are_plain_sgd_on_the_images() -> None:
    method, U, p = unrolled_trial(inner_steps=3)
    x = method.unroll(method.w_1[: method.d], U, p, torch.tensor(0.3), torch.Generator())
    sgd = torch.optim.SGD(method.model.parameters(), lr=0.3)
    for _ in range(3):
        sgd.zero_grad()
        soft_cross_entropy(method.model(U), p).backward()
        sgd.step()
    assert torch.allclose(x, method.resident.weights, atol=1e-5)


@pytest.mark.usefixtures("plain")
def test_gradients_of_the_inner_steps_are_those_of_finite_differences() -> None:
    method, U, p = unrolled_trial()
    method.model.double()
    x_0 = method.w_1[: method.d].double()
    named = {name: part.clone() for name, part in named_parts(x_0, method.parameters).items()}
    assert {name: part.shape for name, part in named.items()} == {
        name: parameter.shape for name, parameter in method.model.named_parameters()
    }
    U, p = U.double(), p.double()
    U.requires_grad_()
    p.requires_grad_()
    eta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def value(U: torch.Tensor, p: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
        return matching_loss(method.unroll(x_0, U, p, eta, torch.Generator()), x_0, x_0 + 0.01)

    gradients = torch.autograd.grad(value(U, p, eta), (U, p, eta))
    h, draws = 1e-5, torch.Generator().manual_seed(2)
    for number, gradient in enumerate(gradients):
        inputs = [tensor.detach() for tensor in (U, p, eta)]
        direction = torch.randn(gradient.shape, generator=draws, dtype=torch.float64)
        sides = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[number] = inputs[number] + sign * h * direction
            sides.append(float(value(*moved).detach()))
        slope = (sides[0] - sides[1]) / (2 * h)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_an_inner_batch_is_a_part_of_the_images() -> None:
    method, U, p = unrolled_trial(inner_batch_size=4, inner_steps=1)
    U.requires_grad_()
    x = method.unroll(method.w_1[: method.d], U, p, torch.tensor(0.3), torch.Generator().manual_seed(0))
    x.square().sum().backward()
    assert U.grad is not None
    assert int(U.grad.flatten(1).any(dim=1).sum()) == 4


def test_the_first_rounds_are_fedavg_whose_models_are_kept_until_the_images_are_made() -> None:
    method, averaged = DynaFed(TWO_EPOCHS, **{**FEW, "trajectory_rounds": 3}), FedAvg(TWO_EPOCHS)
    trial, plain_trial = digit_trial(method), digit_trial(averaged)
    models = [averaged.w_1]
    for t in (1, 2):
        trial.round(t)
        plain_trial.round(t)
        models.append(averaged.w_t)
        assert torch.equal(method.w_t, averaged.w_t)
        assert torch.equal(method.state_dict()["trajectory"], torch.stack(models)[:, : method.d])
        assert method.images is None
    trial.round(3)
    plain_trial.round(3)
    assert torch.equal(method.w_t, averaged.w_t)  # the images are made, but nobody has learnt them yet
    state = method.state_dict()
    assert state.keys() == {"weights", "images", "soft_labels"}
    assert state["images"].shape == (10, 1, 8, 8)
    assert torch.allclose(state["soft_labels"].sum(dim=1), torch.ones(10))
    trial.round(4)
    plain_trial.round(4)
    assert not torch.equal(method.w_t, averaged.w_t)
    assert torch.equal(method.state_dict()["images"], state["images"])  # once


def test_the_images_repeat_more_of_the_trajectory_the_longer_they_are_learnt() -> None:
    options = {**FEW, "images_per_class": 2, "inner_steps": 5, "step_size": 0.1}
    left = []
    for steps in (1, 60):
        method = DynaFed(TWO_EPOCHS, **{**options, "synthesis_steps": steps})
        digit_trial(method)
        # A trajectory that plain steps on one fixed batch make, which images can repeat.
        x, y = method.data.standardize(method.data.train.images[:200]), method.data.train.labels[:200]
        method.trajectory = [method.w_1[: method.d].clone()]
        sgd = torch.optim.SGD(method.model.parameters(), lr=0.1)
        for _ in range(2):
            for _ in range(5):
                sgd.zero_grad()
                torch.nn.functional.cross_entropy(method.model(x), y).backward()
                sgd.step()
            method.trajectory.append(method.resident.weights.clone())
        images, soft_labels = method.synthesise(2)
        start, target = method.trajectory[0], torch.stack(method.trajectory[1:]).mean(dim=0)
        reached = method.unroll(start, images, soft_labels, torch.tensor(0.1), torch.Generator().manual_seed(5))
        left.append(float(matching_loss(reached.detach(), start, target)))
    assert left[1] < 0.9 * left[0]


def test_the_server_learns_the_images_and_every_seed_makes_its_own() -> None:
    method = DynaFed(TWO_EPOCHS, **{**FEW, "fine_tune_epochs": 30, "fine_tune_learning_rate": 1e-3})
    trial = digit_trial(method)
    for t in (1, 2):
        trial.round(t)
    assert set(method.round_metrics(2)) == {"synthesis/loss", "synthesis/step_size"}
    assert method.images is not None
    assert method.soft_labels is not None
    method.load(method.w_t)

    def loss() -> float:
        with torch.no_grad():
            return float(soft_cross_entropy(method.model(method.images), method.soft_labels))

    before = loss()
    mean = method.learn_images(3)
    assert loss() < mean < before
    trial.round(3)
    assert set(method.round_metrics(3)) == {"distillation/loss"}


def test_a_model_with_batch_norm_is_refused_and_so_are_data_that_are_no_images() -> None:
    class Normalised(SmallCNN):
        def __init__(self) -> None:
            super().__init__(image_size=8, width=4)
            self.network[1] = torch.nn.BatchNorm2d(4)

    class Waves(LabelledData):
        noun = "waveforms"

    with pytest.raises(
        UsageError, match=r"--model Normalised has BatchNorm \(network.1\), .* such as ConvNet, or with"
    ):
        DynaFed().prepare(Normalised(), Digits())
    with pytest.raises(UsageError, match=r"--method DynaFed makes images, but --data Waves holds waveforms"):
        DynaFed().prepare(Constant(10), Waves())
    DynaFed().prepare(SmallCNN(image_size=8, width=4), Digits())


@pytest.mark.parametrize(("rounds", "said"), [(2, True), (3, False)])
def test_a_run_that_ends_before_any_image_is_learnt_is_called_fedavg(
    rounds: int, said: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flgen"), "propagate", True)
    digit_trial(DynaFed(TWO_EPOCHS, **FEW), rounds=rounds)
    assert ("--trainer.rounds is 2: DynaFed makes its images after round 2" in caplog.text) == said


def test_models_that_stand_still_are_no_trajectory() -> None:
    method = DynaFed(TWO_EPOCHS, **FEW)
    torch.manual_seed(3)
    trial = digit_trial(method, model=SmallCNN(image_size=8, width=4, learning_rate=0.0))
    trial.round(1)
    with pytest.raises(
        FlgenError, match=r"the models of rounds 0 to 2 are all the same, .* raise --model.learning_rate"
    ):
        trial.round(2)


def test_images_that_leave_all_bounds_end_the_run_with_what_to_lower() -> None:
    method = DynaFed(TWO_EPOCHS, **{**FEW, "image_learning_rate": 1e30, "synthesis_steps": 4})
    trial = digit_trial(method)
    trial.round(1)
    with pytest.raises(FlgenError, match=r"hold NaN or infinity: lower --method.image_learning_rate or"):
        trial.round(2)


def test_a_restart_before_and_after_the_images_are_made_goes_on_with_what_there_was(tmp_path: Path) -> None:
    method = DynaFed(TWO_EPOCHS, **FEW)
    trial = digit_trial(method)
    for t in (1, 2):
        trial.round(t)
        torch.save(method.state_dict(), tmp_path / f"{t}.pt")
    trial.round(3)
    for t in (1, 2):
        again = DynaFed(TWO_EPOCHS, **FEW)
        other = digit_trial(again)
        again.load_state_dict(torch.load(tmp_path / f"{t}.pt", weights_only=True))
        for later in range(t + 1, 4):
            other.round(later)
        assert torch.equal(again.w_t, method.w_t)


def test_traffic_is_that_of_fedavg_in_every_round() -> None:
    method = DynaFed(TWO_EPOCHS, **FEW)
    trial = digit_trial(method, clients=5, clients_per_round=3)
    model = dense_bytes("weights", len(method.w))
    for t in (1, 2, 3):
        assert traffic(trial.round(t)) == (3 * model, 3 * model)
    assert logits_on(method.resident, trial.job.federation.clients[0].data).shape[1] == 10


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trajectory_rounds", 1),
        ("images_per_class", 0),
        ("synthesis_steps", 0),
        ("inner_steps", 0),
        ("inner_batch_size", 0),
        ("target_span", 1),
        ("image_learning_rate", 0.0),
        ("label_learning_rate", 0.0),
        ("step_size", 0.0),
        ("step_size_learning_rate", 0.0),
        ("fine_tune_epochs", 0),
        ("fine_tune_batch_size", 0),
        ("fine_tune_learning_rate", 0.0),
    ],
)
def test_a_number_out_of_its_range_is_one_line(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        DynaFed(**{option: value})
