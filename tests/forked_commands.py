"""Commands as a shell would start them, forked from one process that has imported Lightning already.

The import takes longer than most commands; the process that forks starts with the first one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "flgen.cli",
        "flgen.fit_loop",
        "flgen.metrics.fidelity",
        "flgen.metrics.trained",
        "lightning.pytorch.loggers",
        "matplotlib.pyplot",
        "sklearn.datasets",
        "torchvision",
        "wandb",
        "webdataset",
    ]
)


def run_forked(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `flgen ARGUMENTS`, or `python FILE.py ARGUMENTS` where the first is a program, and return what came of it.

    Args:
        arguments: What is typed after `flgen` or `python`.
        folder: Where it is typed.
        environment: What is set in the shell besides.
        timeout_s: How long it may take, seconds.
    """
    with TemporaryDirectory() as place:
        streams = [Path(place) / name for name in ("stdout", "stderr")]
        process = FORKS.Process(
            target=_become,
            args=(list(arguments), str(folder), {**os.environ, **(environment or {})}, [str(file) for file in streams]),
        )
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
        said = [file.read_text() if file.exists() else "" for file in streams]
    return subprocess.CompletedProcess(list(arguments), process.exitcode or 0, *said)


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

    sys.exit(main(arguments))
