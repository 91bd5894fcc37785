"""`flgen plot diversity`: gradient diversity over rounds, one curve per run, seeds as a band."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from figure_tables import read_csv

from flgen.cli import main


def test_diversity_of_a_run_and_of_three_seeds(here, capfd, fit_run) -> None:
    fit_run(Path("scratch"), {"diversity/gradient": [1.0, 0.5], "diversity/cosine": [0.0, 0.25]})
    for seed, value in enumerate((0.2, 0.3, 0.4)):
        columns = {"diversity/gradient": [value, value / 2], "diversity/cosine": [0.5, 0.5]}
        fit_run(Path(f"gptfl/seed-{seed}"), columns)
    assert main(["plot", "diversity", "scratch", "gptfl", "--labels", "from scratch", "GPT-FL"]) == 0
    assert capfd.readouterr().out == "png: diversity.png\nsvg: diversity.svg\ncsv: diversity.csv\n"
    rows = read_csv("diversity.csv")
    assert [(row["run"], row["metric"], int(row["round"]), int(row["seeds"])) for row in rows] == [
        ("from scratch", "diversity/gradient", 1, 1),
        ("from scratch", "diversity/gradient", 2, 1),
        ("GPT-FL", "diversity/gradient", 1, 3),
        ("GPT-FL", "diversity/gradient", 2, 3),
        ("from scratch", "diversity/cosine", 1, 1),
        ("from scratch", "diversity/cosine", 2, 1),
        ("GPT-FL", "diversity/cosine", 1, 3),
        ("GPT-FL", "diversity/cosine", 2, 3),
    ]
    assert [float(row["mean"]) for row in rows] == pytest.approx([1, 0.5, 0.3, 0.15, 0, 0.25, 0.5, 0.5])
    assert math.isnan(float(rows[0]["std"]))
    assert float(rows[2]["std"]) == pytest.approx(0.1)
    svg = Path("diversity.svg").read_text()
    for text in ("from scratch", "GPT-FL", "gradient diversity", "mean cosine of two updates", "communication round"):
        assert f">{text}</text>" in svg


def test_rounds_of_one_client_have_no_cosine(here, fit_run) -> None:
    fit_run(Path("one"), {"diversity/gradient": [1.0, 1.0]})
    assert main(["plot", "diversity", "one", "--output", "out/d.svg"]) == 0
    assert {row["metric"] for row in read_csv("out/d.csv")} == {"diversity/gradient"}
    assert "cosine" not in Path("out/d.svg").read_text()


def test_a_run_that_has_not_measured_it_says_how_to(here, refusal, fit_run) -> None:
    fit_run(Path("a"), [0.5])
    assert refusal("diversity", "a", status=1) == (
        "a/metrics.csv has no diversity/gradient: choose runs that were made with --evaluation.gradient_diversity true"
    )
    assert not list(here.glob("diversity*"))
