"""The run folder: one place for everything a run leaves behind (design, section 7)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgen.errors import FlgenError


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder.

    Args:
        path: The folder, `runs/<name>`.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row per logged round."""
        return self.path / "metrics.csv"

    @property
    def ledger(self) -> Path:
        """One row per round, phase and link."""
        return self.path / "ledger.csv"

    @property
    def clients(self) -> Path:
        """One row per round and client."""
        return self.path / "clients.csv"

    @property
    def partition(self) -> Path:
        """Training samples per client and class."""
        return self.path / "partition.csv"

    @property
    def events(self) -> Path:
        """Checkpoints, resumes, signals, client errors."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Sample grids."""
        return self.path / "samples"

    @property
    def pairs(self) -> Path:
        """The pictures that clients are sent, a row of classes per evaluated round."""
        return self.path / "pairs"

    def check_new(self) -> None:
        """Refuse a folder that already holds something.

        Raises:
            FlgenError: The folder is not empty, or cannot be looked into.
        """
        try:
            occupied = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        except OSError as error:
            raise FlgenError(
                f"run folder {self.path} cannot be read ({error.strerror}): choose another --run_dir"
            ) from error
        if occupied:
            if any(self.checkpoints.glob("round-*")):
                remedy = "continue it with --ckpt_path last"
            elif any(self.path.glob("seed-*/config.yaml")):
                remedy = "it has runs of several seeds: continue them with --seeds"
            else:
                remedy = "it has no checkpoint to continue: remove it"
            raise FlgenError(f"run folder {self.path} already exists: {remedy}, or choose another --run_dir")

    def create(self) -> None:
        """Make the folder and make sure that it can be written to.

        Raises:
            FlgenError: It cannot.
        """
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise FlgenError(
                f"run folder {self.path} cannot be written to ({error.strerror}): choose another --run_dir"
            ) from error

    def write_config(self, text: str, before_round: int) -> None:
        """Write config.yaml; an earlier one that differs is kept as config-until-round-NNNNN.yaml."""
        if self.config.exists() and self.config.read_text() != text:
            self.config.rename(self.path / f"config-until-round-{before_round - 1:05d}.yaml")
        temporary = self.config.with_suffix(".partial")
        temporary.write_text(text)
        os.replace(temporary, self.config)

    def read_config(self) -> dict[str, Any]:
        """Return the resolved configuration.

        Raises:
            FlgenError: It is missing, or it is no configuration.
        """
        import yaml

        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise FlgenError(f"{self.config} cannot be read ({reason}): choose a run that has one") from error
        if not isinstance(config, dict):
            raise FlgenError(f"{self.config} is no configuration: choose another run")
        return config
