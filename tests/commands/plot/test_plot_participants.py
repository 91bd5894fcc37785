"""`flgen plot participants`: what a budget of rounds gives with few and with many clients in each."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from figure_tables import read_csv

from flgen.cli import main


def points(path: str) -> list[tuple[str, float, float]]:
    return [(row["run"], float(row["clients_per_round"]), float(row["mean"])) for row in read_csv(path)]


def test_a_curve_per_method_by_ascending_cohorts(here, capfd, fit_run) -> None:
    fit_run(Path("a3"), [0.1, 0.5], clients_per_round=3)
    fit_run(Path("a1"), [0.1, 0.3], clients_per_round=1)
    fit_run(Path("b"), [0.1, 0.6], clients_per_round=1, initial_weights=Path("w.safetensors"))
    fit_run(Path("all"), [0.1, 0.7], clients=9, method="FedProx")
    assert main(["plot", "participants", "a3", "a1", "b", "all"]) == 0
    assert capfd.readouterr().out == "png: participants.png\nsvg: participants.svg\ncsv: participants.csv\n"
    assert points("participants.csv") == [
        ("FedAvg", 1, 0.3),
        ("FedAvg", 3, 0.5),
        ("FedAvg, pre-trained", 1, 0.6),
        ("FedProx", 9, 0.7),  # null: every client of partition.csv
    ]
    svg = Path("participants.svg").read_text()
    for text in ("FedAvg", "FedAvg, pre-trained", "FedProx", "clients per round", "test accuracy"):
        assert f">{text}</text>" in svg


def test_a_sampling_ratio_is_a_number_of_clients(here, fit_run) -> None:
    run = fit_run(Path("a"), [0.5], clients=9)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["participation"] = 0.3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["plot", "participants", "a"]) == 0
    assert points("participants.csv") == [("FedAvg", 3, 0.5)]


def test_seeds_are_one_point_and_labels_join_runs(here, fit_run) -> None:
    for seed, value in enumerate((0.801, 0.810, 0.804)):
        fit_run(Path(f"one/seed-{seed}"), [value], clients_per_round=1)
    fit_run(Path("ten"), [0.9], clients_per_round=10)
    assert main(["plot", "participants", "one", "ten", "--labels", "GPT-FL", "GPT-FL"]) == 0
    one, ten = read_csv("participants.csv")
    assert (one["run"], ten["run"]) == ("GPT-FL", "GPT-FL")
    assert float(one["mean"]) == pytest.approx(0.805)
    assert float(one["std"]) == pytest.approx(0.004582575695)
    assert (one["seeds"], ten["seeds"]) == ("3", "1")


def test_a_budget_of_rounds_within_longer_runs(here, capfd, refusal, fit_run) -> None:
    fit_run(Path("a"), [0.1, 0.2, 0.3], clients_per_round=1)
    fit_run(Path("b"), [0.4, 0.5], clients_per_round=2)
    assert refusal("participants", "a", "b", status=2) == (
        "b ends after round 2, a after round 3: give the budget, as in --round 2"
    )
    assert main(["plot", "participants", "a", "b", "--round", "2"]) == 0
    assert points("participants.csv") == [("FedAvg", 1, 0.2), ("FedAvg", 2, 0.5)]
    capfd.readouterr()
    assert refusal("participants", "a", "b", "--round", "3", status=1).startswith(
        "b/metrics.csv has no test/accuracy after round 3: give --round a round in which all runs"
    )


def test_two_runs_of_one_point_are_refused(here, refusal, fit_run) -> None:
    fit_run(Path("a"), [0.1], clients_per_round=1)
    fit_run(Path("b"), [0.4], clients_per_round=1)
    assert refusal("participants", "a", "b", status=2) == (
        "b is the second run of FedAvg with 1 clients per round: tell the two apart by --labels, or leave one out"
    )


def test_seeds_of_different_cohorts_are_refused(here, refusal, fit_run) -> None:
    fit_run(Path("a/seed-0"), [0.1], clients_per_round=1)
    fit_run(Path("a/seed-1"), [0.4], clients_per_round=2)
    line = refusal("participants", "a", status=1)
    assert line == "the seeds of a have 1 and 2 clients per round: seeds of one folder differ in nothing else"


def test_a_run_of_the_server_has_no_clients(here, refusal, server_run) -> None:
    server_run(Path("a"), [0.5])
    line = refusal("participants", "a", "--labels", "x", status=1)
    assert line == "a/config.yaml has no trainer.clients_per_round: choose a run of `flgen fit`"
