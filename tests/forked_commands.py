"""Commands as a shell would start them, forked from one process that has imported Lightning already.

The import takes longer than most commands; the process that forks starts with the first one. A command that starts
others itself (a pipeline, several seeds) forks them, too.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "docstring_parser",
        "flgen.cli",
        "flgen.commands.pipeline",
        "flgen.fit_loop",
        "flgen.metrics.fidelity",
        "flgen.metrics.trained",
        "flgen.server_loop",
        "lightning.pytorch.loggers",
        "matplotlib.pyplot",
        "sklearn.datasets",
        "torchvision",
        "wandb",
        "webdataset",
    ]
)
CHILDREN = multiprocessing.get_context("fork")


class ForkedCommand:
    """`flgen ARGUMENTS`, or `python FILE.py ARGUMENTS` where the first is a program, under way.

    It has what `subprocess.Popen` has, as far as tests need it.

    Args:
        arguments: What is typed after `flgen` or `python`.
        folder: Where it is typed.
        environment: What is set in the shell besides; what it sets to None is not set there.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str | None] | None = None
    ) -> None:
        self._place = Path(mkdtemp())
        self._streams = [self._place / name for name in ("stdout", "stderr")]
        shell = {**os.environ, **(environment or {})}
        about = {name: value for name, value in shell.items() if value is not None}
        files = [str(file) for file in self._streams]
        self._process = FORKS.Process(target=_become, args=(list(arguments), str(folder), about, files))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, -n if signal n ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once; nothing if it has ended."""
        if self.poll() is None:
            self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait at most `timeout` seconds for its end, and return its exit status."""
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired("flgen", timeout or 0, *self._said())
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait at most `timeout` seconds for its end; return what it has printed to stdout and to stderr."""
        self.wait(timeout)
        said = self._said()
        shutil.rmtree(self._place, ignore_errors=True)
        return said

    def _said(self) -> tuple[str, str]:
        stdout, stderr = (file.read_text() if file.exists() else "" for file in self._streams)
        return stdout, stderr


def run_forked(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str | None] | None = None,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run `flgen ARGUMENTS`, or `python FILE.py ARGUMENTS` where the first is a program, and return what came of it.

    Args:
        arguments: What is typed after `flgen` or `python`.
        folder: Where it is typed.
        environment: What is set in the shell besides; what it sets to None is not set there.
        timeout_s: How long it may take, seconds.
    """
    command = ForkedCommand(arguments, folder, environment)
    try:
        command.wait(timeout_s)
    except subprocess.TimeoutExpired:
        command.kill()
    return subprocess.CompletedProcess(list(arguments), command.wait(), *command.communicate())


class ForkedChild:
    """What `subprocess.Popen` is to `run_flgen`: a command that a command starts, forked instead of started anew."""

    def __init__(self, command: Sequence[str], stdout: int | None, preexec_fn: Callable[[], None]) -> None:
        assert command[:3] == [sys.executable, "-m", "flgen.cli"]
        self._process = CHILDREN.Process(target=_become_child, args=(command[3:], stdout, preexec_fn))
        self._process.start()

    def __enter__(self) -> ForkedChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self) -> int:
        """Wait for its end and return its exit status, -n if signal n ended it."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self._process.is_alive():
            os.kill(self._process.pid or 0, number)


def _become(arguments: list[str], folder: str, environment: dict[str, str], streams: list[str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    for number, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if arguments and arguments[0].endswith(".py"):
        sys.path.insert(0, os.getcwd())
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        sys.exit(0)
    from flgen.cli import main
    from flgen.commands import child_process

    child_process.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=ForkedChild, DEVNULL=subprocess.DEVNULL
    )
    sys.exit(main(arguments))


def _become_child(arguments: list[str], stdout: int | None, preexec_fn: Callable[[], None]) -> None:
    preexec_fn()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if stdout == subprocess.DEVNULL:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from flgen.cli import main

    sys.exit(main(arguments))
