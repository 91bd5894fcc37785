"""What the tests of `flgen plot` share: an empty folder, the one line of a mistake, and runs made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flgen.cli import main
from flgen.experiment.records import LedgerTable, MetricsTable, write_partition
from flgen.wire.ledger import LedgerRow

MadeRun = Callable[..., Path]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command which must fail with one line, and returns that line."""

    def run(*arguments: str, status: int) -> str:
        assert main(["plot", *arguments]) == status
        out, err = capfd.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("flgen: error: ")
        return line.removeprefix("flgen: error: ")

    return run


@pytest.fixture
def fit_run() -> MadeRun:
    """Return a function that writes what `flgen fit` leaves behind, as far as figures read it."""

    def make(
        folder: Path,
        accuracy: Sequence[float | None] | Mapping[str, Sequence[float | None]],
        *,
        sent: Sequence[int] | None = None,
        protection: int = 0,
        clients: int = 4,
        clients_per_round: int | None = None,
        method: str = "FedAvg",
        model: str = "SmallCNN",
        initial_weights: Path | None = None,
        sha256: str | None = None,
    ) -> Path:
        folder.mkdir(parents=True)
        config = {
            "trainer": {"clients_per_round": clients_per_round},
            "method": {"class_path": f"flgen.{method}", "init_args": {}},
            "model": {"class_path": f"flgen.{model}", "init_args": {}},
            "initial_weights": None if initial_weights is None else str(initial_weights),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        write_partition(folder / "partition.csv", np.ones((clients, 2), dtype=np.int64), ["a", "b"])
        event = {"event": "start", "initial_weights_sha256": sha256}
        (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
        columns = accuracy if isinstance(accuracy, Mapping) else {"test/accuracy": accuracy}
        metrics, ledger = MetricsTable(folder / "metrics.csv"), LedgerTable(folder / "ledger.csv")
        for t in range(1, 1 + len(next(iter(columns.values())))):
            row = {name: values[t - 1] for name, values in columns.items()}
            metrics.write(t, {"train/loss": 1 / t, **{name: value for name, value in row.items() if value is not None}})
            if sent is not None:
                down = LedgerRow(t, "download", "server->client", 1, sent[t - 1] // 2)
                up = LedgerRow(t, "upload", "client->server", 1, sent[t - 1] - sent[t - 1] // 2)
                keys = LedgerRow(t, "keys", "client->server", 1, protection)
                ledger.write(t, [down, keys, up] if protection else [down, up])
        return folder

    return make


@pytest.fixture
def server_run() -> MadeRun:
    """Return a function that writes what `flgen pretrain` leaves behind, as far as figures read it."""

    def make(
        folder: Path,
        accuracy: Sequence[float],
        *,
        per_class: int | None = None,
        samples: int | None = None,
        source: str | None = "samples",
        model: str = "SmallCNN",
        sha256: str | None = None,
    ) -> Path:
        folder.mkdir(parents=True)
        config: dict[str, Any] = {
            "trainer": {"epochs": len(accuracy)},
            "model": {"class_path": f"flgen.{model}", "init_args": {}},
            "samples": source,
            "per_class": per_class,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        events: list[dict[str, Any]] = [] if samples is None else [{"event": "start", "samples": samples}]
        events += [] if sha256 is None else [{"event": "end", "sha256": sha256}]
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        metrics = MetricsTable(folder / "metrics.csv")
        for epoch, value in enumerate(accuracy, start=1):
            metrics.write(epoch, {"test/accuracy": value})
        return folder

    return make
