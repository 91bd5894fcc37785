"""Nodes of one job, here forked on one machine: they end together, whatever ends one of them, and each says why."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from flgen.errors import EveryProcessError, FlgenError
from flgen.federation.interfaces import GLOO_INTERFACE
from flgen.federation.interruption import StopRequest
from flgen.federation.launch import build_fabric, launch

LIMIT_S = 30
FOREVER_S = 1000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TwoNodes:
    """Two processes, each of which forks the two ranks of a node and exits as the command line would.

    Args:
        folder: For what they print.
        work: What each rank does.
    """

    def __init__(self, folder: Path, work: Callable[[int, StopRequest], Any]) -> None:
        self.folder = folder
        port = str(free_port())
        self.pids = [self._fork(node, port, work) for node in (0, 1)]

    def _fork(self, node: int, port: str, work: Callable[[int, StopRequest], Any]) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 99
        torch.cuda._is_in_bad_fork = lambda: False  # true of a fork of a process that trained; no GPU is used here
        try:
            file = os.open(self.folder / f"node-{node}.txt", os.O_CREAT | os.O_WRONLY)
            os.dup2(file, 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(node)}
            os.environ.pop(GLOO_INTERFACE, None)
            fabric = build_fabric(
                accelerator="cpu", devices=2, num_nodes=2, precision="32-true", timeout_s=60, callbacks=[]
            )
            try:
                status = launch(fabric, lambda stop: work(fabric.global_rank, stop), self._note) or 0
            except FlgenError as error:
                if str(error):
                    print(f"flgen: error: {error}", file=sys.stderr, flush=True)
                status = error.exit_status
        finally:
            os._exit(status)

    def _note(self, reason: str) -> None:
        (self.folder / f"closed-{os.getpid()}").write_text(reason)

    def end(self) -> list[tuple[int, list[str]]]:
        """Return each node's exit status and the errors that it printed."""
        deadline = time.monotonic() + LIMIT_S
        ended = []
        for node, pid in enumerate(self.pids):
            found = 0
            while not found:
                found, how = os.waitpid(pid, os.WNOHANG)
                if time.monotonic() > deadline:
                    for other in self.pids[node:]:
                        os.kill(other, signal.SIGKILL)
                    pytest.fail(f"node {node} does not end: {self.lines(node)}")
                time.sleep(0.02)
            ended.append((os.waitstatus_to_exitcode(how), self.lines(node)))
        return ended

    def lines(self, node: int) -> list[str]:
        text = (self.folder / f"node-{node}.txt").read_text()
        return [line for line in text.splitlines() if line.startswith("flgen: error:")]


@pytest.fixture
def nodes(tmp_path: Path) -> Callable[[Callable[[int, StopRequest], Any]], TwoNodes]:
    """Return a function that starts two nodes of two ranks and the same work(rank, stop) on each."""
    return lambda work: TwoNodes(tmp_path, work)


Start = Callable[[Callable[[int, StopRequest], Any]], TwoNodes]
CONTINUE = "continue from the last checkpoint with --ckpt_path last"


def test_a_node_may_come_to_its_end_before_the_other(nodes: Start) -> None:
    def work(rank: int, stop: StopRequest) -> int:
        time.sleep(2 if rank == 3 else 0)
        return 10 + rank

    assert nodes(work).end() == [(10, []), (12, [])]  # what the first rank of each returned


@pytest.mark.parametrize("wait", [lambda: time.sleep(FOREVER_S), dist.barrier], ids=["computing", "in a collective"])
def test_a_failure_ends_the_other_ranks_and_both_nodes_say_why(
    wait: Callable[[], Any], nodes: Start, tmp_path: Path
) -> None:
    def work(rank: int, stop: StopRequest) -> None:
        if rank == 3:
            raise FlgenError("the disk is full")
        wait()

    (first, elsewhere), (second, here) = nodes(work).end()
    assert (first, second) == (1, 1)
    assert here == ["flgen: error: the disk is full"]
    reason = f"a process of node 1 ({socket.gethostname()}) failed and has said why there"
    assert elsewhere == [f"flgen: error: {reason}; {CONTINUE}"]
    closed = [path.read_text() for path in tmp_path.glob("closed-*")]
    assert reason in closed  # the rank that had loggers to close was told


def test_a_rank_that_is_killed_ends_the_other_node(nodes: Start) -> None:
    def work(rank: int, stop: StopRequest) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(FOREVER_S)

    (first, here), (second, elsewhere) = nodes(work).end()
    assert (first, second) == (1, 1)
    assert here == [f"flgen: error: rank 1 was killed by SIGKILL; {CONTINUE}"]
    assert elsewhere[0].startswith("flgen: error: a process of node 0 (")
    assert len(elsewhere) == 1


def test_what_every_process_finds_is_said_once_on_each_node(nodes: Start) -> None:
    def work(rank: int, stop: StopRequest) -> None:
        raise EveryProcessError("the folder is another one")

    assert nodes(work).end() == [(1, ["flgen: error: the folder is another one"])] * 2


def test_a_node_that_does_not_come_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(GLOO_INTERFACE, "lo")
    fabric = build_fabric(accelerator="cpu", devices=1, num_nodes=2, precision="32-true", timeout_s=2, callbacks=[])
    started = time.monotonic()
    with pytest.raises(FlgenError, match=rf"^the processes did not find each other at 127\.0\.0\.1:{port}: ") as no:
        launch(fabric, lambda stop: None)
    assert "\n" not in str(no.value)
    assert time.monotonic() - started < LIMIT_S
