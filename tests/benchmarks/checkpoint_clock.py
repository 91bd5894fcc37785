"""A callback for the command line that times a run's rounds and its checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from flgen import Callback, FederatedTrainer


class CheckpointClock(Callback):
    """Writes a line of JSON per checkpoint: the seconds since the last one, and those that it took itself.

    It must be the last callback: a checkpoint begins when the last `on_round_end` returns.

    Args:
        file: Where the lines go.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self._began = time.perf_counter()

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        self._saving = time.perf_counter()

    def on_checkpoint(self, trainer: FederatedTrainer, round: int, path: Path) -> None:
        now = time.perf_counter()
        if trainer.is_global_zero:
            bytes_written = sum(file.stat().st_size for file in path.iterdir())
            seconds = {"round_s": now - self._began, "checkpoint_s": now - self._saving, "bytes": bytes_written}
            with Path(self.file).open("a") as lines:
                lines.write(json.dumps({"round": round, **seconds}) + "\n")
        self._began = time.perf_counter()
