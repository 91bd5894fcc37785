"""Commands that start other commands: each in a fresh process, which gets the stop signals of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

from flgen.federation.interruption import die_with_parent


def run_flgen(arguments: Sequence[str], *, quiet: bool = False) -> int:
    """Run another command of flgen to its end; return its exit status.

    SIGTERM and SIGUSR1 are passed on to it. Ctrl-C reaches it by itself, as it is in the terminal's foreground too. It
    does not outlive this process.

    Args:
        arguments: What is typed after `flgen`.
        quiet: Whether what it prints is thrown away; its messages on stderr are not.
    """
    command = [sys.executable, "-m", "flgen.cli", *arguments]
    bind = partial(die_with_parent, os.getpid())
    with (
        _stop_signals_held() as held,
        subprocess.Popen(command, stdout=subprocess.DEVNULL if quiet else None, preexec_fn=bind) as child,
    ):
        held.pass_on_to(child)
        status = child.wait()
    return 128 - status if status < 0 else status


class _HeldSignals:
    """Stop signals on their way to a child, those included that came while it was being started."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)

    def pass_on_to(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        for number in self._early:
            child.send_signal(number)


@contextmanager
def _stop_signals_held() -> Iterator[_HeldSignals]:
    held = _HeldSignals()
    previous = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, held.receive),
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, held.receive),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
    }
    try:
        yield held
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
