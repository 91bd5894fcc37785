"""Starting the ranks, and ending all of them when one fails."""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from flgen.errors import FlgenError, UsageError
from flgen.federation.guarded_rank import CONTINUE, LOST_CONTACT, GuardedRank, is_consequence, one_line
from flgen.federation.hooks import HookingFabric
from flgen.federation.interfaces import choose_interface
from flgen.federation.interruption import StopRequest
from flgen.federation.launchers import Started, is_job_of_one_task, started_processes
from flgen.federation.strategy import ClientParallelStrategy, RankStrategy


class StepEnvironment(SLURMEnvironment):
    """What srun tells its tasks, which need not be what sbatch was told: SLURM_NTASKS_PER_NODE is the job's."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Leave it to `check_launcher`, which looks at the step's numbers."""


class RanksFailed(FlgenError):
    """A rank ended the job and has already said why."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def build_fabric(
    *,
    accelerator: str,
    devices: int | str,
    num_nodes: int,
    precision: str,
    timeout_s: float,
    callbacks: Sequence[Any],
    ranks: type[RankStrategy] = ClientParallelStrategy,
    lost_after_s: float = 30,
) -> Fabric:
    """Return a Fabric whose ranks share a process group; one device needs no group at all.

    Args:
        accelerator: "auto", "cpu", "cuda" or "mps".
        devices: Devices per node, or "auto".
        num_nodes: Number of nodes.
        precision: Fabric's names: "32-true", "bf16-mixed", ...
        timeout_s: Limit of every collective, seconds.
        callbacks: Objects with hooks, called by `fabric.call`.
        ranks: Whether each rank trains clients of its own, or all train one model (RankStrategy).
        lost_after_s: How long another node may be silent, seconds.

    Raises:
        UsageError: Fabric refuses the combination.
    """
    # Lightning announces every process at the level that its import sets; what goes wrong is still shown.
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that ranks end with the job is meant
    on_gpu = accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())
    started = started_processes()
    if devices == "auto" and (started is not None or not on_gpu):
        devices = 1 if started is None else started.per_node
    single = str(devices) == "1" and num_nodes == 1
    if accelerator == "auto" and not on_gpu:
        accelerator = "cpu"  # the strategy carries gloo or NCCL; Fabric's automatic choice may be neither
    if not single and not on_gpu:
        keep_to_one_thread()
    strategy = "auto" if single else ranks(timeout_s, "popen" if on_gpu else "fork", lost_after_s)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The `srun` command is available")  # `check_launcher` says more
            return HookingFabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                precision=precision,
                strategy=strategy,
                callbacks=list(callbacks),
                plugins=None if single else _environment(started),
            )
    except Exception as error:
        refusals = (ValueError, TypeError, RuntimeError)
        if not isinstance(error, refusals) and type(error).__name__ != "MisconfigurationException":
            raise
        what = f"--trainer.accelerator {accelerator} --trainer.devices {devices} --trainer.num_nodes {num_nodes}"
        raise UsageError(f"{what}: {one_line(error)}") from error


def _environment(started: Started | None) -> list[ClusterEnvironment] | None:
    """Return what Fabric takes for the launcher, None for what it finds itself."""
    if started is not None:
        return [StepEnvironment()] if started.by == "srun" else None
    return [LightningEnvironment()] if is_job_of_one_task() else None  # it takes the mere presence of SLURM for srun


def keep_to_one_thread() -> None:
    """Let this process compute on one thread until ranks are forked.

    A forked rank that wants a team of OpenMP threads waits for ever for those of its parent, if that had any.
    """
    torch.set_num_threads(1)


def share_of_cores(ranks_here: int) -> int:
    """Return the threads of each rank on this machine: those the environment allows, else an equal share."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return int(allowed) if allowed.isdigit() and int(allowed) else max(1, (os.cpu_count() or 1) // ranks_here)


def launch(fabric: Fabric, function: Callable[[StopRequest], Any], on_loss: Callable[[str], None] | None = None) -> Any:
    """Run `function` on every rank and return what rank 0 returned, or on other nodes what the first rank there did.

    A stop signal is passed on to every rank. When a rank fails, or another node is out of reach, the ranks say why and
    end, and this call raises.

    Args:
        fabric: From `build_fabric`.
        function: Runs on each rank; it is given the stop request to look at. What it returns passes through a pipe
            that is read at the end: keep it below 64 KiB.
        on_loss: Called on a rank that ends because another node does, with the reason, while `function` still runs.
            It has ten seconds to close what must be closed.

    Raises:
        RanksFailed: A rank ended with an error, which it has printed, or was killed.
        FlgenError: The nodes could not find each other.
    """
    stop = StopRequest()
    strategy = fabric.strategy
    if isinstance(strategy, RankStrategy):
        address = None
        if strategy.num_nodes > 1:
            assert strategy.cluster_environment is not None
            main_address = strategy.cluster_environment.main_address
            address = choose_interface(main_address, min(strategy.timeout_s, 60))
        first_failure = multiprocessing.Value("i", 0)
        with warnings.catch_warnings(), stop.listening(forward=True):
            warnings.filterwarnings("ignore", message=".*os.fork\\(\\).*")
            rank = GuardedRank(fabric, stop, first_failure, address, on_loss)
            try:
                return fabric.launch(lambda fabric: rank.run(function))
            except ProcessExitedException as error:
                raise _explain_exit(error, first_failure.value) from None
            except ProcessRaisedException as error:
                raise RanksFailed(_why_not_connected(str(error).strip().splitlines()[-1])) from None
            except RuntimeError as error:  # the ranks' own errors end in GuardedRank: this one's is Fabric's or torch's
                if not _is_of_the_group(error):
                    raise
                raise FlgenError(_why_not_connected(one_line(error))) from error
    with stop.listening():
        return function(stop)


def _is_of_the_group(error: RuntimeError) -> bool:
    """Whether the process group could not be made; gloo says so in errors of no type of their own."""
    return isinstance(error, dist.DistError) or is_consequence(error) or "gloo" in str(error).lower()


def _why_not_connected(reason: str) -> str:
    main = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return (
        f"the processes did not find each other at {main}: {reason}; start flgen on every node, with the same "
        "MASTER_ADDR and MASTER_PORT"
    )


def _explain_exit(error: ProcessExitedException, first_failure: int) -> RanksFailed:
    if first_failure:
        return RanksFailed("", exit_status=first_failure)
    if error.signal_name:
        return RanksFailed(f"rank {error.error_index} was killed by {error.signal_name}; {CONTINUE}")
    if error.exit_code == LOST_CONTACT:
        return RanksFailed(f"a rank ended without a word and the others lost contact; {CONTINUE}")
    return RanksFailed(
        f"rank {error.error_index} ended with exit status {error.exit_code}; {CONTINUE}", error.exit_code
    )
