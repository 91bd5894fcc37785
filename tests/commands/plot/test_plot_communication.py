"""`flgen plot communication`: accuracy over bytes, and the bytes until a target is reached."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from figure_tables import read_csv

from flgen.cli import main


def test_bytes_to_the_target_as_a_table_and_the_curve_as_csv(here, capfd, fit_run) -> None:
    fit_run(Path("a/seed-0"), [0.1, 0.6, 0.7], sent=[2_000_000, 2_000_000, 2_000_000])
    fit_run(Path("a/seed-1"), [0.2, 0.4, 0.8], sent=[2_000_000, 2_000_000, 2_000_000])
    fit_run(Path("b"), [0.1, None, 0.5], sent=[500, 1000, 1500])
    assert main(["plot", "communication", "a", "b", "--target", "0.6", "--labels", "FedAvg", "DS-FL"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out == [
        "until test/accuracy is 0.6:",
        "| run    | reached | round |            MB | MB of secure aggregation |     scalars |",
        "| ------ | ------: | ----: | ------------: | -----------------------: | ----------: |",
        "| FedAvg |  2 of 2 |   2.5 | 5.000 ± 1.414 |                    0.000 | not counted |",
        "| DS-FL  |  0 of 1 |   inf |           inf |                      inf |         inf |",
        "png: communication.png",
        "svg: communication.svg",
        "csv: communication.csv",
        "csv: communication-target.csv",
    ]
    points = read_csv("communication.csv")
    assert [(row["run"], float(row["bytes"])) for row in points] == [
        ("FedAvg", 2e6),
        ("FedAvg", 4e6),
        ("FedAvg", 6e6),
        ("DS-FL", 500),
        ("DS-FL", 3000),
    ]
    assert [float(row["mean"]) for row in points] == pytest.approx([0.15, 0.5, 0.75, 0.1, 0.5])
    reached, never = read_csv("communication-target.csv")
    assert [float(reached[name]) for name in ("target", "seeds", "reached", "round", "bytes", "bytes_std")] == (
        pytest.approx([0.6, 2, 2, 2.5, 5e6, math.sqrt(2) * 1e6])
    )
    assert (never["round"], never["bytes"], never["bytes_std"]) == ("inf", "inf", "nan")
    svg = Path("communication.svg").read_text()
    for text in ("FedAvg", "DS-FL", "target 0.6", "test accuracy", "MB sent and received by all clients"):
        assert f">{text}</text>" in svg


def test_one_seed_that_never_arrives_makes_the_mean_infinite(here, fit_run) -> None:
    fit_run(Path("a/seed-0"), [0.9], sent=[100])
    fit_run(Path("a/seed-1"), [0.5], sent=[100])
    assert main(["plot", "communication", "a", "--target", "0.6"]) == 0
    (row,) = read_csv("communication-target.csv")
    assert (row["reached"], row["seeds"], row["bytes"]) == ("1", "2", "inf")


def test_secure_aggregation_is_counted_beside_the_curve(here, capfd, fit_run) -> None:
    fit_run(Path("a"), [0.1, 0.6], sent=[1_000_000, 1_000_000], protection=250_000)
    assert main(["plot", "communication", "a", "--target", "0.6"]) == 0
    assert "| 2.000 |                    0.500 |" in capfd.readouterr().out
    assert [float(row["bytes"]) for row in read_csv("communication.csv")] == [1e6, 2e6]
    assert float(read_csv("communication-target.csv")[0]["secure_aggregation_bytes"]) == 5e5


def test_numbers_are_summed_where_runs_count_them(here, fit_run) -> None:
    fit_run(Path("a"), {"test/accuracy": [0.1, 0.6, 0.7], "comm/scalars": [10, 10, 10]}, sent=[40, 40, 40])
    assert main(["plot", "communication", "a", "--target", "0.6"]) == 0
    assert float(read_csv("communication-target.csv")[0]["scalars"]) == 20


def test_the_target_is_what_the_weakest_run_reaches_if_none_is_given(here, capfd, fit_run) -> None:
    fit_run(Path("a"), [0.3, 0.9], sent=[10, 10])
    fit_run(Path("b"), [0.45, 0.375], sent=[10, 10])
    assert main(["plot", "communication", "a", "b"]) == 0
    assert capfd.readouterr().out.startswith("until test/accuracy is 0.375:\n")
    assert [row["round"] for row in read_csv("communication-target.csv")] == ["2.0", "1.0"]


def test_the_label_union_is_paid_once_and_stands_in_no_row(here, capfd, fit_run) -> None:
    fit_run(Path("a"), [0.5], sent=[10], clients=4)
    fit_run(Path("b"), [0.5], sent=[10], clients=4)
    Path("labels.json").write_text(json.dumps({"bytes_per_client": 800}))
    assert main(["plot", "communication", "a", "b", "--target", "0.5", "--label_union", "labels.json"]) == 0
    assert "once, in no row: label union, 3200 bytes, 400 scalars\n" in capfd.readouterr().out
    assert [float(row["bytes"]) for row in read_csv("communication-target.csv")] == [10, 10]


@pytest.mark.parametrize(
    ("arguments", "status", "pattern"),
    [
        (["a", "--target", "60"], 2, "--target is 60: give a share from 0 to 1, such as 0.6 for 60 %"),
        (["a", "--target", "x"], 2, "flgen plot communication: argument --target: invalid float value: 'x'"),
        (["a", "--metric", "test/acuracy"], 1, "a/metrics.csv has no test/acuracy: --metric test/accuracy is there"),
        (["server"], 1, "server/ledger.csv is missing or empty: choose runs of `flgen fit` that exchange something"),
        (["a", "--label_union", "no.json"], 2, "--label_union no.json cannot be read: give the labels.json of"),
        (["a", "--label_union", "l.json"], 2, "--label_union l.json: this is no labels.json of `flgen labels`"),
        (["a", "--taget", "0.5"], 2, "flgen plot communication: --taget: there is no such option; did you mean"),
    ],
)
def test_a_mistake_is_one_line(here, refusal, fit_run, server_run, arguments, status, pattern) -> None:
    fit_run(Path("a"), [0.5], sent=[10])
    server_run(Path("server"), [0.5])
    Path("l.json").write_text("{}")
    assert refusal("communication", *arguments, status=status).startswith(pattern)
    assert not list(here.glob("communication*"))
