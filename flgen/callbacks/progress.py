"""How far the run is: two bars on a terminal, one line per round anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from fnmatch import fnmatchcase

from flgen.callbacks.base import Callback
from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
    from rich.console import Group

    from flgen.trainer import FederatedTrainer

HEADLINE = ("train/loss", "test/accuracy*", "fid/*")
HEADLINE_LENGTH = 4
TITLE_WIDTH = 14  # columns of the terminal
BAR_WIDTH = 24


class RoundProgress(Callback):
    """Shows rounds, client steps and the newest headline metrics on stderr; stdout stays the program's own.

    Args:
        refresh_per_second: How often the bars are drawn at most, in 1/s.
        headline: Names or shell patterns of the metrics to show, in this order, such as `fid/*`. By default the
            training loss, test accuracies and FID, or the first few metrics if a run has none of these.

    Raises:
        UsageError: If `refresh_per_second` is not positive.
    """

    def __init__(self, refresh_per_second: float = 4, headline: list[str] | None = None) -> None:
        if refresh_per_second <= 0:
            raise UsageError(f"refresh_per_second is {refresh_per_second}: give a number above 0")
        self.refresh_per_second = refresh_per_second
        self.headline = headline
        self._display: _Bars | _Lines | None = None  # on rank 0, from the start to the end of a fit

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self._close()
        if not trainer.is_global_zero:
            return
        self._display = open_display(
            trainer.first_round, trainer.rounds, pause_s=1 / self.refresh_per_second, headline=self.headline
        )

    def on_round_start(self, trainer: FederatedTrainer, round: int) -> None:
        if self._display:
            self._display.start_round(round)

    def on_client_start(self, trainer: FederatedTrainer, round: int, client: int) -> None:
        if self._display:
            self._display.show_step(f"client {client}", 0, 0)

    def on_local_step(self, trainer: FederatedTrainer, round: int, client: int, step: int, steps: int) -> None:
        if self._display:
            self._display.show_step(f"client {client}", step, steps)

    def on_evaluation_start(self, trainer: FederatedTrainer, round: int) -> None:
        if self._display:
            self._display.start_evaluation(round)

    def on_evaluation_end(
        self,
        trainer: FederatedTrainer,
        round: int,
        metrics: Mapping[str, float],
        images: Mapping[str, torch.Tensor],
    ) -> None:
        if self._display:
            self._display.end_evaluation(round, metrics)

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        if self._display:
            self._display.end_round(round, metrics)

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        self._close()

    def on_exception(self, trainer: FederatedTrainer, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._display:
            self._display.close()
        self._display = None


def headline_text(metrics: Mapping[str, float], headline: list[str] | None = None) -> str:
    """Return the metrics that matter most as `name value`, separated by two spaces.

    Args:
        metrics: Value by metric name.
        headline: Names or shell patterns, in the order of the text; None takes the default ones.
    """
    patterns = HEADLINE if headline is None else headline
    chosen = list(dict.fromkeys(name for pattern in patterns for name in metrics if fnmatchcase(name, pattern)))
    if headline is None:
        chosen = chosen or [name for name in metrics if not name.startswith(("comm/", "time/"))]
        chosen = chosen[:HEADLINE_LENGTH]
    return "  ".join(f"{name} {float(metrics[name]):.4g}" for name in chosen)


def open_display(
    first_round: int, rounds: int, *, unit: str = "round", pause_s: float = 0.25, headline: list[str] | None = None
) -> _Bars | _Lines:
    """Return what shows a long piece of work on stderr: bars on a terminal, lines anywhere else.

    Args:
        first_round: The first round to come.
        rounds: The last one.
        unit: What a round is called.
        pause_s: Least time between two drawings of the bars, seconds.
        headline: Names or shell patterns of the metrics to show.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return _Bars(first_round, rounds, pause_s, headline, unit)
    return _Lines(rounds, headline, unit)


class _Lines:
    """One plain line per round, for log files and pipes."""

    def __init__(self, rounds: int, headline: list[str] | None, unit: str) -> None:
        self._rounds = rounds
        self._unit = unit
        self._headline = headline
        self._running_round: int | None = None
        self._evaluation: Mapping[str, float] = {}  # of the running round
        self._started = time.monotonic()

    def start_round(self, round: int) -> None:
        self._running_round = round
        self._evaluation = {}
        self._started = time.monotonic()

    def show_step(self, activity: str, step: int, steps: int) -> None:
        pass

    def start_evaluation(self, round: int) -> None:
        if self._running_round != round:
            self._started = time.monotonic()

    def end_evaluation(self, round: int, metrics: Mapping[str, float]) -> None:
        if self._running_round == round:
            self._evaluation = metrics
        else:
            self._print(f"{self._unit} {round}/{self._rounds} evaluated", metrics)

    def end_round(self, round: int, metrics: Mapping[str, float]) -> None:
        self._running_round = None
        self._print(f"{self._unit} {round}/{self._rounds}", {**metrics, **self._evaluation})

    def close(self) -> None:
        pass

    def _print(self, title: str, metrics: Mapping[str, float]) -> None:
        seconds = f"{time.monotonic() - self._started:.1f} s"
        line = "  ".join(part for part in (title, headline_text(metrics, self._headline), seconds) if part)
        with suppress(OSError):  # a reader that has gone away must not end the run
            print(line, file=sys.stderr, flush=True)


class _Bars:
    """Two bars at the foot of the terminal: the rounds, and what this rank is doing now.

    No thread draws: the hooks do, at most every `pause_s` seconds, so data loaders may fork at any moment.
    """

    def __init__(self, first_round: int, rounds: int, pause_s: float, headline: list[str] | None, unit: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._first_round, self._rounds, self._pause_s, self._headline = first_round, rounds, pause_s, headline
        self._round, self._finished, self._unit = first_round, first_round - 1, unit
        self._activity, self._step, self._steps = "", 0, 0
        self._metrics: dict[str, float] = {}  # the newest value of each
        self._started = self._round_ended = self._next_draw = time.monotonic()
        self._live: Live | None = Live(
            console=Console(stderr=True),
            get_renderable=self._picture,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),  # a pipe must go on receiving what is printed to it
        )
        with suppress(OSError):
            self._live.start(refresh=True)
            self._live.console.show_cursor(True)  # a killed process could not bring it back

    def start_round(self, round: int) -> None:
        self._round = round
        self._draw_when_due()

    def show_step(self, activity: str, step: int, steps: int) -> None:
        if time.monotonic() >= self._next_draw:
            self._activity, self._step, self._steps = activity, step, steps
            self._draw()

    def start_evaluation(self, round: int) -> None:
        self._activity, self._step, self._steps = "evaluation", 0, 0
        self._draw()

    def end_evaluation(self, round: int, metrics: Mapping[str, float]) -> None:
        self._metrics.update(metrics)
        self._activity = ""
        self._draw_when_due()

    def end_round(self, round: int, metrics: Mapping[str, float]) -> None:
        self._metrics.update(metrics)
        self._finished, self._round_ended = round, time.monotonic()
        self._draw_when_due()

    def close(self) -> None:
        self._activity = ""
        if self._live:
            with suppress(OSError):
                self._live.stop()
        self._live = None

    def _draw_when_due(self) -> None:
        if time.monotonic() >= self._next_draw:
            self._draw()

    def _draw(self) -> None:
        if self._live:
            try:
                self._live.refresh()
            except OSError:  # the terminal is gone, the run goes on
                self.close()
        self._next_draw = time.monotonic() + self._pause_s

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        def line(text: str) -> Text:
            return Text(text, no_wrap=True, overflow="ellipsis")

        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=TITLE_WIDTH)
        rounds = ProgressBar(total=self._rounds, completed=self._finished, width=BAR_WIDTH)
        table.add_row(line(f"{self._unit} {self._round}/{self._rounds}"), rounds, line(self._timing()))
        if self._activity:
            steps = ProgressBar(total=max(self._steps, 1), completed=self._step, width=BAR_WIDTH)
            count = f"step {self._step}/{self._steps}" if self._steps else ""
            table.add_row(line(self._activity), steps, line(count))
        metrics = headline_text(self._metrics, self._headline)
        return Group(table, line(metrics)) if metrics else Group(table)

    def _timing(self) -> str:
        now = time.monotonic()
        text = f"{_clock(now - self._started)} elapsed"
        done = self._finished - self._first_round + 1
        if done and self._finished < self._rounds:
            mean_s = (self._round_ended - self._started) / done
            left_s = mean_s * (self._rounds - self._finished) - (now - self._round_ended)
            text += f", {_clock(max(0.0, left_s))} left"
        return text


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
