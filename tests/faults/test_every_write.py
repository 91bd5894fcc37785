"""A run is killed just before one of the operations by which it changes its folder, whichever it is.

Promised (design, section 6): a checkpoint is complete or not there at all, and records belong to it. Between any two
operations on files a run may end: it is taken up again, and comes to what an undisturbed one does.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import assert_equal
from same_run import assert_same

from flgen.experiment.checkpoints import (
    checkpoint_to_continue,
    find_checkpoint,
    finish_checkpoint,
    open_checkpoint,
    remove_old_checkpoints,
    start_checkpoint,
    write_state,
)

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.utime"}
"""Audit events of operations that change files; besides, files are opened to be written."""


def in_child(work: Callable[[], Any]) -> int:
    """Do something in a forked process; return its exit status, -n if signal n ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_before_change(number: int, folder: Path, tally: Path | None = None) -> None:
    """Kill this process before it changes files below a folder for the `number`-th time.

    Args:
        number: From 1; 0 kills nobody.
        folder: Where changes count.
        tally: A file that takes one letter for each change.
    """
    inside, changes = str(folder), 0

    def audit(event: str, about: tuple[Any, ...]) -> None:
        nonlocal changes
        if not _changed_path(event, about).startswith(inside):
            return
        changes += 1
        if tally is not None:
            os.write(descriptor, b"x")
        if changes == number:
            os.kill(os.getpid(), signal.SIGKILL)

    descriptor = -1 if tally is None else os.open(tally, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.addaudithook(audit)


def _changed_path(event: str, about: tuple[Any, ...]) -> str:
    """Return the path that an audited operation changes, "" if it changes none."""
    if event == "open":
        path, _, flags = about
        changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        path, changes = about[0] if about else "", event in CHANGES
    if not changes or not isinstance(path, str | os.PathLike):
        return ""
    if event in ("os.remove", "os.rmdir") and about[1] >= 0:  # as rmtree names them, by their folder's descriptor
        return os.path.join(os.readlink(f"/proc/self/fd/{about[1]}"), path)
    return os.fspath(path)


def count_changes(folder: Path, tally: Path, work: Callable[[], Any]) -> int:
    """Return how often something changes files below a folder."""

    def watched() -> None:
        kill_before_change(0, folder, tally)
        work()

    assert in_child(watched) == 0
    return tally.stat().st_size


def state_of(round: int) -> dict[str, Any]:
    return {"weights": torch.arange(200.0) * round}


def write_checkpoint(folder: Path, round: int) -> None:
    """Write a checkpoint, and remove older ones, as a run does."""
    partial = start_checkpoint(folder, round)
    clients = write_state(partial, "clients-00000.pt", {0: state_of(round)})
    server = write_state(partial, "server.pt", {"method": state_of(round)})
    finish_checkpoint(partial, round, {"seed": 7}, [clients, server])
    remove_old_checkpoints(folder, keep=2)


def test_no_moment_of_writing_a_checkpoint_leaves_half_of_one_to_be_chosen(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        for round in (1, 2, 3):
            write_checkpoint(folder, round)
        (folder / "round-00003" / "server.pt").write_bytes(b"torn")  # the run was killed, and goes on from round 2
        start_checkpoint(folder, 4)

    prepare(tmp_path / "counted")
    changes = count_changes(tmp_path / "counted", tmp_path / "tally", lambda: write_checkpoint(tmp_path / "counted", 3))
    assert changes >= 12
    for number in range(1, changes + 1):
        folder = tmp_path / str(number)
        prepare(folder)

        def killed(number: int = number, folder: Path = folder) -> None:
            kill_before_change(number, folder)
            write_checkpoint(folder, 3)

        assert in_child(killed) == -signal.SIGKILL
        found = find_checkpoint(folder / "last")
        assert found.round in (2, 3)
        assert_same(found.server_state()["method"], state_of(found.round))
        assert_same(found.client_states()[0], state_of(found.round))
        for round in range(found.round + 1, 5):
            write_checkpoint(folder, round)
        assert [open_checkpoint(path).round for path in sorted(folder.iterdir())] == [3, 4]


def fit_killed(number: int, run_dir: Path, fit: Callable[[Path], Any]) -> int:
    """Fit in a child that is killed before so many changes of the run folder; return its exit status."""

    def work() -> None:
        kill_before_change(number, run_dir)
        fit(run_dir)

    return in_child(work)


@pytest.mark.parametrize(("method", "share"), [("FedAvg", 12), pytest.param("Prism", 1, marks=pytest.mark.long)])
def test_no_moment_of_a_run_leaves_a_folder_from_which_it_does_not_go_on(
    method: str, share: int, fit_small: Any, tmp_path: Path
) -> None:
    """Of the moments of a run of three rounds one in `share` is tried, drawn from a seed."""

    def fit(run_dir: Path) -> Any:
        return fit_small(run_dir, method=method, rounds=3, every=2, keep_checkpoints=1, ckpt_path="auto")

    fit(tmp_path / "undisturbed")  # here, so that no child need import what it takes
    changes = count_changes(tmp_path / "counted", tmp_path / "tally", lambda: fit(tmp_path / "counted"))
    assert changes > 50
    moments = sorted(random.Random(method).sample(range(1, changes + 1), changes // share))
    for number in moments:
        run_dir = tmp_path / f"before-change-{number}"
        assert fit_killed(number, run_dir, fit) == -signal.SIGKILL
        checkpoint = checkpoint_to_continue("auto", run_dir)
        assert checkpoint is None or checkpoint.round <= 3
        fit(run_dir)
        assert_equal(run_dir, tmp_path / "undisturbed")
        assert not [path for path in run_dir.rglob(".*") if path.suffix in (".tmp", ".partial")]


def test_a_run_may_be_killed_again_and_again(fit_small: Any, tmp_path: Path) -> None:
    """Every command gets a few changes further than the one before; one of them comes to the end."""

    def fit(run_dir: Path) -> Any:
        return fit_small(run_dir, method="FedAvg", rounds=3, every=2, ckpt_path="auto")

    fit(tmp_path / "undisturbed")
    killed = 0
    while fit_killed(25 + 9 * killed, tmp_path / "run", fit) == -signal.SIGKILL:
        killed += 1
        assert killed < 20
    assert killed > 1
    assert_equal(tmp_path / "run", tmp_path / "undisturbed")
