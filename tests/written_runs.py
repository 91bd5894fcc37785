"""Run folders written by hand: what `flgen fit` leaves behind, as far as the page of a run reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from flgen.experiment.records import ClientsTable, LedgerTable, MetricsTable, write_partition
from flgen.experiment.runs import RunFolder
from flgen.wire.ledger import LedgerRow

CLIENTS = 4
LABELS = np.array([[3, 0, 9], [0, 30, 1], [4, 4, 0], [0, 0, 200]])


def config_of(method: str = "Prism", rounds: int = 3, seed: int = 0, **method_options: Any) -> dict[str, Any]:
    """Return a resolved configuration."""
    return {
        "seed_everything": seed,
        "trainer": {"rounds": rounds, "devices": 2},
        "method": {"class_path": f"flgen.{method}", "init_args": {"local_steps": 10, **method_options}},
        "model": {"class_path": "flgen.ResnetGenerator", "init_args": {"latent": 16}},
        "data": {"class_path": "flgen.Digits", "init_args": {"part": "all"}},
        "partition": {"class_path": "flgen.Shards", "init_args": {"clients": CLIENTS}},
    }


def write_run(
    path: Path,
    metrics: Mapping[str, Sequence[float]],
    *,
    config: Mapping[str, Any] | None = None,
    clients: Mapping[str, Sequence[Sequence[float]]] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
    ledger: bool = True,
    samples: Sequence[int] = (),
    pairs: Sequence[int] = (),
    class_names: Sequence[str] = ("zero", "one", "two"),
) -> Path:
    """Write a run folder and return it.

    Args:
        path: The folder.
        metrics: By name, values from round 1.
        config: The configuration; None takes a small one of PRISM.
        clients: By metric, values by round and client.
        events: Those of events.jsonl; none writes a start and an end, ten seconds apart.
        ledger: Whether bytes were counted: in round t, t kB down and 100 B up.
        samples: Rounds with a sample grid; that of round t is of grey t.
        pairs: Rounds with class pictures; the last class has none.
        class_names: As many as `LABELS` has classes.
    """
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    rounds = max(map(len, metrics.values()), default=0)
    folder.config.write_text(yaml.safe_dump(dict(config_of(rounds=rounds) if config is None else config)))
    table, bytes_table = MetricsTable(folder.metrics), LedgerTable(folder.ledger)
    clients_table = ClientsTable(folder.clients)
    for t in range(1, rounds + 1):
        table.write(t, {name: values[t - 1] for name, values in metrics.items() if t <= len(values)})
        if ledger:
            down = LedgerRow(t, "download", "server->client", messages=CLIENTS, bytes=1000 * t, wire_bytes=500)
            up = LedgerRow(t, "upload", "client->server", messages=CLIENTS, bytes=100)
            bytes_table.write(t, [down, up])
        if clients is not None:
            found = {name: values[t - 1] for name, values in clients.items() if t <= len(values)}
            count = max(map(len, found.values()), default=0)
            clients_table.write(t, {k: {name: row[k] for name, row in found.items()} for k in range(count)})
    write_partition(folder.partition, LABELS, class_names)
    happened = events or [
        {"time": "2026-01-02T03:04:05.000+00:00", "event": "start", "round": 1, "ranks": 2, "device": "cpu"},
        {"time": "2026-01-02T03:04:15.000+00:00", "event": "end", "round": rounds},
    ]
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in happened))
    for t in samples:
        _save(folder.samples / f"round-{t:05d}.png", np.full((24, 24), t, dtype=np.uint8))
    for t in pairs:
        row = np.full((4, 12, 4), t, dtype=np.uint8)
        row[..., 3] = 255
        row[:, 8:, 3] = 0
        _save(folder.pairs / f"round-{t:05d}.png", row)
    return path


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
