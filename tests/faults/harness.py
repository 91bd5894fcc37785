"""A run that is disturbed: its processes, its checkpoints, its disk; and what it must come to all the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from forked_commands import ForkedCommand
from same_run import assert_same, client_states, server_state, table

HERE = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parents[1]))), "OMP_NUM_THREADS": "1"}
"""With it a command finds the classes of `sabotage`, and is that of this working tree."""

RECORDS = ("metrics.csv", "ledger.csv", "clients.csv", "partition.csv")


class Process(Protocol):
    """What a run needs of the process that its command is."""

    pid: int

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def communicate(self, timeout: float | None = None) -> tuple[str, str]: ...


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        status: Its exit status, -n if signal n ended it.
        errors: The lines by which flgen said what went wrong.
        printed: All that it printed to stderr.
        survivors: Processes of its ranks that were still alive half a second later.
    """

    status: int
    errors: list[str]
    printed: str
    survivors: list[int]


class Run:
    """`flgen fit` on its way.

    Args:
        process: Its process.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self._ranks: list[int] = []

    @property
    def is_alive(self) -> bool:
        """Whether the command still runs."""
        return self.process.poll() is None

    def ranks(self) -> list[int]:
        """Return the process ids of its ranks, in the order in which they were started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            found = [int(child) for child in children.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []
        found = [pid for pid in found if is_alive(pid) and not _is_tracker(pid)]
        self._ranks = [*self._ranks, *(pid for pid in found if pid not in self._ranks)]
        return found

    def wait_for(self, holds: Callable[[], bool], limit_s: float = 60) -> bool:
        """Wait until something holds; return whether it did before the command ended.

        Args:
            holds: What to wait for.
            limit_s: How long, seconds; it is an error if neither happens.
        """
        deadline = time.monotonic() + limit_s
        while not holds():
            if not self.is_alive:
                return holds()
            assert time.monotonic() < deadline, "neither came about"
            self.ranks()
            time.sleep(0.02)
        return True

    def kill_random_process(self, dice: random.Random) -> str:
        """Kill (SIGKILL) one of the ranks, or the command itself; return which."""
        victims = {"the command": self.process.pid, **{f"rank {rank}": pid for rank, pid in enumerate(self.ranks())}}
        name = dice.choice(sorted(victims))
        os.kill(victims[name], signal.SIGKILL)
        return name

    def end(self, limit_s: float = 60) -> Ended:
        """Wait for its end, and look whether it took all of its ranks along.

        Args:
            limit_s: How long it may take, seconds; else it is killed, and that is an error.
        """
        self.wait_for(lambda: not self.is_alive, limit_s)
        _, printed = self.process.communicate(10)
        status = self.process.poll()
        assert status is not None
        deadline = time.monotonic() + 0.5
        while (survivors := [pid for pid in self._ranks if is_alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.01)
        errors = [line for line in printed.splitlines() if line.startswith("flgen: error:")]
        return Ended(status, errors, printed, survivors)


@contextmanager
def running(
    folder: Path,
    arguments: Sequence[str],
    start: Callable[[Sequence[str], Path, Mapping[str, str]], Process] = ForkedCommand,
) -> Iterator[Run]:
    """Start `flgen fit`, and see to it that nothing of it is left.

    Args:
        folder: Where it is typed.
        arguments: What is typed after `flgen fit`.
        start: Starts a command of flgen: forked, or as a shell would.
    """
    run = Run(start(["fit", *arguments], folder, ENVIRONMENT))
    try:
        yield run
    finally:
        ranks = run.ranks()
        run.process.kill()
        for pid in filter(is_alive, ranks):
            os.kill(pid, signal.SIGKILL)


def from_shell(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Process:
    """Start a command of flgen in a process of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", "flgen.cli", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def fit(folder: Path, *arguments: str, limit_s: float = 120) -> Ended:
    """Run `flgen fit` to its end.

    Args:
        folder: Where it is typed.
        arguments: What is typed after it.
        limit_s: How long it may take, seconds.
    """
    with running(folder, arguments) as run:
        return run.end(limit_s)


def sabotaged(file: Path, callback: str, **options: Any) -> str:
    """Write a configuration that adds a callback of `sabotage` to a run; return the option that names it.

    Args:
        file: The configuration.
        callback: Its class.
        options: Its options.
    """
    callbacks = [{"class_path": f"sabotage.{callback}", "init_args": options}]
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return f"--config={file}"


def is_alive(pid: int) -> bool:
    """Whether a process computes; one that has ended and was not yet asked for its status does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_tracker(pid: int) -> bool:
    """Whether it is the process by which Python's multiprocessing cleans up."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def newest_checkpoint(run_dir: Path) -> Path:
    """Return the folder of the newest checkpoint, whole or not."""
    return max((run_dir / "checkpoints").glob("round-*"))


def truncate(file: Path) -> None:
    """Cut a file in the middle."""
    with file.open("r+b") as content:
        content.truncate(file.stat().st_size // 2)


def corrupt(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "corrupted": corrupt, "deleted": Path.unlink}


@contextmanager
def small_disk(place: Path, mb: int) -> Iterator[Path]:
    """Mount a disk of so many megabytes in memory; needs root.

    Args:
        place: An empty folder.
        mb: Its size.
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mb}m", "flgen-small-disk", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def final_state(run_dir: Path) -> dict[str, Any]:
    """Return all that a run came to: the states of its newest checkpoint, and its records but for times.

    Wire bytes are left out, as they depend on the number of processes.
    """
    return {
        "server": server_state(run_dir),
        "clients": client_states(run_dir),
        **{name: table(run_dir / name) for name in RECORDS},
    }


def assert_equal(run_dir: Path, undisturbed: Path) -> None:
    """A run came to what an undisturbed one did, bit for bit."""
    mine, theirs = final_state(run_dir), final_state(undisturbed)
    for name in theirs:
        assert_same(mine[name], theirs[name])
