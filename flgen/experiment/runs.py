"""The run folder: one place for everything a run leaves behind (design, section 7)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgen.errors import FlgenError
from flgen.experiment.plain_values import yaml_value
from flgen.experiment.records import atomic_replace

AUTO = "auto"
"""The `--ckpt_path` of a run that goes on from where it is, or starts."""

WANDB = "wandb"
"""The folder that W&B keeps in a run folder; its own links lead to its logs elsewhere."""


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

    def check_new(self, begun: bool = False) -> None:
        """Refuse a folder that already holds something.

        Args:
            begun: Whether it may hold what a run left that has no checkpoint to go on from.

        Raises:
            FlgenError: The folder is not empty, or cannot be looked into.
        """
        try:
            occupied = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        except OSError as error:
            raise FlgenError(
                f"run folder {self.path} cannot be read ({error.strerror}): choose another --run_dir"
            ) from error
        if occupied and not (begun and self.checkpoints.is_dir()):
            if any(self.checkpoints.glob("round-*")):
                remedy = "continue it with --ckpt_path last"
            elif any(self.path.glob("seed-*/config.yaml")):
                remedy = "it has runs of several seeds: continue them with --seeds"
            else:
                remedy = "it has no checkpoint to continue: remove it"
            raise FlgenError(f"run folder {self.path} already exists: {remedy}, or choose another --run_dir")

    def create(self) -> None:
        """Make the folder and make sure that it can be written to, and that what is written stays in it.

        Raises:
            FlgenError: It cannot, or it holds a link to another place.
        """
        self._check_links()
        self._remove_leftovers()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)  # first: by it a run that was begun is known
            self.samples.mkdir(exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise FlgenError(
                f"run folder {self.path} cannot be written to ({error.strerror}): choose another --run_dir"
            ) from error

    def _check_links(self) -> None:
        """Refuse links that lead out of the folder: a run writes, and removes, what has the names that it knows."""
        inside = self.path.resolve()
        for place, folders, files in os.walk(inside):
            if Path(place) == inside:
                folders[:] = [name for name in folders if name != WANDB]
            for path in (Path(place, name) for name in [*folders, *files]):
                if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                    raise FlgenError(
                        f"run folder {self.path} has a link that leads out of it, {path.relative_to(inside)}: put "
                        "there what it links to, or choose another --run_dir"
                    )

    def _remove_leftovers(self) -> None:
        """Remove what a process that was killed has left: clients' states on disk, and files not yet in their place."""
        for states in self.path.glob(".state-rank-*"):
            shutil.rmtree(states, ignore_errors=True)
        for mark in self.path.glob(".mark-*"):
            mark.unlink(missing_ok=True)
        for folder in (self.path, self.samples, self.pairs):
            for file in folder.glob(".*.tmp"):
                file.unlink(missing_ok=True)

    def write_config(self, text: str, before_round: int) -> None:
        """Write config.yaml; an earlier one that differs is kept as config-until-round-NNNNN.yaml.

        Raises:
            FlgenError: It cannot be written.
        """
        with atomic_replace(self.config) as temporary:
            temporary.write_text(text)
            if self.config.exists() and self.config.read_text() != text:
                shutil.copyfile(self.config, self.path / f"config-until-round-{before_round - 1:05d}.yaml")

    def read_config(self) -> dict[str, Any]:
        """Return the resolved configuration.

        Raises:
            FlgenError: It is missing, or it is no configuration.
        """
        if self.config.exists() and not self.config.is_file():  # a pipe would be waited for
            raise FlgenError(f"{self.config} is no file: choose another run")
        try:
            config = yaml_value(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise FlgenError(f"{self.config} cannot be read ({reason}): choose a run that has one") from error
        if not isinstance(config, dict):
            raise FlgenError(f"{self.config} is no configuration: choose another run")
        return config
