"""`flgen plot comparison`: what runs reached in the end and at best, as bars, CSV and Markdown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from figure_tables import read_csv

from flgen.cli import main

TABLE = """\
| test accuracy       |        final |         best | seeds | last round |
| ------------------- | -----------: | -----------: | ----: | ---------: |
| federated           | 80.50 ± 0.46 | 90.00 ± 0.00 |     3 |          2 |
| isolated            |        35.53 |        40.00 |     1 |          3 |
| synthetic data only |        75.65 |        75.65 |     1 |          1 |
"""


def test_federated_isolated_and_server_training_side_by_side(here, capfd, fit_run, server_run) -> None:
    for seed, value in enumerate((0.801, 0.810, 0.804)):
        fit_run(Path(f"gptfl/seed-{seed}"), [0.9, value])
    fit_run(Path("isolated"), [0.1, 0.4, 0.3553], method="Isolated")
    server_run(Path("pretrain"), [0.7565])
    labels = ["--labels", "federated", "isolated", "synthetic data only"]
    assert main(["plot", "comparison", "gptfl", "isolated", "pretrain", *labels]) == 0
    files = "".join(f"{ending}: comparison.{ending}\n" for ending in ("png", "svg", "csv", "md"))
    assert capfd.readouterr().out == TABLE + files
    assert Path("comparison.md").read_text() == TABLE
    rows = read_csv("comparison.csv")
    assert [row["run"] for row in rows] == ["federated", "isolated", "synthetic data only"]
    assert float(rows[0]["final_mean"]) == pytest.approx(0.805)  # gptfl.md, check 12, as shares
    assert float(rows[0]["final_std"]) == pytest.approx(0.004582575695, abs=1e-12)
    assert [(row["seeds"], row["final_round"]) for row in rows] == [("3", "2"), ("1", "3"), ("1", "1")]
    assert [float(row["best_mean"]) for row in rows] == pytest.approx([0.9, 0.4, 0.7565])
    assert math.isnan(float(rows[1]["final_std"]))
    svg = Path("comparison.svg").read_text()
    for text in ("federated", "80.50 ± 0.46", "35.53", "final round", "best round", "test accuracy"):
        assert f">{text}</text>" in svg


def test_a_round_chosen_on_validation_stands_between_the_last_and_the_best(here, capfd, fit_run) -> None:
    metric = "test/pooled/accuracy_trained"
    for seed, chosen in enumerate((0.50, 0.52)):
        columns = {"val/pooled/accuracy_trained": [0.1, 0.9, 0.3], metric: [0.6, chosen, 0.4]}
        fit_run(Path(f"a/seed-{seed}"), columns)
    fit_run(Path("b"), {metric: [0.2, 0.3]})
    assert main(["plot", "comparison", "a", "b", "--metric", metric]) == 0
    table = capfd.readouterr().out.splitlines()[:4]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0][1:] == ["last", "chosen on validation", "best on test (flatters)", "seeds", "last round"]
    assert cells[2] == ["a", "40.00 ± 0.00", "51.00 ± 1.41", "60.00 ± 0.00", "2", "3"]
    assert cells[3] == ["b", "30.00", "none", "30.00", "1", "2"]
    a, b = read_csv("comparison.csv")
    assert float(a["validated_mean"]) == pytest.approx(0.51)
    assert float(a["validated_std"]) == pytest.approx(0.02 / math.sqrt(2))
    assert math.isnan(float(b["validated_mean"]))
    svg = Path("comparison.svg").read_text()
    for text in ("last", "chosen on validation", "best on test (flatters)"):
        assert f">{text}</text>" in svg


def test_another_metric_is_best_where_it_is_smallest(here, fit_run) -> None:
    fit_run(Path("a"), {"test/loss": [2.0, 1.0, 1.5]})
    assert main(["plot", "comparison", "a", "--metric", "test/loss", "--output", "out/loss.png"]) == 0
    assert Path("out/loss.md").read_text().splitlines()[-1].replace(" ", "") == "|a|1.5|1|1|3|"


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["a", "b"], 1, "b/metrics.csv has no test/accuracy: "),
        (["a", "a"], 2, "a is named twice: name every run once"),
        (["a", "--labels", "x", "y"], 2, "--labels has 2 of the 1 names that are needed"),
        (["a", "--output", "a.pdf"], 2, "--output a.pdf: a figure is saved as PNG and SVG"),
        ([], 2, "flgen plot comparison: the following arguments are required: RUN"),
    ],
)
def test_a_mistake_is_one_line(here, refusal, fit_run, arguments, status, line) -> None:
    fit_run(Path("a"), [0.5])
    fit_run(Path("b"), {"test/x": [0.5]})
    assert refusal("comparison", *arguments, status=status).startswith(line)
    assert not list(here.glob("comparison*"))
