"""Loggers beside metrics.csv: Weights & Biases and TensorBoard, under Lightning's names.

The configuration names a `RunLogger`; the trainer opens it on rank 0, inside the launched process, and uses the
Lightning logger that comes out: `log_metrics(metrics, step=round)` and `log_image_grid`. `close_loggers` belongs in a
`finally`: forked ranks leave without exit handlers, and W&B keeps rows in memory until its run is finished.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError
from flgen.experiment.class_paths import short_name
from flgen.experiment.records import read_metrics, read_partition
from flgen.metrics.over_rounds import summary_kind

if TYPE_CHECKING:
    import torch
    from lightning.fabric.loggers import Logger

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
"""Ids become names of folders."""

BYTES = "comm/bytes"

WANDB_START_TIMEOUT_S = 60  # the other ranks wait meanwhile, and their patience ends after two minutes


class RunLogger(ABC):
    """What the configuration says about a logger, before there is a run."""

    @abstractmethod
    def open(
        self, run_dir: Path, config: Mapping[str, Any], name: str, resume_id: str | None, first_round: int = 1
    ) -> Logger:
        """Start the logger of one run; to be called on rank 0 only.

        Args:
            run_dir: The run folder; what the logger writes goes below it.
            config: The resolved configuration, stored with the run.
            name: The run's name, used where the configuration gives none.
            resume_id: What `run_id` returned before the run was stopped, or None for a new run.
            first_round: The first round that will be logged.

        Raises:
            FlgenError: If the logger cannot start.
        """


class WandbLogger(RunLogger):
    """Logs to Weights & Biases; every chart's x-axis is the round.

    WANDB_MODE=offline or disabled, and W&B's other environment variables, are respected. Beside its configuration a run
    has flat keys to group by: `method_name`, `data_name`, `partition_name`, `model_name`, `clients`, `seed`. Beside its
    metrics it has `comm/bytes_so_far`, an x-axis for what a method costs. Its summary has the last value of a metric,
    and of one that says how good a model is the best one, as `.min` or `.max`.

    Args:
        project: The W&B project; WANDB_PROJECT, or else `flgen`, if not given.
        name: The run's name on the dashboard; the name of the run folder if not given.
        group: Runs of one group are shown together; if not given, WANDB_RUN_GROUP, or the sweep that W&B's agent runs.
        tags: Labels to find the run by.
        offline: Write below the run folder only and touch no network; `wandb sync` uploads later.
        entity: The W&B user or team; the account's default if not given.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
        entity: str | None = None,
    ) -> None:
        self.project = project
        self.name = name
        self.group = group
        self.tags = tags
        self.offline = offline
        self.entity = entity

    def open(
        self, run_dir: Path, config: Mapping[str, Any], name: str, resume_id: str | None, first_round: int = 1
    ) -> Logger:
        if resume_id is not None and not (isinstance(resume_id, str) and _RUN_ID.fullmatch(resume_id)):
            raise FlgenError(f"the checkpoint has {resume_id!r:.40} as the id of a W&B run: use another checkpoint")
        import wandb

        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if self.offline and mode != "disabled":
            mode = "offline"
        start_timeout_s = float(os.environ.get("WANDB_INIT_TIMEOUT") or WANDB_START_TIMEOUT_S)
        project = self.project or os.environ.get("WANDB_PROJECT") or "flgen"
        try:
            if mode not in ("offline", "dryrun", "disabled"):
                _require_wandb_key()
            run = wandb.init(
                project=project,
                name=self.name or os.environ.get("WANDB_NAME") or name,
                group=self.group or os.environ.get("WANDB_RUN_GROUP") or os.environ.get("WANDB_SWEEP_ID"),
                tags=self.tags,
                entity=self.entity,
                dir=str(run_dir),
                config={**config, **grouping_keys(config, run_dir)},
                mode=mode,  # type: ignore[arg-type]
                id=resume_id,
                resume="allow" if resume_id else None,
                settings=wandb.Settings(init_timeout=start_timeout_s),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise FlgenError(
                f"W&B cannot start a run: {reason}; log in with `wandb login`, or keep the run on disk with "
                "--loggers.init_args.offline true or WANDB_MODE=offline"
            ) from error
        run.define_metric("round")
        run.define_metric("*", step_metric="round", step_sync=True)
        sent = sum(row.get(BYTES, 0) for row in read_metrics(run_dir / "metrics.csv"))
        return _wandb_logger_class()(sent, project=project, save_dir=str(run_dir), experiment=run)


class TensorBoardLogger(RunLogger):
    """Writes TensorBoard event files.

    Args:
        save_dir: A folder that many runs share, each in a subfolder of its own name; the folder `tensorboard` in
            the run folder if not given.
        flush_secs: At the latest after this many seconds a logged value is in the file.
    """

    def __init__(self, save_dir: str | None = None, flush_secs: int = 10) -> None:
        self.save_dir = save_dir
        self.flush_secs = flush_secs

    def open(
        self, run_dir: Path, config: Mapping[str, Any], name: str, resume_id: str | None, first_round: int = 1
    ) -> Logger:
        import yaml
        from lightning.fabric.loggers import TensorBoardLogger as LightningTensorBoardLogger

        logger = LightningTensorBoardLogger(
            root_dir=self.save_dir or run_dir,
            name=name if self.save_dir else "tensorboard",
            version="",
            flush_secs=self.flush_secs,
            # TensorBoard then hides what an interrupted run logged after the checkpoint it continues from
            purge_step=first_round if first_round > 1 else None,
        )
        try:
            plain_config = json.loads(json.dumps(dict(config), default=str))
            logger.experiment.add_text("config", f"```yaml\n{yaml.safe_dump(plain_config, sort_keys=False)}```")
        except OSError as error:
            raise FlgenError(f"TensorBoard cannot write to {logger.log_dir}: {error.strerror or error}") from error
        return logger


def grouping_keys(config: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return what runs are grouped by on a dashboard: flat keys, short names of classes; none for what is not there.

    Args:
        config: The resolved configuration.
        run_dir: The run folder, whose partition.csv has a row for each client.
    """
    found = {
        f"{section}_name": _short_names(config.get(section)) for section in ("method", "data", "partition", "model")
    }
    partition = run_dir / "partition.csv"
    clients = len(read_partition(partition)[1]) if partition.is_file() else None
    keys = {**found, "clients": clients, "seed": config.get("seed_everything")}
    return {name: value for name, value in keys.items() if value is not None}


def _short_names(chosen: Any) -> str | None:
    """Return the name of a class without its modules, those of several joined by +."""
    if isinstance(chosen, list):
        names = [name for name in map(_short_names, chosen) if name is not None]
        return "+".join(dict.fromkeys(names)) or None
    class_path = chosen.get("class_path") if isinstance(chosen, Mapping) else None
    return short_name(class_path) if isinstance(class_path, str) else None


def log_image_grid(logger: Logger, name: str, grid: torch.Tensor, step: int) -> None:
    """Log one image, to W&B or TensorBoard; a logger that knows no images is left alone.

    Args:
        logger: What `RunLogger.open` returned.
        name: The image's name.
        grid: uint8 (channels, height, width), one or three channels.
        step: The round that the image shows.
    """
    if hasattr(logger, "log_image"):
        from torchvision.transforms.functional import to_pil_image

        logger.log_image(name, [to_pil_image(grid)], step=step)
        return
    writer = getattr(logger, "experiment", None)
    if writer is not None and hasattr(writer, "add_image"):
        writer.add_image(name, grid, global_step=step)


def run_id(logger: Logger) -> str | None:
    """Return what a checkpoint must store to continue this logger's run, or None if nothing is needed."""
    run = getattr(logger, "experiment", None)
    return None if getattr(run, "disabled", False) else getattr(run, "id", None)


def close_loggers(loggers: Iterable[Logger], exit_code: int) -> None:
    """Write out everything that is still in memory and end each logger's run.

    Args:
        loggers: What `RunLogger.open` returned.
        exit_code: The exit status of the program; W&B shows the run as failed unless it is 0.
    """
    for logger in loggers:
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(finish):
            finish(exit_code=exit_code)
        else:
            logger.finalize("success" if exit_code == 0 else "failed")
    if "wandb" in sys.modules and multiprocessing.parent_process() is not None:
        # A forked rank leaves without atexit: W&B's own process must have written its file before that.
        sys.modules["wandb"].teardown(exit_code)


def _require_wandb_key() -> None:
    """Raise where `wandb.init` would ask for a key on the terminal while the other ranks wait."""
    import wandb

    can_look_without_asking = "prompt" in inspect.signature(wandb.login).parameters
    if can_look_without_asking and wandb.run is None and not wandb.login(prompt=False, verify=False):
        raise wandb.errors.UsageError("no API key is configured")


def _wandb_logger_class() -> Any:
    """Lightning's logger with the round in place of `trainer/global_step`, and as W&B's own step.

    One round is one row then, media sliders count rounds, and the files of an offline run and of its continuation
    fit together. Of a round that is repeated after a resume, W&B keeps what it has.
    """
    from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
    from lightning.pytorch.utilities import rank_zero_only

    class RoundWandbLogger(LightningWandbLogger):
        def __init__(self, bytes_so_far: float, **options: Any) -> None:
            super().__init__(**options)
            self._bytes_so_far = bytes_so_far
            self._seen: set[str] = set()

        @rank_zero_only
        def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
            row = dict(metrics)
            if BYTES in row:
                self._bytes_so_far += row[BYTES]
                row["comm/bytes_so_far"] = self._bytes_so_far
            for name in row.keys() - self._seen:
                self._seen.add(name)
                if (kind := summary_kind(name)) != "last":  # which is what W&B keeps anyway
                    self.experiment.define_metric(name, step_metric="round", summary=f"{kind},last")
            self.experiment.log(row if step is None else {**row, "round": step}, step=step)

    return RoundWandbLogger
