"""Work on real ranks: forked processes in one process group, as a run has them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from flgen.federation.launch import build_fabric, launch
from flgen.topology.channel import Channel


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Return a function that calls `work(channel)` on every rank and returns what each rank returned, by rank."""
    numbers = count()

    def run(
        ranks: int, work: Callable[[Channel], Any], *, timeout_s: float = 60, round_timeout_s: float = 60
    ) -> list[Any]:
        folder = tmp_path / f"launch-{next(numbers)}"
        folder.mkdir()
        fabric = build_fabric(
            accelerator="cpu", devices=ranks, num_nodes=1, precision="32-true", timeout_s=timeout_s, callbacks=[]
        )

        def on_rank(stop: Any) -> None:
            torch.set_num_threads(1)
            channel = Channel(fabric.global_rank, fabric.world_size, fabric.device, timeout_s, round_timeout_s)
            torch.save(work(channel), folder / f"{channel.rank}.pt")

        launch(fabric, on_rank)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]

    return run
