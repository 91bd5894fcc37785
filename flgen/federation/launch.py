"""Starting the ranks, and ending all of them when one fails."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from flgen.errors import FlgenError, UsageError
from flgen.federation.hooks import HookingFabric
from flgen.federation.interruption import StopRequest, die_with_parent
from flgen.federation.strategy import ClientParallelStrategy, RankStrategy

LOST_CONTACT = 75
"""Exit status of a rank that fails only because another one did."""

_CONTINUE = "continue from the last checkpoint with --ckpt_path last"
_PEER_LEFT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
_TIMED_OUT = ("Timed out", "timed out", "timeout")


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

    Raises:
        UsageError: Fabric refuses the combination.
    """
    # Lightning announces every process at the level that its import sets; what goes wrong is still shown.
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that ranks end with the job is meant
    on_gpu = accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())
    if devices == "auto" and not on_gpu and not _started_by_a_launcher():
        devices = 1
    single = str(devices) == "1" and num_nodes == 1
    if accelerator == "auto" and not on_gpu:
        accelerator = "cpu"  # the strategy carries gloo or NCCL; Fabric's automatic choice may be neither
    if not single and not on_gpu:
        keep_to_one_thread()
    strategy = "auto" if single else ranks(timeout_s, "popen" if on_gpu else "fork")
    try:
        return HookingFabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            strategy=strategy,
            callbacks=list(callbacks),
        )
    except Exception as error:
        refusals = (ValueError, TypeError, RuntimeError)
        if not isinstance(error, refusals) and type(error).__name__ != "MisconfigurationException":
            raise
        what = f"--trainer.accelerator {accelerator} --trainer.devices {devices} --trainer.num_nodes {num_nodes}"
        raise UsageError(f"{what}: {_one_line(error)}") from error


def keep_to_one_thread() -> None:
    """Let this process compute on one thread until ranks are forked.

    A forked rank that wants a team of OpenMP threads waits for ever for those of its parent, if that had any.
    """
    torch.set_num_threads(1)


def _started_by_a_launcher() -> bool:
    """Whether torchrun or SLURM has started several ranks."""
    return any(int(os.environ.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def share_of_cores(ranks_here: int) -> int:
    """Return the threads of each rank on this machine: those the environment allows, else an equal share."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return int(allowed) if allowed.isdigit() and int(allowed) else max(1, (os.cpu_count() or 1) // ranks_here)


def launch(fabric: Fabric, function: Callable[[StopRequest], Any]) -> Any:
    """Run `function` on every rank and return what rank 0 returned.

    A stop signal is passed on to every rank. When a rank fails, it prints the reason, the others end, and this
    call raises.

    Args:
        fabric: From `build_fabric`.
        function: Runs on each rank; it is given the stop request to look at. What it returns passes through a pipe
            that is read at the end: keep it below 64 KiB.

    Raises:
        RanksFailed: A rank ended with an error, which it has printed, or was killed.
    """
    stop = StopRequest()
    if isinstance(fabric.strategy, RankStrategy):
        first_failure = multiprocessing.Value("i", 0)
        with warnings.catch_warnings(), stop.listening(forward=True):
            warnings.filterwarnings("ignore", message=".*os.fork\\(\\).*")
            try:
                return fabric.launch(lambda fabric: _run_guarded(fabric, function, first_failure))
            except ProcessExitedException as error:
                raise _explain_exit(error, first_failure.value) from None
            except ProcessRaisedException as error:
                raise RanksFailed(_one_line(error)) from None
    with stop.listening():
        return function(stop)


def _run_guarded(fabric: Fabric, function: Callable[[StopRequest], Any], first_failure: Any) -> Any:
    """Run `function` on one rank; `first_failure` is the exit status of the first forked rank that said why it ends."""
    if _is_child(fabric):
        die_with_parent()
    stop = StopRequest()
    with stop.listening():
        try:
            fabric.barrier()  # a rank that failed before all are connected would leave the others waiting for it
            return function(stop)
        except BaseException as error:
            status = _report(fabric, error, first_failure)
    sys.stderr.flush()
    sys.stdout.flush()
    for process in getattr(fabric.strategy.launcher, "procs", []):
        process.kill()
    os._exit(status)


def _report(fabric: Fabric, error: BaseException, first_failure: Any) -> int:
    """Print why this rank ends, unless it only follows another or says the same; return its exit status."""
    text = str(error) if isinstance(error, RuntimeError) else ""  # what a process group raises
    if any(sign in text for sign in _PEER_LEFT):
        if _forked(fabric):
            return LOST_CONTACT  # the process that forked the ranks sees which one ended first, and says so
        if fabric.is_global_zero:
            print(f"flgen: error: lost contact with another rank; {_CONTINUE}", file=sys.stderr)
        return 1
    status = error.exit_status if isinstance(error, FlgenError) else 1
    with first_failure.get_lock():
        if first_failure.value:
            return LOST_CONTACT
        first_failure.value = status
    if any(sign in text for sign in _TIMED_OUT):
        print(
            f"flgen: error: rank {fabric.global_rank} had no answer from the other ranks in time: {_one_line(error)} "
            "(--trainer.timeout_s, --trainer.round_timeout_s)",
            file=sys.stderr,
        )
        return status
    if not isinstance(error, FlgenError) or os.environ.get("FLGEN_TRACEBACK"):
        traceback.print_exception(error)
    print(f"flgen: error: {_one_line(error)}", file=sys.stderr)
    return status


def _explain_exit(error: ProcessExitedException, first_failure: int) -> RanksFailed:
    if first_failure:
        return RanksFailed("", exit_status=first_failure)
    if error.signal_name:
        return RanksFailed(f"rank {error.error_index} was killed by {error.signal_name}; {_CONTINUE}")
    if error.exit_code == LOST_CONTACT:
        return RanksFailed(f"a rank ended without a word and the others lost contact; {_CONTINUE}")
    return RanksFailed(
        f"rank {error.error_index} ended with exit status {error.exit_code}; {_CONTINUE}", error.exit_code
    )


def _forked(fabric: Fabric) -> bool:
    return isinstance(fabric.strategy, RankStrategy) and fabric.strategy.forked


def _is_child(fabric: Fabric) -> bool:
    """Whether a process of ours started this one, rather than torchrun, SLURM or a user."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return _forked(fabric) or (isinstance(environment, LightningEnvironment) and fabric.local_rank > 0)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, FlgenError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
