"""What goes wrong in a run on purpose: callbacks that a configuration can name like any other class."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

from flgen.callbacks import Callback


class Strike(Callback):
    """Kills a process of the run (SIGKILL) at one moment, the first time that the moment comes.

    Args:
        hook: The callback's hook that marks the moment.
        round: Its round.
        count: The how-manieth call of the hook in this round on that process it is.
        rank: The process that notices the moment, 0 or 1.
        victim: That process, or the command that started it.
        once: A file that is made with the blow; while it is there no other one follows.
    """

    def __init__(
        self, hook: str, round: int, count: int, rank: int, victim: Literal["rank", "command"], once: str
    ) -> None:
        self.hook = hook
        self.round = round
        self.count = count
        self.rank = rank
        self.victim = victim
        self.once = once
        self._calls = 0
        setattr(self, hook, self._notice)

    def _notice(self, trainer: Any, round: int, **about: Any) -> None:
        if round != self.round or trainer.is_global_zero != (self.rank == 0) or Path(self.once).exists():
            return
        self._calls += 1
        if self._calls == self.count:
            Path(self.once).touch()
            os.kill(os.getpid() if self.victim == "rank" else os.getppid(), signal.SIGKILL)
            time.sleep(60)  # nothing more happens here, whoever of the two it was


class SlowClient(Callback):
    """Lets one client take its time in one round.

    Args:
        client: Its id.
        round: The round.
        seconds: How long it does nothing.
    """

    def __init__(self, client: int, round: int, seconds: float) -> None:
        self.client = client
        self.round = round
        self.seconds = seconds

    def on_client_start(self, trainer: Any, round: int, client: int) -> None:
        """Wait, if it is the one."""
        if (round, client) == (self.round, self.client):
            time.sleep(self.seconds)


class FullFile(Callback):
    """Lets nothing more be written into one file of the run folder from one moment on: no space is left for it.

    Args:
        hook: The callback's hook that marks the moment.
        round: Its round.
        name: The file, below the run folder; `{pid}` in it stands for the process id.
    """

    def __init__(self, hook: str, round: int, name: str) -> None:
        self.hook = hook
        self.round = round
        self.name = name
        setattr(self, hook, self._fill)

    def _fill(self, trainer: Any, round: int, **about: Any) -> None:
        if round == self.round and trainer.is_global_zero:
            file = trainer.run_dir / self.name.format(pid=os.getpid())
            if file.exists():
                file.rename(aside(file))
            file.symlink_to("/dev/full")


def aside(file: Path) -> Path:
    """Return where a file lies while nothing can be written into it."""
    return file.with_name(f"aside-{file.name}")


class Ballast(Callback):
    """Fills the disk that the run folder lies on at one moment.

    Args:
        hook: The callback's hook that marks the moment.
        round: Its round.
        file: What fills it.
        leave_kb: Kilobytes (1024 bytes) that stay free.
    """

    def __init__(self, hook: str, round: int, file: str, leave_kb: int) -> None:
        self.hook = hook
        self.round = round
        self.file = file
        self.leave_kb = leave_kb
        setattr(self, hook, self._fill)

    def _fill(self, trainer: Any, round: int, **about: Any) -> None:
        if round == self.round and trainer.is_global_zero and not Path(self.file).exists():
            disk = os.statvfs(trainer.run_dir)
            with Path(self.file).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - 1024 * self.leave_kb)
