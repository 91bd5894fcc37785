"""Whether two runs are the same: states bit for bit, and what they wrote down but for times."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from flgen.experiment.checkpoints import find_checkpoint


def server_state(run_dir: Path) -> dict[str, Any]:
    """Return what the server of a run's newest checkpoint has."""
    return find_checkpoint(run_dir / "checkpoints" / "last").server_state()["method"]


def client_states(run_dir: Path) -> dict[int, dict[str, torch.Tensor]]:
    """Return what the clients of a run's newest checkpoint have, by id."""
    return find_checkpoint(run_dir / "checkpoints" / "last").client_states()


def table(path: Path, leave_out: tuple[str, ...] = ("time/", "comm/wire", "wire_bytes")) -> list[dict[str, str]]:
    """Return the rows of a CSV file, without what depends on the machine and on how many processes there were."""
    with path.open() as file:
        return [
            {name: cell for name, cell in row.items() if not name.startswith(leave_out)} for row in csv.DictReader(file)
        ]


def assert_same(a: Any, b: Any) -> None:
    """Equal in every bit."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple):
        for each, other in zip(a, b, strict=True):
            assert_same(each, other)
    else:
        assert a == b


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs ended with the same states and wrote down the same."""
    assert_same(server_state(a), server_state(b))
    assert_same(client_states(a), client_states(b))
    assert table(a / "metrics.csv") == table(b / "metrics.csv")
    assert table(a / "ledger.csv") == table(b / "ledger.csv")
    assert table(a / "clients.csv") == table(b / "clients.csv")
