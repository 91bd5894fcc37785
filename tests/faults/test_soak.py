"""Long runs that are killed again and again, and taken up each time by the same command.

Promised (design, section 6): however often a run is killed (SIGKILL, any of its processes, at any moment, its start
included), with `--ckpt_path auto` it comes to the end, and to the states and records of a run that nobody disturbed.

    python -m pytest -m long tests/faults/test_soak.py -s

prints what was done, how much of it was lost, and how long it took.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from forked_commands import ForkedCommand
from harness import assert_equal, from_shell, running
from small_faults import CONFIGS, SMALL

from flgen.experiment.records import read_events, read_metrics

SEED = 20
LIMIT_S = 3 * 3600
STARTING = "while starting"


@dataclass
class Command:
    """What one start of the command came to.

    Args:
        killed: Which of its processes was killed, "" if none was.
        first_round: The round that it began with, None if it did not get so far.
        last_round: The last one that it has written down.
        start_s: How long after its start it began with a round, seconds.
    """

    killed: str
    first_round: int | None
    last_round: int
    start_s: float


@dataclass
class Soak:
    """What was done to a run.

    Args:
        rounds: Its number of rounds.
        undisturbed_s: How long it takes, seconds.
        disturbed_s: How long it took with all that, seconds.
        commands: By which it came to its end.
    """

    rounds: int
    undisturbed_s: float = 0.0
    disturbed_s: float = 0.0
    commands: list[Command] = field(default_factory=list)

    @property
    def kills(self) -> list[str]:
        """Who was killed, and when."""
        return [
            f"{command.killed} {STARTING if command.first_round is None else f'after {command.last_round}'}"
            for command in self.commands
            if command.killed
        ]

    @property
    def repeated(self) -> list[int]:
        """Complete rounds that were run again, by each command that took the run up."""
        began = [command for command in self.commands if command.first_round is not None]
        return [before.last_round + 1 - (command.first_round or 0) for before, command in pairwise(began)]

    def __str__(self) -> str:
        starts = [command.start_s for command in self.commands if command.first_round is not None]
        return (
            f"{self.rounds} rounds, {len(self.kills)} kills ({', '.join(self.kills)}), {sum(self.repeated)} rounds run "
            f"again (at most {max(self.repeated, default=0)} after one kill); {self.disturbed_s:.0f} s, undisturbed "
            f"{self.undisturbed_s:.0f} s; {sum(starts) / len(starts):.1f} s from a start to its first round"
        )


def soak(
    folder: Path, arguments: list[str], rounds: int, kills: int, dice: random.Random, start: Callable[..., Any]
) -> Soak:
    """Let a run be, in `folder`/undisturbed, and do the same one in `folder`/run, killed so many times.

    Args:
        folder: Where.
        arguments: What is typed after `flgen fit`, but for the number of rounds and the run folder.
        rounds: Number of rounds.
        kills: How often; about one in six while the command starts.
        dice: Says who is killed, and when.
        start: Starts the command.
    """
    arguments = [*arguments, f"--trainer.rounds={rounds}", "--ckpt_path=auto"]
    done = Soak(rounds)
    began, started = time.monotonic(), time.time()
    with running(folder, [*arguments, "--run_dir=undisturbed"], start) as run:
        ended = run.end(LIMIT_S)
        assert ended.status == 0, ended.printed
    done.undisturbed_s = time.monotonic() - began

    rows = read_metrics(folder / "undisturbed" / "metrics.csv")
    a_round_s = sum(row["time/round_s"] for row in rows) / rounds
    a_start_s = what_came_of(folder / "undisturbed", "", 0, started).start_s
    began = time.monotonic()
    for moment in sorted(dice.sample(range(1, rounds - 3), kills)):
        while_starting = dice.randrange(6) == 0
        delay = dice.uniform(0, a_start_s if while_starting else a_round_s)
        before, started = len(beginnings(folder / "run")), time.time()
        with running(folder, [*arguments, "--run_dir=run"], start) as run:
            if not while_starting:
                assert run.wait_for(lambda at=moment, n=before: has_reached(folder / "run", at, n), LIMIT_S)  # type: ignore[misc]
            run.wait_for(lambda until=time.monotonic() + delay: time.monotonic() > until)  # type: ignore[misc]
            killed = run.kill_random_process(dice)
            ended = run.end(60)
        assert ended.status != 0
        assert ended.survivors == []
        assert "Traceback" not in ended.printed
        done.commands.append(what_came_of(folder / "run", killed, before, started))
    before, started = len(beginnings(folder / "run")), time.time()
    with running(folder, [*arguments, "--run_dir=run"], start) as run:
        ended = run.end(LIMIT_S)
        assert ended.status == 0, ended.printed
    done.commands.append(what_came_of(folder / "run", "", before, started))
    done.disturbed_s = time.monotonic() - began
    return done


def beginnings(run_dir: Path) -> list[dict[str, Any]]:
    """Return an event for every command that has begun with a round."""
    return [event for event in read_events(run_dir / "events.jsonl") if event["event"] in ("start", "resume")]


def rounds_done(run_dir: Path) -> int:
    """Return the last round that a run has written down."""
    rows = read_metrics(run_dir / "metrics.csv")
    return int(rows[-1]["round"]) if rows else 0


def has_reached(run_dir: Path, round: int, before: int) -> bool:
    """Whether one more command than before has begun with a round, and has come to this one."""
    return len(beginnings(run_dir)) > before and rounds_done(run_dir) >= round


def what_came_of(run_dir: Path, killed: str, before: int, started: float) -> Command:
    """Return what the newest command came to.

    Args:
        run_dir: The run folder.
        killed: Which of its processes was killed.
        before: How many commands had begun with a round before it.
        started: When it was started, seconds since 1970.
    """
    begun = beginnings(run_dir)[before:]
    if not begun:
        return Command(killed, None, 0, 0.0)
    (event,) = begun
    start_s = datetime.fromisoformat(event["time"]).timestamp() - started
    return Command(killed, event["round"], rounds_done(run_dir), start_s)


@pytest.mark.system
def test_a_small_run_survives_three_kills(tmp_path: Path) -> None:
    arguments = [f"--config={CONFIGS / 'prism_digits.yaml'}", *SMALL["prism"], "--trainer.checkpoint_every=3"]
    done = soak(tmp_path, arguments, rounds=20, kills=3, dice=random.Random(3), start=ForkedCommand)
    print(f"\nsmall prism: {done}")
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")
    assert len(done.kills) == 3


@pytest.mark.long
@pytest.mark.parametrize("method", ["prism", "dispfl"])
def test_two_hundred_rounds_survive_twenty_kills(method: str, tmp_path: Path) -> None:
    """The shipped configuration on two ranks, with an evaluation every hundred rounds."""
    arguments = [f"--config={CONFIGS / f'{method}_digits.yaml'}", "--evaluation.every=100"]
    done = soak(tmp_path, arguments, rounds=200, kills=20, dice=random.Random(SEED), start=from_shell)
    print(f"\n{method}_digits, seed {SEED}: {done}")
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")
    assert len(done.kills) == 20
