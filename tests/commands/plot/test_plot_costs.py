"""`flgen plot costs`: what a round sends, counted beside the formula, as bars, CSV and Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from figure_tables import read_csv

from flgen import LocalTraining, RandomProjection, SmallCNN
from flgen.cli import main
from flgen.experiment.records import LedgerTable, MetricsTable
from flgen.methods.latent_alignment import AlignmentTraining
from flgen.wire.ledger import LedgerRow

ROWS = [
    "run | method | scalars up | formula | scalars down | formula | beside the formula | MB up | MB down | bytes once",
    "fedktl | FedKTL | 66 | 60 | 500 | 500 | labels 6 up | 0.0030 | 0.0210 | 80",
    "masked | FedKTL | 107 | 60 | 510 | 500 | up +47; label counts 10 down | 0.0030 | 0.0210 | 80",
    "plain | FedAvg | 40,000 | none | 40,000 | none | nothing | 0.1600 | 0.1600 | 0",
]


def cost_run(
    folder: Path,
    up: dict[str, int],
    down: dict[str, int],
    formula: tuple[int, int] | None,
    bytes: tuple[int, int],
    *,
    method: str = "FedKTL",
    once: int = 0,
    protection: int = 0,
    rounds: int = 3,
) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": {"class_path": f"flgen.{method}"}}))
    metrics, ledger = MetricsTable(folder / "metrics.csv"), LedgerTable(folder / "ledger.csv")
    for t in range(1, rounds + 1):
        row = {f"comm/up_scalars/{name}": count for name, count in up.items()}
        if t > 1:
            row |= {f"comm/down_scalars/{name}": count for name, count in down.items()}
        if formula is not None:
            row |= {"comm/up_scalars_formula": formula[0], "comm/down_scalars_formula": formula[1]}
        metrics.write(t, {"train/loss": 1 / t, **row})
        rows = [
            LedgerRow(t, "download", "server->client", 2, bytes[1] if t > 1 else 0),
            LedgerRow(t, "upload", "client->server", 2, bytes[0]),
        ]
        if protection:
            rows.append(LedgerRow(t, "keys", "client->server", 2, protection))
        if once and t == 1:
            rows.append(LedgerRow(t, "setup", "server->client", 2, once))
        ledger.write(t, rows)


UP, DOWN = {"prototypes": 60, "labels": 6}, {"images": 400, "latents": 100}
HEAD = {"weights": 40_000}


def test_counted_numbers_stand_beside_the_formula_and_what_it_leaves_out(here, capfd) -> None:
    cost_run(Path("fedktl"), UP, DOWN, (60, 500), (3000, 21_000), once=80)
    masked = {"prototypes": 100, "held": 7}, {**DOWN, "label_counts": 10}
    cost_run(Path("masked"), *masked, (60, 500), (3000, 21_000), once=80)
    cost_run(Path("plain"), HEAD, HEAD, None, (160_000, 160_000), method="FedAvg")
    assert main(["plot", "costs", "fedktl", "masked", "plain"]) == 0
    out = capfd.readouterr().out
    said, _, rest = out.partition("\n")
    assert said == "a round, all clients together, mean from round 2 on:"
    table, files = rest[: rest.index("png:")], rest[rest.index("png:") :]
    header, rule, *lines = table.splitlines()
    assert [" | ".join(cells(line)) for line in (header, *lines)] == ROWS
    assert set(rule) == set("|-: ")
    assert Path("costs.md").read_text() == table
    assert files == "".join(f"{ending}: costs.{ending}\n" for ending in ("png", "svg", "csv", "md"))
    rows = read_csv("costs.csv")
    assert [(row["up_scalars"], row["up_formula"], row["up_bytes"]) for row in rows] == [
        ("66.0", "60.0", "3000.0"),
        ("107.0", "60.0", "3000.0"),
        ("40000.0", "", "160000.0"),
    ]
    svg = Path("costs.svg").read_text()
    for text in ("fedktl", "masked", "plain", "up", "down", "formula"):
        assert f">{text}</text>" in svg


def test_seeds_are_one_row_of_means(here) -> None:
    cost_run(Path("a/seed-0"), UP, DOWN, (60, 500), (3000, 21_000))
    cost_run(Path("a/seed-1"), {"prototypes": 40, "labels": 4}, DOWN, (40, 500), (2000, 21_000))
    assert main(["plot", "costs", "a", "--labels", "FedKTL"]) == 0
    (row,) = read_csv("costs.csv")
    assert (row["run"], row["seeds"]) == ("FedKTL", "2")
    assert (float(row["up_scalars"]), float(row["up_formula"])) == (55, 50)
    assert row["up_beside_formula"] == "labels 5 up"
    assert float(row["up_bytes"]) == 2500


def test_secure_aggregation_has_a_column_where_there_is_some(here, capfd) -> None:
    cost_run(Path("a"), UP, DOWN, (60, 500), (3000, 21_000), protection=500)
    assert main(["plot", "costs", "a"]) == 0
    header, _, row = capfd.readouterr().out.splitlines()[1:4]
    assert dict(zip(cells(header), cells(row), strict=True))["MB of secure aggregation"] == "0.0005"


def test_a_real_run_of_fedktl_sends_what_the_formula_says_and_labels(here, fit_small: Any, capfd) -> None:
    fit_small(
        Path("run"),
        method="FedKTL",
        method_options={
            "training": LocalTraining(batch_size=32, clip_norm=5.0),
            "generator": RandomProjection(channels=1),
            "alignment": AlignmentTraining(epochs=2),
        },
        model=SmallCNN(image_size=8, width=4, learning_rate=0.02),
    )
    assert main(["plot", "costs", "run"]) == 0
    (row,) = read_csv("costs.csv")
    pairs = float(row["up_formula"]) / 10  # K = C = 10
    assert float(row["up_scalars"]) == 11 * pairs
    assert row["up_beside_formula"] == f"labels {pairs:g} up"
    assert float(row["down_scalars"]) == float(row["down_formula"]) == 5 * 10 * (8 + 64)  # N C (H + R^2)
    assert row["down_beside_formula"] == ""
    assert float(row["once_bytes"]) > 0


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["short"], 1, "short: there is no round 2: costs are means from there on, so run two rounds or more"),
        (["peers"], 1, "peers: its clients send to each other: costs up and down are those of runs with a server"),
        (["nowhere"], 1, "nowhere: there is no such folder"),
        (["short", "--output", "a.pdf"], 2, "--output a.pdf: a figure is saved as PNG and SVG"),
        ([], 2, "flgen plot costs: the following arguments are required: RUN"),
    ],
)
def test_a_mistake_is_one_line(here, refusal, arguments, status, line) -> None:
    cost_run(Path("short"), UP, DOWN, (60, 500), (1, 1), rounds=1)
    cost_run(Path("peers"), UP, DOWN, None, (1, 1))
    LedgerTable(Path("peers/ledger.csv")).write(4, [LedgerRow(4, "model", "client->client", 1, 5)])
    assert refusal("costs", *arguments, status=status).startswith(line)
    assert not list(here.glob("costs*"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
