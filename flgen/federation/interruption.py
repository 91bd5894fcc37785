"""Ctrl-C, SIGTERM, SIGUSR1: finish nothing more, keep what is complete, leave with the signal's exit status."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""A user's, pre-emption's, and the one by which a batch system says that a job's time is nearly over."""


class ClientStepInterrupted(Exception):
    """Raised inside a client step, between two local steps, when this process was asked to stop."""


class StopRequest:
    """Remembers the first stop signal that reached this process."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0

    def receive(self, signal_number: int, frame: FrameType | None = None) -> None:
        """Take a signal; a Ctrl-C after the first leaves at once, for who does not want to wait."""
        if self.signal_number and signal_number == signal.SIGINT and multiprocessing.parent_process() is None:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + signal_number)
        self.signal_number = self.signal_number or signal_number

    def receive_and_forward(self, signal_number: int, frame: FrameType | None = None) -> None:
        """Take a signal in the process that started the ranks, and pass it on to them."""
        self.receive(signal_number, frame)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal_number)

    @contextmanager
    def listening(self, *, forward: bool = False) -> Iterator[StopRequest]:
        """Handle the stop signals inside the block, then give them back."""
        handler = self.receive_and_forward if forward else self.receive
        previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, old in previous.items():
                signal.signal(number, old)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the one that started it dies, so that no orphan computes on.

    Args:
        parent: Process id of the one that started it; if that has died already, this one does so now.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
