"""On several nodes every process writes its clients' states into one folder: is it the same one everywhere?"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flgen.errors import EveryProcessError, FlgenError

_LOOK_EVERY_S = 0.1


def check_shared(
    folder: Path,
    agree: Callable[[Any], list[Any]],
    *,
    writes: bool,
    wait_s: float = 30,
) -> None:
    """Refuse a folder that is not one and the same on every node; every process calls it.

    Args:
        folder: The run folder.
        agree: Every process says something, and all get what was said.
        writes: Whether this process is the one that leaves a mark for the others to find; one does.
        wait_s: How long a mark may take to appear on another node, seconds; network file systems keep what they know
            of a folder for a while.

    Raises:
        EveryProcessError: A process does not find the mark.
        FlgenError: The mark cannot be made.
    """
    mark = folder / f".mark-{secrets.token_hex(8)}"
    if writes:
        try:
            mark.touch()
        except OSError as error:
            raise FlgenError(
                f"run folder {folder} cannot be written to ({error.strerror}): choose another --run_dir"
            ) from error
    try:
        (sought,) = (said for said in agree(mark.name if writes else None) if said)
        found = _appears(folder / sought, wait_s)
        lacking = sorted({host for host, seen in agree((socket.gethostname(), found)) if not seen})
    finally:
        if writes:
            with suppress(OSError):
                mark.unlink()
    if lacking:
        raise EveryProcessError(
            f"run folder {folder} is not the same on every node: a process on {', '.join(lacking)} does not find there "
            "what the first process wrote; put --run_dir on a file system that all nodes share, and start flgen in "
            "the same folder everywhere"
        )


def check_same_start(folder: Path, first: int, agree: Callable[[Any], list[Any]]) -> None:
    """Refuse processes that found different checkpoints: each has looked for the newest good one by itself.

    Args:
        folder: The run folder.
        first: The round, or epoch, that this process begins with.
        agree: Every process says something, and all get what was said.

    Raises:
        EveryProcessError: They begin differently.
    """
    begun = agree(first)
    if len(set(begun)) > 1:
        raise EveryProcessError(
            f"processes found different checkpoints in {folder} (they would begin with {sorted(set(begun))}): give the "
            "command again, or name a checkpoint by --ckpt_path"
        )


def _appears(path: Path, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        with suppress(OSError):
            list(path.parent.iterdir())  # a network file system asks its server then
        if path.exists():
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_EVERY_S)
