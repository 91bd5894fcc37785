"""`flgen plot amount`: accuracy against the amount of synthetic data, of the server alone and after clients trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from figure_tables import read_csv

from flgen.cli import main


def points(path: str = "amount.csv") -> list[tuple[str, float, float]]:
    return [(row["run"], float(row["amount"]), float(row["mean"])) for row in read_csv(path)]


def test_server_training_alone_and_what_federated_training_makes_of_it(here, capfd, fit_run, server_run) -> None:
    server_run(Path("p20"), [0.1, 0.4], per_class=20)
    server_run(Path("p10"), [0.1, 0.3], per_class=10)
    fit_run(Path("f10"), [0.5, 0.6], initial_weights=Path("p10/final.safetensors"))
    fit_run(Path("f20"), [0.5, 0.7], initial_weights=here / "p20" / "final.safetensors")
    assert main(["plot", "amount", "p20", "f10", "p10", "f20"]) == 0
    assert capfd.readouterr().out == "png: amount.png\nsvg: amount.svg\ncsv: amount.csv\n"
    assert points() == [
        ("server training", 10, 0.3),
        ("server training", 20, 0.4),
        ("then FedAvg", 10, 0.6),
        ("then FedAvg", 20, 0.7),
    ]
    svg = Path("amount.svg").read_text()
    for text in ("server training", "synthetic samples per class", "test accuracy"):
        assert f">{text}</text>" in svg


def test_samples_in_all_where_a_run_has_no_limit_per_class(here, server_run) -> None:
    server_run(Path("a"), [0.3], per_class=10, samples=100)
    server_run(Path("b"), [0.4], samples=500)
    assert main(["plot", "amount", "a", "b", "--output", "x"]) == 0
    assert points("x.csv") == [("server training", 100, 0.3), ("server training", 500, 0.4)]
    assert ">synthetic samples</text>" in Path("x.svg").read_text()


def test_multiples_of_the_real_data(here, server_run) -> None:
    server_run(Path("a"), [0.3], per_class=50)
    server_run(Path("b"), [0.4], per_class=150)
    assert main(["plot", "amount", "a", "b", "--real", "50"]) == 0
    assert [amount for _, amount, _ in points()] == [1, 3]
    assert ">synthetic data, multiples of 50 samples per class</text>" in Path("amount.svg").read_text()


def test_seeds_are_one_point(here, fit_run, server_run) -> None:
    for seed, value in enumerate((0.801, 0.810, 0.804)):
        server_run(Path(f"p/seed-{seed}"), [value], per_class=10)
        fit_run(Path(f"f/seed-{seed}"), [0.9], initial_weights=Path(f"p/seed-{seed}/final.safetensors"))
    assert main(["plot", "amount", "p", "f"]) == 0
    before, after = read_csv("amount.csv")
    assert float(before["mean"]) == pytest.approx(0.805)
    assert float(before["std"]) == pytest.approx(0.004582575695)
    assert (before["seeds"], after["seeds"], float(after["std"])) == ("3", "3", 0)


def test_weights_are_known_by_their_digest_wherever_they_lie_now(here, capfd, refusal, fit_run, server_run) -> None:
    server_run(Path("p10"), [0.3], per_class=10, sha256="aa")
    server_run(Path("p20"), [0.4], per_class=20, sha256="bb")
    fit_run(Path("f"), [0.6], initial_weights=Path("p10/final.safetensors"), sha256="bb")
    assert main(["plot", "amount", "p10", "p20", "f"]) == 0
    assert points()[-1] == ("then FedAvg", 20, 0.6)
    capfd.readouterr()
    line = refusal("amount", "p10", "f", status=2)  # p10 was repeated since: its weights are others now
    assert line == "f starts from p10/final.safetensors, of none of the runs that are named: name that run too"


def test_models_are_told_apart(here, server_run) -> None:
    server_run(Path("a"), [0.3], per_class=10, model="ConvNet")
    server_run(Path("b"), [0.4], per_class=10, model="VGG19")
    assert main(["plot", "amount", "a", "b"]) == 0
    assert [label for label, _, _ in points()] == ["ConvNet: server training", "VGG19: server training"]


@pytest.mark.parametrize(
    ("runs", "status", "line"),
    [
        (["f"], 2, "flgen plot amount: name the runs of `flgen pretrain`, of different amounts, as RUN"),
        (["p", "real"], 2, "real was trained on real samples (its --samples is null): leave it out"),
        (["p", "scratch"], 2, "scratch starts from random weights (its --initial_weights is null): leave it out"),
        (["p", "f"], 2, "f starts from q/final.safetensors, of none of the runs that are named: name that run too"),
        (["p", "same"], 2, "same is the second run of the same amount (server training): leave one out, or call them"),
        (["p", "silent"], 1, "p/events.jsonl does not say how many samples: choose a run of `flgen pretrain`"),
        (["mixed"], 1, "the seeds of mixed have 10 to 20 samples: seeds of one folder differ in nothing else"),
        (["p", "--real", "0"], 2, "--real is 0: give a number above 0"),
    ],
)
def test_a_mistake_is_one_line(here, refusal, fit_run, server_run, runs, status, line) -> None:
    server_run(Path("p"), [0.3], per_class=10)
    server_run(Path("same"), [0.4], per_class=10)
    server_run(Path("real"), [0.4], per_class=10, source=None)
    server_run(Path("silent"), [0.4])
    for seed in range(2):
        server_run(Path(f"mixed/seed-{seed}"), [0.4], per_class=10 * (1 + seed))
    fit_run(Path("scratch"), [0.5])
    fit_run(Path("f"), [0.5], initial_weights=Path("q/final.safetensors"))
    assert refusal("amount", *runs, status=status).startswith(line)
    assert not list(here.glob("amount*"))
