"""The display of a synthesis: how many samples are there, how fast they come, how long it takes yet."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from datetime import timedelta

from flgen.deferred import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PAUSE_S = 0.25  # between two drawings of the bar
LINE_PAUSE_S = 15.0  # between two lines of a log file


class SampleProgress:
    """Shows on stderr what the first process has made of its share: a bar on a terminal, else a line now and then.

    Args:
        shown: False shows nothing: what the other processes do.
        processes: Number of processes, for the title.
    """

    def __init__(self, shown: bool = True, processes: int = 1) -> None:
        self._shown = shown
        self._title = "samples" if processes == 1 else f"samples of process 1 of {processes}"
        self._bar: Progress | None = None
        self._own = self._made = 0
        self._started = self._next = 0.0

    def start(self, done: int, total: int, own: int) -> None:
        """Begin: `done` of `total` samples are there, and `own` are this process's to make."""
        self._own, self._made = own, 0
        self._started = time.monotonic()
        if not self._shown:
            return
        if done:
            self._print(f"{done} of {total} samples are there already")
        if own and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            # No thread draws, as libraries may fork at any moment.
            self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
            self._bar.add_task(self._title, total=own)
            with suppress(OSError):
                self._bar.start()
        self._next = self._started + (PAUSE_S if self._bar else LINE_PAUSE_S)

    def advance(self) -> None:
        """One more sample is kept."""
        self._made += 1
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        if self._bar:
            self._draw()
            self._next = now + PAUSE_S
        else:
            rate = self._made / (now - self._started)
            left = timedelta(seconds=round((self._own - self._made) / rate))
            self._print(f"{self._title} {self._made}/{self._own}  {rate:.3g}/s  {left} left")
            self._next = now + LINE_PAUSE_S

    def close(self) -> None:
        """No more come."""
        if self._bar:
            self._draw()
            with suppress(OSError):
                self._bar.stop()
        self._bar = None

    def _draw(self) -> None:
        assert self._bar is not None
        with suppress(OSError):  # the terminal is gone, the work goes on
            self._bar.update(self._bar.task_ids[0], completed=self._made)
            self._bar.refresh()

    def _print(self, line: str) -> None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)
