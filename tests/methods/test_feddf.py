"""FedDF: the ensemble is the mean of logits, the student starts at the average, early stopping looks at no label."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from digit_trial import ENOUGH, TWO_EPOCHS, Constant, dense_bytes, digit_trial, gathered, skewed_trial, traffic
from peer_trial import row

from flgen import Digits, FedAvg, FedDF, Star
from flgen.data.image_set import ImageSet
from flgen.errors import UsageError
from flgen.methods.feddf import ensemble_divergence
from flgen.privacy.secure_aggregation import SecureAggregation

FEW: dict[str, Any] = {"distillation_steps": 60, "distillation_batch_size": 64, "validate_every": 10, "patience": 60}


def test_the_target_is_the_softmax_of_mean_logits() -> None:
    # Check 11 of the specification.
    logits = torch.tensor([[[2.0, 0, 0]], [[0, 2.0, 0]]], dtype=torch.float64)
    f_bar = logits.mean(dim=0)
    target = torch.softmax(f_bar, dim=1)[0].tolist()
    assert target == pytest.approx([0.4223187983, 0.4223187983, 0.1553624035], abs=1e-9)
    uniform = torch.zeros(1, 3, dtype=torch.float64)
    assert float(ensemble_divergence(f_bar, uniform, 1.0)) == pytest.approx(0.0812550811, abs=1e-9)
    wrong = torch.softmax(logits, dim=2).mean(dim=0)[0].tolist()  # the mean of probabilities
    assert wrong == pytest.approx([0.4467, 0.4467, 0.1065], abs=1e-4)
    assert float(ensemble_divergence(torch.tensor([wrong]).log(), uniform, 1.0)) != pytest.approx(0.08125508, abs=1e-3)


def test_the_divergence_is_nothing_for_the_ensemble_itself_and_logits_are_divided_by_the_temperature() -> None:
    f_bar = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
    student = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert float(ensemble_divergence(f_bar, f_bar, 2.0)) == pytest.approx(0, abs=1e-12)
    divided = ensemble_divergence(f_bar / 4, student / 4, 1.0)
    assert float(ensemble_divergence(f_bar, student, 4.0)) == pytest.approx(float(divided), abs=1e-12)


def test_the_server_averages_the_logits_of_the_models_that_it_received_in_eval_mode() -> None:
    model = Constant(10)
    method = FedDF(public_data=Digits(), **{**FEW, "distillation_steps": 1})
    trial = digit_trial(method, clients=2, model=model)
    for client, samples in zip(trial.job.federation.clients, (1, 3), strict=True):
        client.samples = samples
    seen: dict[str, Any] = {}

    def spy(t: int, f_bar: torch.Tensor) -> Any:
        seen.update(f_bar=f_bar, student=method.w.clone(), modes=list(model.calls))
        return FedDF.distil(method, t, f_bar)

    method.distil = spy  # type: ignore[method-assign]
    a, b = row(2, *[0] * 9), row(0, 2, *[0] * 8)
    model.calls.clear()
    method.aggregate(1, gathered({"weights": a}, {"weights": b}, samples=4))
    assert seen["f_bar"].shape == (len(public_images()), 10)
    assert torch.equal(seen["f_bar"][0], (a + b) / 2)  # every model counts alike,
    assert torch.allclose(seen["student"], 0.25 * a + 0.75 * b)  # the average by samples
    assert not any(seen["modes"])


def public_images() -> torch.Tensor:
    data = Digits()
    data.setup()
    return data.train.images


def test_a_round_ends_after_the_patience_and_keeps_the_best_which_may_be_the_average() -> None:
    model = Constant(10)
    method = FedDF(public_data=Digits(), distillation_steps=100, validate_every=5, patience=20)
    trial = digit_trial(method, clients=2, model=model)
    for client in trial.job.federation.clients:
        client.samples = 1
    model.calls.clear()
    a, b = row(2, *[0] * 9), row(0, 2, *[0] * 8)
    # The average of such models already says what the ensemble says: nothing is better.
    method.aggregate(1, gathered({"weights": a}, {"weights": b}))
    assert sum(model.calls) == 20  # steps, in train mode
    assert torch.allclose(method.w_t, (a + b) / 2)
    assert method.round_metrics(1) == {"distillation/loss": pytest.approx(0, abs=1e-6), "distillation/steps": 0}


def test_the_student_learns_what_the_ensemble_says_about_samples_that_it_has_not_learnt() -> None:
    averaged = skewed_trial(FedAvg(ENOUGH))
    averaged.round(1)
    method = FedDF(ENOUGH, public_data=Digits(), **FEW)
    trial = skewed_trial(method)
    start: list[float] = []
    ensemble: list[Any] = []

    def spy(t: int, f_bar: torch.Tensor) -> Any:
        ensemble.append(f_bar)
        assert torch.allclose(method.w, averaged.method.w_t, atol=1e-6)  # sum_k (n_k / n) w_k
        best = FedDF.distil(method, t, f_bar)
        start.append(best.loss)
        return best

    method.distil = spy  # type: ignore[method-assign]
    trial.round(1)
    reported = method.round_metrics(1)
    assert reported["distillation/steps"] > 0
    # Held back are the first tenth of the rows, in an order of their own.
    held_back = slice(0, int(0.1 * len(ensemble[0])))
    rows = method._rows()[held_back]

    def divergence(w: torch.Tensor) -> float:
        method.load(w)
        method.model.eval()
        with torch.no_grad():
            student = method.model(method.data.standardize(public_images()[rows]))
        return float(ensemble_divergence(ensemble[0][held_back], student, 1.0))

    assert divergence(method.w_t) == pytest.approx(reported["distillation/loss"], rel=1e-4)
    assert divergence(method.w_t) < 0.7 * divergence(averaged.method.w_t)
    assert method.evaluate(1)["test/accuracy"] > averaged.method.evaluate(1)["test/accuracy"]


def test_labels_of_the_public_data_make_no_difference() -> None:
    class Unlabelled(Digits):
        def load(self) -> tuple[ImageSet, ImageSet]:
            train, test = super().load()
            return ImageSet(train.images, torch.zeros_like(train.labels)), test

    weights = []
    for public in (Digits(), Unlabelled()):
        trial = digit_trial(FedDF(TWO_EPOCHS, public_data=public, **{**FEW, "distillation_steps": 10}))
        trial.round(1)
        weights.append(trial.method.w_t)
    assert torch.equal(*weights)


def test_traffic_is_that_of_fedavg_two_models_per_client() -> None:
    method = FedDF(TWO_EPOCHS, public_data=Digits(), **{**FEW, "distillation_steps": 2})
    trial = digit_trial(method, clients=5, clients_per_round=3)
    model = dense_bytes("weights", len(method.w))
    assert traffic(trial.round(1)) == (3 * model, 3 * model)
    assert traffic(trial.round(2)) == (3 * model, 3 * model)


def test_it_refuses_secure_aggregation_and_says_why() -> None:
    method = FedDF(public_data=Digits(), topology=Star(secure_aggregation=SecureAggregation()))
    with pytest.raises(
        UsageError, match=r"FedDF cannot run .* \(its server runs every client's model on the public da"
    ):
        digit_trial(method)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 0.0),
        ("distillation_steps", 0),
        ("distillation_batch_size", 0),
        ("distillation_learning_rate", -1.0),
        ("validation_fraction", 1.0),
        ("validate_every", 0),
        ("patience", 0),
    ],
)
def test_a_number_out_of_its_range_is_one_line(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        FedDF(public_data=Digits(), **{option: value})
