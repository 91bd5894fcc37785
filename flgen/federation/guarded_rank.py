"""One rank's work, guarded: when it fails, or another rank or node is lost, its process says why once and ends."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment

from flgen.errors import EveryProcessError, FlgenError
from flgen.federation.heartbeat import Heartbeat, Loss, Place
from flgen.federation.interruption import StopRequest, die_with_parent
from flgen.federation.strategy import RankStrategy

LOST_CONTACT = 75
"""Exit status of a rank that fails only because another one did."""

CONTINUE = "continue from the last checkpoint with --ckpt_path last"
"""What the user can do after a rank was lost."""

_PEER_LEFT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
_TIMED_OUT = ("Timed out", "timed out", "timeout")
_OWN_ERROR_FIRST_S = 1  # what this process finds wrong itself says more than that another has failed
# A collective that broke off is a consequence. Its cause comes by the heartbeat, after the first process of the failing
# node and the one of this node have each given way to an error of their own.
_HEARTBEAT_FIRST_S = 4 * _OWN_ERROR_FIRST_S
_CLOSING_LIMIT_S = 10


class GuardedRank:
    """One rank's work, and its end.

    Args:
        fabric: From `build_fabric`, launched when the work begins.
        stop: Looked at by the work. It has the stop signals that came while the ranks were being connected, or before
            this process was forked.
        first_failure: The exit status of the first forked rank that said why it ends.
        address: This node's address for the others, None where there are none.
        on_loss: As for `launch`.
    """

    def __init__(
        self,
        fabric: Fabric,
        stop: StopRequest,
        first_failure: Any,
        address: str | None,
        on_loss: Callable[[str], None] | None,
    ) -> None:
        self._fabric = fabric
        self._stop = stop
        self._first_failure = first_failure
        self._address = address
        self._on_loss = on_loss
        self._parent = os.getpid() if _forked(fabric) else os.getppid()
        self._ending = threading.Lock()  # taken once, by the thread that ends the process
        self._heartbeat: Heartbeat | None = None

    def run(self, function: Callable[[StopRequest], Any]) -> Any:
        """Run `function`, and end the process if it fails."""
        if _is_child(self._fabric):
            die_with_parent(self._parent)
        with self._stop.listening():  # and not forwarding: only the process that forked the ranks does that
            try:
                if self._address is not None:
                    self._heartbeat = self._connect(self._address)
                    self._heartbeat.listen(self._lose)
                self._fabric.barrier()  # a rank that failed before all are connected would leave the others waiting
                result = function(self._stop)
                if self._heartbeat is not None:
                    self._heartbeat.end()
                return result
            except BaseException as error:
                if self._heartbeat is not None and is_consequence(error):
                    time.sleep(_HEARTBEAT_FIRST_S)
                self._ending.acquire()
                status = _report(self._fabric, error, self._first_failure)
        self._leave(status)

    def _connect(self, address: str) -> Heartbeat:
        strategy = self._fabric.strategy
        assert isinstance(strategy, RankStrategy)
        per_node = self._fabric.world_size // strategy.num_nodes
        node, local_rank = divmod(self._fabric.global_rank, per_node)
        return Heartbeat(
            Place(self._fabric.global_rank, local_rank, node, strategy.num_nodes, per_node),
            dist.distributed_c10d._get_default_store(),
            address,
            lost_after_s=strategy.lost_after_s,
            limit_s=strategy.timeout_s,
        )

    def _lose(self, loss: Loss) -> None:
        """End this process because of another one: called in a thread beside the work, which may be blocked."""
        assert self._heartbeat is not None
        if loss.told:
            time.sleep(_OWN_ERROR_FIRST_S)
        self._ending.acquire()
        if self._heartbeat.over:
            return
        status = LOST_CONTACT
        if loss.elsewhere and self._fabric.local_rank == 0:  # one line for each node
            with self._first_failure.get_lock():
                if not self._first_failure.value:
                    status = self._first_failure.value = 1
                    print(f"flgen: error: {loss.reason}; {CONTINUE}", file=sys.stderr, flush=True)
        self._heartbeat.end(failed=True)
        if self._on_loss is not None:
            closing = threading.Thread(target=_quietly, args=(self._on_loss, loss.reason), daemon=True)
            closing.start()
            closing.join(_CLOSING_LIMIT_S)
        self._leave(status)

    def _leave(self, status: int) -> None:
        if self._heartbeat is not None:
            self._heartbeat.end(failed=True)
        for stream in (sys.stderr, sys.stdout):
            with suppress(ValueError, OSError):
                stream.flush()
        for process in getattr(self._fabric.strategy.launcher, "procs", []):
            process.kill()
        os._exit(status)


def is_consequence(error: BaseException) -> bool:
    """Whether a process group broke off, because another process ended or did not answer."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in (*_PEER_LEFT, *_TIMED_OUT))


def one_line(error: BaseException) -> str:
    """Return an error's text without line breaks, with its type where that is not a user's matter."""
    text = " ".join(str(error).split())
    if isinstance(error, FlgenError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _quietly(on_loss: Callable[[str], None], reason: str) -> None:
    with suppress(Exception):  # the work still goes on beside it, and the reason has been printed
        on_loss(reason)


def _report(fabric: Fabric, error: BaseException, first_failure: Any) -> int:
    """Print why this rank ends, unless it only follows another or says the same; return its exit status."""
    text = str(error) if isinstance(error, RuntimeError) else ""  # what a process group raises
    if any(sign in text for sign in _PEER_LEFT):
        if _forked(fabric):
            return LOST_CONTACT  # the process that forked the ranks sees which one ended first, and says so
        if fabric.is_global_zero:
            print(f"flgen: error: lost contact with another rank; {CONTINUE}", file=sys.stderr)
        return 1
    status = error.exit_status if isinstance(error, FlgenError) else 1
    with first_failure.get_lock():
        if first_failure.value:
            return LOST_CONTACT
        first_failure.value = status
    if any(sign in text for sign in _TIMED_OUT):
        print(
            f"flgen: error: rank {fabric.global_rank} had no answer from the other ranks in time: {one_line(error)} "
            "(--trainer.timeout_s, --trainer.round_timeout_s)",
            file=sys.stderr,
        )
        return status
    if not isinstance(error, FlgenError) or os.environ.get("FLGEN_TRACEBACK"):
        traceback.print_exception(error)
    if fabric.local_rank == 0 or _forked(fabric) or not isinstance(error, EveryProcessError):
        print(f"flgen: error: {one_line(error)}", file=sys.stderr)
    return status


def _forked(fabric: Fabric) -> bool:
    return isinstance(fabric.strategy, RankStrategy) and fabric.strategy.forked


def _is_child(fabric: Fabric) -> bool:
    """Whether a process of ours started this one, rather than torchrun, SLURM or a user."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return _forked(fabric) or (isinstance(environment, LightningEnvironment) and fabric.local_rank > 0)
