"""FedDF: the ensemble is the mean of logits, the student starts at the average, and who says which one is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from digit_trial import ENOUGH, TWO_EPOCHS, Constant, dense_bytes, digit_trial, gathered, skewed_trial, traffic
from peer_trial import ONE_STEP, OneClassEach, Trial, row

from flgen import Digits, Evaluation, FedAvg, FedDF, SmallCNN, Star
from flgen.client_turns import ErrorPolicy
from flgen.data.image_set import ImageSet
from flgen.errors import FlgenError, UsageError
from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_ledger, read_metrics
from flgen.methods import feddf
from flgen.methods.feddf import ensemble_divergence
from flgen.privacy.secure_aggregation import SecureAggregation

FEW: dict[str, Any] = {"distillation_steps": 60, "distillation_batch_size": 64, "validate_every": 10, "patience": 60}
BY_CLIENTS: dict[str, Any] = {"validation": "clients", "students": 3, "distillation_steps": 60}


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
        return FedDF.best_student(method, t, f_bar)

    method.best_student = spy  # type: ignore[method-assign]
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
        best = FedDF.best_student(method, t, f_bar)
        start.append(best.loss)
        return best

    method.best_student = spy  # type: ignore[method-assign]
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


def test_the_last_step_is_looked_at_however_few_there_are() -> None:
    method = FedDF(ENOUGH, public_data=Digits(), distillation_steps=25, validate_every=100)
    skewed_trial(method).round(1)
    assert method.round_metrics(1)["distillation/steps"] == 25


def test_patience_that_ends_before_the_first_look_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^--method.patience is 50, .* after 100 steps: raise it, or lower --method.v"
    ):
        FedDF(public_data=Digits(), patience=50)
    with pytest.raises(UsageError, match=r"^--method.patience is 50, .* after 60 steps"):
        FedDF(public_data=Digits(), patience=50, distillation_steps=60)
    FedDF(public_data=Digits(), patience=50, distillation_steps=50)
    FedDF(public_data=Digits(), patience=50, validation="clients")  # who knows no patience


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
        ("students", 0),
    ],
)
def test_a_number_out_of_its_range_is_one_line(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"^--method\.{option} is {value}: give [^\n]+$"):
        FedDF(public_data=Digits(), **{option: value})


def by_clients(training: Any = ENOUGH, **options: Any) -> Any:
    return FedDF(training, public_data=Digits(), distillation_batch_size=64, **{**BY_CLIENTS, **options})


def test_clients_train_on_what_they_do_not_hold_back() -> None:
    method = by_clients(TWO_EPOCHS, distillation_steps=3, validation_fraction=0.25)
    trial = digit_trial(method)
    seen: dict[int, int] = {}
    train = method.resident.train

    def spy(client: Any, *about: Any, data: Any, **options: Any) -> None:
        seen[client.id] = data.samples
        train(client, *about, data=data, **options)

    method.resident.train = spy
    trial.round(1)
    for client in trial.job.federation.clients:
        rest, held_back = client.split(0.25)
        assert held_back.samples == client.samples // 4
        assert seen[client.id] == rest.samples == client.samples - held_back.samples


def test_the_student_is_kept_whose_loss_on_what_all_clients_hold_back_is_lowest() -> None:
    method = by_clients()
    trial = skewed_trial(method)
    offered: list[torch.Tensor] = []
    steps: list[int] = []
    judged: list[torch.Tensor] = []
    judge, settle = method.judge, method.settle

    def spy_judge(client: Any, candidates: Any, t: int) -> Any:
        said = judge(client, candidates, t)
        judged.append(said["losses"].tensor)
        # The loss summed over the samples, by hand for the first candidate.
        method.load(candidates["students"][0])
        ((x, y),) = client.split(0.1)[1].in_order(10_000)
        method.model.eval()
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(method.model(method.data.standardize(x)), y, reduction="sum")
        assert float(judged[-1][0]) == pytest.approx(float(loss), rel=1e-5)
        return said

    def spy_settle(t: int, judgements: Any) -> None:
        offered.extend(student.weights for student in method.offered)
        steps.extend(student.step for student in method.offered)
        settle(t, judgements)

    method.judge, method.settle = spy_judge, spy_settle
    trial.round(1)
    assert steps == [0, 20, 40, 60]
    losses = torch.stack(judged).sum(dim=0)
    best = int(losses.argmin())
    assert best > 0
    assert torch.equal(method.w_t, offered[best])
    held_back = sum(client.split(0.1)[1].samples for client in trial.job.federation.clients)
    assert method.round_metrics(1) == {
        "distillation/loss": pytest.approx(float(losses[best]) / held_back),
        "distillation/steps": steps[best],
    }


def test_clients_keep_the_average_where_no_student_is_better_and_where_losses_are_no_numbers() -> None:
    method = by_clients(distillation_steps=3)
    digit_trial(method, clients=2, model=Constant(10))
    weights = [row(*[float(number)] * 10) for number in range(4)]
    for losses, taken in (
        ([[1.0, 3.0, 1.0, 2.0], [1.0, 3.0, 1.0, 2.0]], 0),
        ([[torch.nan, torch.inf, 1e30, 9.0], [0.0, 0.0, 0.0, 9.0]], 3),
        ([[torch.nan] * 4, [torch.inf] * 4], 0),
    ):
        method.offered = [feddf.Student(step, w) for step, w in enumerate(weights)]
        said = [{"losses": torch.tensor(each).double(), "samples": torch.tensor([4])} for each in losses]
        method.settle(1, gathered(*said))
        assert torch.equal(method.w_t, weights[taken])
        assert method.distilled["distillation/steps"] == taken


def test_what_clients_judge_is_no_test_sample() -> None:
    class Blind(Digits):
        def load(self) -> tuple[ImageSet, ImageSet]:
            train, test = super().load()
            return train, ImageSet(torch.zeros_like(test.images), torch.zeros_like(test.labels))

    ends = []
    for data in (Digits(), Blind()):
        method = by_clients(TWO_EPOCHS, distillation_steps=6)
        torch.manual_seed(3)
        Trial(method, SmallCNN(image_size=8, width=4), data=data, partition=OneClassEach(10)).round(1)
        ends.append((method.w_t, method.distilled))
    (w, distilled), (w_blind, distilled_blind) = ends
    assert torch.equal(w, w_blind)
    assert distilled == distilled_blind


def test_judging_costs_every_client_the_candidates_down_and_their_losses_up() -> None:
    method = by_clients(TWO_EPOCHS, distillation_steps=3)
    trial = digit_trial(method, clients=5, clients_per_round=3)
    model, students = dense_bytes("weights", len(method.w)), dense_bytes("students", 4, len(method.w))
    judgement = dense_bytes("losses", 4, item=8) + dense_bytes("samples", 1, item=8)
    outcome = trial.round(1)
    assert traffic(outcome) == (3 * (model + students), 3 * (model + judgement))
    assert outcome.metrics["comm/scalars"] == 3 * (len(method.w) * (1 + 1 + 4) + 4 + 1)
    assert {(row.phase, row.messages) for row in outcome.ledger} == {("download", 6), ("upload", 6)}


def test_a_client_that_cannot_judge_is_left_out_or_ends_the_job() -> None:
    def trial() -> Trial:
        method = by_clients(TWO_EPOCHS, distillation_steps=3)
        judge = method.judge

        def failing(client: Any, candidates: Any, t: int) -> Any:
            if client.id == 2:
                raise RuntimeError("no power")
            return judge(client, candidates, t)

        method.judge = failing
        return digit_trial(method)

    outcome = trial().round(1, policy=ErrorPolicy("skip"))
    assert outcome.failures == {2: "RuntimeError: no power"}
    assert outcome.clients.keys() == {0, 1, 2, 3}  # it had trained
    with pytest.raises(FlgenError, match=r"round 1, client 2 \(rank 0\): RuntimeError: no power"):
        trial().round(1)
    with pytest.raises(FlgenError, match=r"round 1: 3 of 4 clients are left, --trainer.min_clients asks for 4"):
        trial().round(1, policy=ErrorPolicy("skip", min_clients=4))


def test_clients_without_anything_to_hold_back_are_refused() -> None:
    with pytest.raises(UsageError, match=r"client 1 has 1 sample, but FedDF with --method.validation clients trains"):
        Trial(by_clients(ONE_STEP), Constant(2), (2, 1))
    Trial(FedDF(ONE_STEP, public_data=Digits()), Constant(2), (2, 1))


def test_there_are_no_more_students_than_steps() -> None:
    with pytest.raises(UsageError, match=r"--method.students is 3: give 1 to 2, the steps of distillation"):
        by_clients(distillation_steps=2)
    FedDF(public_data=Digits(), distillation_steps=2)  # where nobody judges, nobody counts


def test_ranks_transports_and_a_stop_change_nothing_where_clients_judge(fit_small: Any, tmp_path: Path) -> None:
    def fit(name: str, rounds: int = 2, **about: Any) -> tuple[Any, ...]:
        evaluation = Evaluation(every=2, extractors=[])
        options = {"validation": "clients", "students": 2, "distillation_steps": 4}
        about = {"method": "FedDF", "method_options": options, "clients_per_round": 3, "rounds": rounds, **about}
        fit_small(tmp_path / name, evaluation=evaluation, **about)
        rows = [
            {key: value for key, value in row.items() if not key.startswith(("time/", "comm/wire"))}
            for row in read_metrics(tmp_path / name / "metrics.csv")
        ]
        ledger = [{**row, "wire_bytes": 0} for row in read_ledger(tmp_path / name / "ledger.csv")]
        server = find_checkpoint(tmp_path / name / "checkpoints" / "last").server_state()["method"]
        return rows, ledger, server["weights"].tolist()

    alone = fit("alone")
    assert fit("two", devices=2) == alone
    assert fit("messages", devices=3, transport="messages") == alone
    fit("parts", rounds=1)
    assert fit("parts", ckpt_path="last", devices=2)[1:] == alone[1:]
