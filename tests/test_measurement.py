"""Measuring: a finished run's checkpoint gives the numbers that the run itself wrote down last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_methods import TRAINING, small_method, small_model

from flgen import Digits, Dirichlet, Evaluation, FederatedTrainer, LocalSplit, LocalTraining, Shards
from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_clients, read_ledger, read_metrics
from flgen.federation.launch import build_fabric
from flgen.job import prepare_job
from flgen.measurement import measure_clients
from flgen.topology.channel import Channel

Fit = Callable[..., Any]


def last_tests(run_dir: Path) -> dict[str, float]:
    """Return the test metrics of a run's last row, and check that they are those of its clients."""
    row = read_metrics(run_dir / "metrics.csv")[-1]
    tests = {name: value for name, value in row.items() if name.startswith("test/")}
    clients = [entry for entry in read_clients(run_dir / "clients.csv") if entry["round"] == row["round"]]
    for name, value in tests.items():
        reported = [entry[name] for entry in clients if name in entry]
        if reported:
            assert len(reported) == 5
            assert value == pytest.approx(sum(reported) / 5)
            assert tests[name.replace("test/", "test/worst_decile/")] == (
                max(reported) if "loss" in name else min(reported)
            )
    return tests


def evaluated(run_dir: Path, method: str, **options: Any) -> dict[str, float]:
    """Measure the last checkpoint with a method and a model that have never been trained."""
    torch.manual_seed(7)
    algorithm, model = small_method(method, **options), small_model(method)
    trainer = FederatedTrainer(rounds=2, accelerator="cpu", devices=1, threads_per_rank=1, callbacks=[])
    return trainer.evaluate(
        algorithm,
        model,
        Digits(),
        Shards(clients=5, shards_per_client=4),
        ckpt_path=run_dir / "checkpoints" / "last",
        evaluation=Evaluation(images=16, extractors=[]),
        seed_everything=7,
    )


MEASURED: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "DisPFL": ("DisPFL", {}, {"trained"}),
    "Local": ("Local", {}, {"trained"}),
    "FedAvg": ("FedAvg", {}, {"aggregated"}),
    "FedAvg with personal models": ("FedAvg", {"keep_personal": True}, {"aggregated", "trained"}),
    "FedAvg fine-tuned": ("FedAvg", {"fine_tune": "annealed"}, {"aggregated", "fine_tuned"}),
    "Ditto": ("Ditto", {}, {"aggregated", "trained"}),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_checkpoint_is_worth_what_the_runs_last_row_says(name: str, fit_small: Fit, tmp_path: Path) -> None:
    method, options, points = MEASURED[name]
    fit_small(tmp_path / "run", method=method, method_options=options, every=1)
    written = last_tests(tmp_path / "run")
    measured = evaluated(tmp_path / "run", method, **options)
    assert {f"test/accuracy_{point}" for point in points} <= set(measured)
    assert measured == {metric: written[metric] for metric in measured}  # to the last bit
    for point in points:
        assert 0.1 < measured[f"test/accuracy_{point}"] < 1
        assert measured[f"test/std/accuracy_{point}"] > 0
    # What only a round can know, an evaluation does not make up.
    assert {metric for metric in written if metric not in measured} == (
        {metric for metric in written if metric.endswith("_aggregated")} if method == "DisPFL" else set()
    )


OWN = LocalSplit("own", validation_fraction=0.2)


@pytest.mark.parametrize("method", ["FedAvg", "DisPFL"])
def test_own_test_samples_are_measured_alike_on_any_number_of_ranks_after_a_stop_and_by_the_command_line(
    method: str, fit_small: Fit, flgen: Any, tmp_path: Path
) -> None:
    fit_small(tmp_path / "whole", method=method, rounds=3, every=1, split=OWN)
    fit_small(tmp_path / "run", method=method, rounds=2, every=1, split=OWN, devices=2)
    fit_small(tmp_path / "run", method=method, rounds=3, every=1, split=OWN, ckpt_path="last")
    whole, parts = (
        [
            {name: value for name, value in row.items() if not name.startswith(("time/", "comm/wire"))}
            for row in read_metrics(tmp_path / run / "metrics.csv")
        ]
        for run in ("whole", "run")
    )
    assert whole == parts
    point = "trained" if method == "DisPFL" else "aggregated"
    pooled = (f"test/pooled/accuracy_{point}", f"val/pooled/accuracy_{point}", f"val/loss_{point}")
    assert all(row[name] > 0 for row in whole for name in pooled)
    done = flgen("evaluate", "--ckpt_path", "run/checkpoints/last", "--output", "metrics.json")
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert set(pooled) <= set(measured)
    assert measured == {name: whole[-1][name] for name in measured}


def test_pooled_results_are_those_of_all_clients_samples_together(fit_small: Fit, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", method="FedAvg", rounds=1, split=OWN, partition=Dirichlet(5, alpha=0.5))
    (row,) = read_metrics(tmp_path / "run" / "metrics.csv")
    # The common model on the union of the clients' test samples is tested twice: as a whole, and client by client.
    assert row["test/pooled/accuracy_aggregated"] == pytest.approx(row["test/accuracy"], abs=1e-9)
    assert row["test/pooled/loss_aggregated"] == pytest.approx(row["test/loss"], rel=1e-5)
    assert abs(row["test/accuracy_aggregated"] - row["test/accuracy"]) > 1e-3  # clients differ in size


def test_the_command_line_measures_a_run_between_peers(fit_small: Fit, flgen: Any, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", method="DisPFL", every=1, devices=2)
    done = flgen("evaluate", "--ckpt_path", "run/checkpoints/last", "--output", "metrics.json")
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "metrics.json").read_text())
    written = last_tests(tmp_path / "run")
    for metric in ("test/accuracy_trained", "test/std/accuracy_trained", "test/worst_decile/accuracy_trained"):
        assert measured[metric] == written[metric]
        assert f"{metric} {written[metric]:.6g}\n" in done.stdout


def test_clients_may_be_left_unmeasured(fit_small: Fit, tmp_path: Path) -> None:
    for method in ("DisPFL", "FedAvg"):
        evaluation = Evaluation(every=1, extractors=[], personal=False)
        fit_small(tmp_path / method, method=method, rounds=1, evaluation=evaluation)
        assert not [name for name in last_tests(tmp_path / method) if "aggregated" in name or "trained" in name]


def test_peers_are_tested_in_rounds_that_are_evaluated_only(fit_small: Fit, tmp_path: Path) -> None:
    fit_small(tmp_path / "run", method="DisPFL", rounds=3, every=100)
    tested = ["test/accuracy_trained" in row for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    assert tested == [True, False, True]  # the first and the last round always are


def test_measuring_clients_is_no_traffic_of_the_method(fit_small: Fit, tmp_path: Path) -> None:
    ledgers = {}
    for personal in (True, False):
        run_dir = tmp_path / f"personal-{personal}"
        evaluation = Evaluation(every=1, extractors=[], personal=personal)
        fit_small(run_dir, method="FedAvg", evaluation=evaluation, devices=2)
        ledgers[personal] = read_ledger(run_dir / "ledger.csv")
        weights = find_checkpoint(run_dir / "checkpoints" / "last").server_state()["method"]["weights"]
        ledgers[personal].append({"weights": weights.tolist()})
    assert ledgers[True] == ledgers[False]


def test_every_client_is_measured_with_its_own_state_and_keeps_none_of_it() -> None:
    data = Digits()
    data.setup()
    method = small_method("Local", training=LocalTraining(TRAINING.epochs, TRAINING.batch_size))
    job = prepare_job(method, small_model("Local"), data, Shards(clients=5, shards_per_client=4), 7, 1, None)
    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=10, callbacks=[])
    job.set_up_method(fabric)
    asked: list[int] = []
    counts = job.federation.clients[2].test_data.label_counts
    favourite = int(counts.argmax())

    def state_of(client: Any) -> dict[str, torch.Tensor]:
        asked.append(client.id)
        state = method.initial_state(client)
        if client.id == 2:
            state["weights"].zero_()
            state["weights"][favourite - 10] = 1.0  # the last layer's bias: always this class
        return state

    measured = measure_clients(job, state_of, 3, Channel(0, 1, fabric.device, 10, 10))
    assert asked == sorted(measured) == [0, 1, 2, 3, 4]
    assert measured[2]["test/accuracy_trained"] == pytest.approx(int(counts.max()) / int(counts.sum()))
    assert all(client.state == {} for client in job.federation.clients)
