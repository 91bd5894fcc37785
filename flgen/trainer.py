"""FederatedTrainer: what a user builds and calls; it prepares a job, starts the ranks, and brings the result home."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from flgen.callbacks import Callback, ClassPictures, RoundProgress, RunLogger, SampleGrids
from flgen.callbacks.evaluation import Evaluation
from flgen.callbacks.loggers import close_loggers
from flgen.data.local_split import LocalSplit
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.experiment.config import describe, to_yaml
from flgen.experiment.records import EventLog, write_partition
from flgen.experiment.runs import AUTO, RunFolder
from flgen.federation import launchers, model_group

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen import fit_loop, measurement
    from flgen import job as jobs
    from flgen.data import LabelledData, Partitioner
    from flgen.experiment import checkpoints, weights
    from flgen.federation import launch
    from flgen.methods.base import Method
else:
    checkpoints = deferred_module("flgen.experiment.checkpoints")
    fit_loop = deferred_module("flgen.fit_loop")
    jobs = deferred_module("flgen.job")
    measurement = deferred_module("flgen.measurement")
    launch = deferred_module("flgen.federation.launch")
weights = deferred_module("flgen.experiment.weights")


log = logging.getLogger("flgen")


class FederatedTrainer:
    """Runs a method over many clients, on one process or many, and keeps what they make.

    Args:
        rounds: Number of communication rounds T.
        accelerator: "auto", "cpu", "cuda" or "mps".
        devices: Processes per node, one per device, or "auto" (what torchrun or srun started; else all GPUs, 1 on CPU).
        num_nodes: Number of nodes.
        precision: Fabric's names: "32-true" or "bf16-mixed".
        threads_per_rank: CPU threads of each process; None means OMP_NUM_THREADS, else a share of the cores.
            Results are the same bits for any number of processes only with the same number of threads.
        timeout_s: Limit of every exchange between processes, seconds.
        round_timeout_s: How long a fast process waits for the slowest one's local training, seconds.
        lost_after_s: How long another node may be out of reach before the job ends, seconds.
        clients_per_round: Cohort size; None means every client, every round.
        participation: Sampling ratio rho, the share of the clients in a cohort; give this or clients_per_round.
        on_client_error: "raise" ends the job when a client fails; "skip" leaves it out of the round.
        min_clients: With "skip", the fewest uploads that a round may end with.
        checkpoint_every: Write a checkpoint after every so many rounds (and always at the end).
        keep_checkpoints: Number of newest checkpoints to keep.
        client_state_mb: Megabytes of client state kept on the device; more goes to host memory, then to files.
        callbacks: What watches the run; None means a progress display, sample grids and
            class pictures.
    """

    def __init__(
        self,
        rounds: int = 20,
        accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto",
        devices: int | Literal["auto"] = "auto",
        num_nodes: int = 1,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        threads_per_rank: int | None = None,
        timeout_s: float = 120,
        round_timeout_s: float = 3600,
        lost_after_s: float = 30,
        clients_per_round: int | None = None,
        participation: float | None = None,
        on_client_error: Literal["raise", "skip"] = "raise",
        min_clients: int = 1,
        checkpoint_every: int = 1,
        keep_checkpoints: int = 3,
        client_state_mb: float = 4096,
        callbacks: list[Callback] | None = None,
    ) -> None:
        option_ranges.at_least(
            "trainer",
            1,
            rounds=rounds,
            devices=devices,
            num_nodes=num_nodes,
            threads_per_rank=threads_per_rank,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
            min_clients=min_clients,
        )
        limits = {"timeout_s": timeout_s, "round_timeout_s": round_timeout_s, "lost_after_s": lost_after_s}
        option_ranges.above_0("trainer", "seconds", **limits)
        if participation is not None and not 0 < participation <= 1:
            raise UsageError(f"--trainer.participation is {participation}: give a share above 0, at most 1")
        if participation is not None and clients_per_round is not None:
            raise UsageError(
                f"--trainer.participation {participation} and --trainer.clients_per_round {clients_per_round} both say "
                "how many clients a round has: set one of them to null"
            )
        self.rounds = rounds
        self.accelerator = accelerator
        self.devices = devices
        self.num_nodes = num_nodes
        self.precision = precision
        self.threads_per_rank = threads_per_rank
        self.timeout_s = timeout_s
        self.round_timeout_s = round_timeout_s
        self.lost_after_s = lost_after_s
        self.clients_per_round = clients_per_round
        self.participation = participation
        self.on_client_error = on_client_error
        self.min_clients = min_clients
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self.client_state_mb = client_state_mb
        default: list[Callback] = [RoundProgress(), SampleGrids(), ClassPictures()]
        self.callbacks: list[Callback] = default if callbacks is None else callbacks

        # What callbacks look at; set during a fit.
        self.folder = RunFolder(Path())
        self.loggers: list[Any] = []
        self.first_round = 1
        self.is_global_zero = True

    @property
    def run_dir(self) -> Path:
        """The run folder's path."""
        return self.folder.path

    def fit(
        self,
        method: Method,
        model: LightningModule | Sequence[LightningModule],
        data: LabelledData,
        partition: Partitioner,
        *,
        split: LocalSplit | None = None,
        evaluation: Evaluation | None = None,
        loggers: Sequence[RunLogger] = (),
        run_dir: str | Path = "runs/default",
        seed_everything: int = 0,
        partition_seed: int | None = None,
        ckpt_path: str | Path | None = None,
        initial_weights: str | Path | None = None,
        config: dict[str, Any] | None = None,
    ) -> fit_loop.FitResult:
        """Run all rounds and return how it ended; `method` and `model` then hold the result.

        Args:
            method: The algorithm.
            model: Any LightningModule the method can train, or a list of them for a `ModelGroup`.
            data: The data set.
            partition: How it is divided among clients.
            split: What each client trains on, holds back and is tested on; None means the defaults.
            evaluation: When and how to evaluate; None means the defaults.
            loggers: Loggers besides metrics.csv.
            run_dir: The run folder; it must be new unless `ckpt_path` continues it.
            seed_everything: Seed of every random stream.
            partition_seed: Seed of who holds which samples, test samples included; None takes `seed_everything`.
            ckpt_path: Checkpoint to continue from: a folder, or "last" for the newest good one of `run_dir`; "auto" is
                that one, or a fresh start if there is none.
            initial_weights: Weights that the model starts from, a `*.safetensors` file; None takes it as it is.
            config: The resolved configuration, for config.yaml and the loggers; None describes the arguments.

        Raises:
            UsageError: Impossible request.
            FlgenError: The run failed, or could not start.
        """
        model = method.own_model(model_group.as_one_module(model))
        self.folder = RunFolder(Path(run_dir))
        resume = checkpoints.checkpoint_to_continue(ckpt_path, self.folder.path)
        launchers.check_launcher(self.devices, self.num_nodes)
        fabric = self._build_fabric(self.devices, self.num_nodes)
        self.is_global_zero = fabric.is_global_zero
        continues = resume is not None and resume.path.resolve().is_relative_to(self.folder.path.resolve())
        if self.is_global_zero and not continues:
            self.folder.check_new(begun=str(ckpt_path) == AUTO)

        sha256 = None
        if initial_weights is not None:
            if method.draws_weights:
                raise UsageError(
                    f"--initial_weights {initial_weights}: {type(method).__name__} draws its initial weights itself "
                    f"({method.draws_weights}): remove one of the two"
                )
            sha256 = weights.load_weights(model, initial_weights)
        seeds = seed_everything, partition_seed
        job = self._prepare(method, model, data, partition, split, seeds, fabric.world_size)
        job.begin_with(initial_weights, sha256)
        cohort = job.federation.clients_per_round or len(job.federation)
        if self.min_clients > cohort:
            raise UsageError(f"--trainer.min_clients is {self.min_clients}: a round has only {cohort} clients")
        job.loggers = loggers
        job.evaluate_with(evaluation if evaluation is not None else Evaluation())
        job.config = config if config is not None else self._describe(job, partition, split, seeds, run_dir)
        method.prepare(model, job.data)
        if method.generative:
            job.evaluation.prepare(job.data)
        if resume is not None:
            job.continue_from(resume)
        if self.is_global_zero:
            self.folder.create()
            self.folder.write_config(to_yaml(job.config), before_round=job.first_round)
            write_partition(self.folder.partition, job.label_table, data.class_names)

        result = launch.launch(fabric, lambda stop: fit_loop.FitLoop(self, fabric, job, stop).run(), self._close)
        if result.signal_number and fabric.is_global_zero:
            again = f"flgen fit --config {self.folder.config} --ckpt_path last"
            log.warning("stopped after round %d; continue with %s", result.round, again)
        if fabric.world_size > 1 and fabric.is_global_zero and result.round:
            # Forked ranks took the trained state with them; bring it back for who goes on in Python.
            self._restore(job, checkpoints.find_checkpoint(self.folder.checkpoints / "last"))
        return result

    def evaluate(
        self,
        method: Method,
        model: LightningModule | Sequence[LightningModule],
        data: LabelledData,
        partition: Partitioner,
        *,
        split: LocalSplit | None = None,
        ckpt_path: str | Path,
        evaluation: Evaluation | None = None,
        seed_everything: int = 0,
        partition_seed: int | None = None,
    ) -> dict[str, float]:
        """Return the metrics of a checkpoint, measured on this one process; arguments as for `fit`."""
        model = method.own_model(model_group.as_one_module(model))
        checkpoint = checkpoints.find_checkpoint(ckpt_path)
        job = self._prepare(method, model, data, partition, split, (seed_everything, partition_seed), world_size=1)
        job.evaluation = evaluation if evaluation is not None else Evaluation()
        if method.generative:
            job.evaluation.prepare(job.data)
        fabric = self._restore(job, checkpoint)
        metrics = measurement.measure(job, fabric, checkpoint.round)[0]
        if measurement.tests_clients(job):
            metrics.update(measurement.measure_checkpoint_clients(job, checkpoint, fabric))
        return metrics

    def samples(
        self,
        method: Method,
        model: LightningModule | Sequence[LightningModule],
        data: LabelledData,
        partition: Partitioner,
        *,
        split: LocalSplit | None = None,
        ckpt_path: str | Path,
        count: int,
        seed_everything: int = 0,
        partition_seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Return images that a checkpoint draws, uint8 (count, C, H, W), by kind of model; arguments as for `fit`."""
        model = method.own_model(model_group.as_one_module(model))
        checkpoint = checkpoints.find_checkpoint(ckpt_path)
        job = self._prepare(method, model, data, partition, split, (seed_everything, partition_seed), world_size=1)
        self._restore(job, checkpoint)
        return method.samples(count, checkpoint.round)

    def _build_fabric(self, devices: int | str, num_nodes: int) -> Fabric:
        return launch.build_fabric(
            accelerator=self.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=self.precision,
            timeout_s=self.timeout_s,
            callbacks=self.callbacks,
            lost_after_s=self.lost_after_s,
        )

    def _close(self, reason: str) -> None:
        """Keep what loggers have in memory, where a rank ends because another node is out of reach."""
        if self.is_global_zero:
            EventLog(self.folder.events).write("failed", error=reason)
            close_loggers(self.loggers, exit_code=1)

    def _prepare(
        self,
        method: Method,
        model: LightningModule,
        data: LabelledData,
        partition: Partitioner,
        split: LocalSplit | None,
        seeds: tuple[int, int | None],
        world_size: int,
    ) -> jobs.Job:
        data.prepare_data()
        data.setup()
        seed, partition_seed = seeds
        return jobs.prepare_job(
            method,
            model,
            data,
            partition,
            seed,
            world_size,
            self.clients_per_round,
            self.rounds,
            partition_seed,
            split,
            self.participation,
        )

    def _restore(self, job: jobs.Job, checkpoint: checkpoints.Checkpoint) -> Fabric:
        """Put a checkpoint's server state into the method, on one device of this process."""
        fabric = self._build_fabric(1, 1)
        job.resume_from(checkpoint)
        job.set_up_method(fabric)
        with checkpoint.taken_up():
            job.method.load_state_dict(checkpoint.server_state()["method"])
        return fabric

    def _describe(
        self,
        job: jobs.Job,
        partition: Partitioner,
        split: LocalSplit | None,
        seeds: tuple[int, int | None],
        run_dir: str | Path,
    ) -> dict[str, Any]:
        """Return the configuration that a fit from Python stands for, as the command line would have it."""
        return {
            "initial_weights": job.initial_weights,
            "seed_everything": seeds[0],
            "partition_seed": seeds[1],
            "run_dir": str(run_dir),
            "trainer": describe(self)["init_args"],
            "model": describe(job.model),
            "method": describe(job.method),
            "data": describe(job.data),
            "partition": describe(partition),
            "split": describe(split or LocalSplit()),
            "evaluation": describe(job.evaluation)["init_args"],
            "loggers": describe(job.loggers),
        }
