"""ServerTrainer: trains one model on one data set with all ranks together, before clients take it up.

This is the third stage of GPT-FL (gptfl.md, sections 1.1 and 4.1): server training on synthetic samples. It knows
nothing of clients; all ranks average their gradients (Fabric's DDP), and what it leaves is a file of weights.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from flgen.data import ImageData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.experiment.config import to_yaml
from flgen.experiment.runs import AUTO, RunFolder
from flgen.federation import launchers
from flgen.federation.training_options import Augmentation

if TYPE_CHECKING:
    from lightning import LightningModule

    from flgen import server_loop
    from flgen.data import LabelledData
    from flgen.experiment import checkpoints, weights
    from flgen.federation import launch, strategy
else:
    checkpoints = deferred_module("flgen.experiment.checkpoints")
    launch = deferred_module("flgen.federation.launch")
    server_loop = deferred_module("flgen.server_loop")
    strategy = deferred_module("flgen.federation.strategy")
    weights = deferred_module("flgen.experiment.weights")

log = logging.getLogger("flgen")

KEPT_OPTIONS = ("batch_size", "optimizer", "learning_rate", "weight_decay", "schedule", "augmentation", "precision")
"""Options by which a model is trained: a run goes on only with those that it began with."""


class ServerTrainer:
    """Trains a model on samples that the server has, all ranks together.

    The defaults are the specification's for synthetic samples, which are easily over-fitted: a small learning rate and
    a large weight decay (gptfl.md, section 4.1). The weights of the last epoch are the result; the test split is
    measured and never chooses.

    Args:
        epochs: Passes over the samples.
        batch_size: Samples per step, over all ranks together.
        optimizer: "adamw" over all parameters, or the "module"'s own (`configure_optimizers`), whose learning rate
            the schedule then multiplies.
        learning_rate: AdamW's.
        weight_decay: AdamW's; 0.9 was used for CIFAR, 0.3 for others.
        schedule: "cosine" from the learning rate to 0 over all epochs, or "constant".
        augmentation: What is drawn anew for every batch of images.
        evaluate_every: Measure the test split after every so many epochs, and after the last.
        accelerator: "auto", "cpu", "cuda" or "mps".
        devices: Processes per node, one per device, or "auto" (what torchrun or srun started; else all GPUs, 1 on CPU).
        num_nodes: Number of nodes.
        precision: Fabric's names: "32-true" or "bf16-mixed".
        threads_per_rank: CPU threads of each process; None means OMP_NUM_THREADS, else a share of the cores.
        timeout_s: Limit of every exchange between processes, seconds.
        round_timeout_s: How long the other processes wait while one measures, seconds.
        checkpoint_every: Write a checkpoint after every so many epochs (and always at the end).
        keep_checkpoints: Number of newest checkpoints to keep.

    Raises:
        UsageError: A number is out of its range.
    """

    def __init__(
        self,
        epochs: int = 200,
        batch_size: int = 32,
        optimizer: Literal["adamw", "module"] = "adamw",
        learning_rate: float = 1e-4,
        weight_decay: float = 0.9,
        schedule: Literal["cosine", "constant"] = "cosine",
        augmentation: Augmentation = "none",
        evaluate_every: int = 10,
        accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto",
        devices: int | Literal["auto"] = "auto",
        num_nodes: int = 1,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        threads_per_rank: int | None = None,
        timeout_s: float = 120,
        round_timeout_s: float = 3600,
        checkpoint_every: int = 1,
        keep_checkpoints: int = 2,
    ) -> None:
        option_ranges.at_least(
            "trainer",
            1,
            epochs=epochs,
            batch_size=batch_size,
            evaluate_every=evaluate_every,
            devices=devices,
            num_nodes=num_nodes,
            threads_per_rank=threads_per_rank,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
        )
        option_ranges.above_0("trainer", "seconds", timeout_s=timeout_s, round_timeout_s=round_timeout_s)
        option_ranges.above_0("trainer", learning_rate=learning_rate)
        option_ranges.at_least("trainer", 0, weight_decay=weight_decay)
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.augmentation = augmentation
        self.evaluate_every = evaluate_every
        self.accelerator = accelerator
        self.devices = devices
        self.num_nodes = num_nodes
        self.precision = precision
        self.threads_per_rank = threads_per_rank
        self.timeout_s = timeout_s
        self.round_timeout_s = round_timeout_s
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self.is_global_zero = True

    def fit(
        self,
        model: LightningModule,
        data: LabelledData,
        *,
        samples: str | Path | None = None,
        per_class: int | None = None,
        initial_weights: str | Path | None = None,
        run_dir: str | Path = "runs/pretrain",
        seed_everything: int = 0,
        ckpt_path: str | Path | None = None,
        config: dict[str, Any] | None = None,
    ) -> server_loop.ServerResult:
        """Train to the last epoch and return how it ended.

        Args:
            model: Any LightningModule with a `training_step`.
            data: The data set that the model is for: its classes, its inputs, its test split.
            samples: Folder that `flgen synthesize` wrote; None trains on the data set's own training split (the
                upper bound that no federation can see).
            per_class: Use the first so many samples of each class; None uses all.
            initial_weights: A `*.safetensors` file to start from; None starts from the module as it is.
            run_dir: The run folder; it must be new unless `ckpt_path` continues it.
            seed_everything: Seed of every random stream.
            ckpt_path: Checkpoint to continue from: a folder, or "last" for the newest good one of `run_dir`; "auto" is
                that one, or a fresh start if there is none.
            config: The resolved configuration, for config.yaml.

        Raises:
            UsageError: Impossible request.
            FlgenError: Training failed, or could not start.
        """
        folder = RunFolder(Path(run_dir))
        resume = checkpoints.checkpoint_to_continue(ckpt_path, folder.path)
        launchers.check_launcher(self.devices, self.num_nodes)
        fabric = launch.build_fabric(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            precision=self.precision,
            timeout_s=self.timeout_s,
            callbacks=[],
            ranks=strategy.RankStrategy,
        )
        self.is_global_zero = fabric.is_global_zero
        continues = resume is not None and resume.path.resolve().is_relative_to(folder.path.resolve())
        if fabric.is_global_zero and not continues:
            folder.check_new(begun=str(ckpt_path) == AUTO)
        if self.augmentation != "none" and not isinstance(data, ImageData):
            raise UsageError(
                f"--trainer.augmentation {self.augmentation} is for images, --data {type(data).__name__} holds "
                f"{data.noun}: use --trainer.augmentation none"
            )
        if self.batch_size < fabric.world_size:
            raise UsageError(
                f"--trainer.batch_size {self.batch_size} leaves some of {fabric.world_size} processes without samples: "
                "raise it, or lower --trainer.devices"
            )
        data.prepare_data()
        data.setup()
        if initial_weights is None:
            init = str(getattr(model, "init", "random"))
        else:
            init = f"{initial_weights} (sha256 {weights.load_weights(model, initial_weights)})"
        job = server_loop.ServerJob(
            model=model,
            data=data,
            train=server_loop.training_set(data, samples, per_class),
            source="real" if samples is None else str(samples),
            init=init,
            seed=seed_everything,
            folder=folder,
            options={name: getattr(self, name) for name in KEPT_OPTIONS},
        )
        if resume is not None:
            job.continue_from(resume)
        if fabric.is_global_zero:
            folder.create()
            if config is not None:
                folder.write_config(to_yaml(config), before_round=job.first_epoch)
        result: server_loop.ServerResult = launch.launch(
            fabric, lambda stop: server_loop.ServerLoop(self, fabric, job, stop).run()
        )
        if result.signal_number and fabric.is_global_zero:
            again = f"flgen pretrain --config {folder.config} --ckpt_path last"
            log.warning("stopped after epoch %d; continue with %s", result.epoch, again)
        if fabric.world_size > 1 and result.weights is not None:
            weights.load_weights(model, result.weights)  # forked ranks took the trained module with them
        return result
