"""Commands that start other commands: each in a fresh process, which gets the stop signals of this one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flgen.federation.interruption import die_with_parent


def run_flgen(arguments: Sequence[str], *, quiet: bool = False) -> int:
    """Run another command of flgen to its end; return its exit status.

    SIGTERM is passed on to it. Ctrl-C reaches it by itself, as it is in the terminal's foreground too. It does not
    outlive this process.

    Args:
        arguments: What is typed after `flgen`.
        quiet: Whether what it prints is thrown away; its messages on stderr are not.
    """
    command = [sys.executable, "-m", "flgen.cli", *arguments]
    with (
        _stop_signals_held() as held,
        subprocess.Popen(command, stdout=subprocess.DEVNULL if quiet else None, preexec_fn=die_with_parent) as child,
    ):
        held.pass_on_to(child)
        status = child.wait()
    return 128 - status if status < 0 else status


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run was stopped after its first checkpoint, so that `--ckpt_path last` goes on with it."""
    return any((run_dir / "checkpoints").glob("round-*"))


def remove_unstarted(run_dir: Path) -> None:
    """Remove the folder of a run that was stopped before its first checkpoint: there is nothing to go on from."""
    if (run_dir / "checkpoints").is_dir() and not has_checkpoint(run_dir):
        shutil.rmtree(run_dir)


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
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
    }
    try:
        yield held
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
