"""`flgen partition` where clients divide what they get: the chart shows what they train on, and shards are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flgen.cli import main

QUICK = ["--method=FedAvg", "--model=SmallCNN", "--partition.clients=4"]


def test_shards_hold_whole_clients(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for option in ("--split.test=own", "--split.validation_fraction=0.1"):
        assert main(["partition", *QUICK, "--output=shards", option]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("flgen: error: --split divides what a client gets, but --output stores it whole")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "samples"),
    [((), 1436), (("--split.test=own",), 1344), (("--split.test=own", "--split.merge_test=false"), 1076)],
)
def test_the_chart_shows_what_clients_train_on(options, samples, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(
        "flgen.figures.partition_chart.draw_partition_chart", lambda table, names, chart: drawn.append(table)
    )
    assert main(["partition", *QUICK, "--plot=chart.png", *options]) == 0
    (table,) = drawn
    # 1,438 training and 359 test digits for four clients; of their own they keep three quarters, rounded down.
    assert table.sum() == samples
