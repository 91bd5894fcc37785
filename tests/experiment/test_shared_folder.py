"""A run folder on several nodes is one folder, or the run does not start."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flgen.errors import EveryProcessError
from flgen.experiment.shared_folder import check_same_start, check_shared

LIMIT_S = 10


def check_on(folders: list[Path], wait_s: float = 0.1, late_s: float = 0.0) -> list[Exception | None]:
    """Let one process per folder check it; the first writes, the others may see it late. Return their errors."""
    meeting = threading.Barrier(len(folders), timeout=LIMIT_S)
    said: list[Any] = [None] * len(folders)
    errors: list[Exception | None] = [None] * len(folders)

    def process(rank: int) -> None:
        def agree(statement: Any) -> list[Any]:
            said[rank] = statement
            meeting.wait()
            heard = list(said)
            meeting.wait()
            return heard

        try:
            check_shared(folders[rank], agree, writes=rank == 0, wait_s=wait_s)
        except EveryProcessError as error:
            errors[rank] = error

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(folders))]
    for thread in threads:
        thread.start()
    if late_s:
        time.sleep(late_s)
        (mark,) = folders[0].iterdir()
        (folders[1] / mark.name).touch()
    for thread in threads:
        thread.join(LIMIT_S)
    return errors


def test_one_folder_is_accepted_and_left_as_it_was(tmp_path: Path) -> None:
    assert check_on([tmp_path] * 3) == [None] * 3
    assert list(tmp_path.iterdir()) == []


def test_another_folder_is_refused_by_every_process(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    refusals = check_on([mine, mine, other])
    for folder, refusal in zip((mine, mine, other), refusals, strict=True):
        assert str(refusal).startswith(f"run folder {folder} is not the same on every node: a process on ")
        assert socket.gethostname() in str(refusal)
        assert "--run_dir" in str(refusal)
    assert list(mine.iterdir()) == []


def test_a_folder_that_is_not_there_is_another_one(tmp_path: Path) -> None:
    assert None not in check_on([tmp_path, tmp_path / "missing"])


def test_a_slow_file_system_is_given_time(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    fast = tmp_path / "fast"
    fast.mkdir()
    assert check_on([fast, slow], wait_s=LIMIT_S / 2, late_s=0.3) == [None, None]


@pytest.mark.parametrize("processes", [1, 2])
def test_marks_of_two_jobs_are_told_apart(processes: int, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".mark-0123456789abcdef").touch()  # an earlier one's, left behind
    assert (None in check_on([tmp_path, *[tmp_path / "elsewhere"] * processes])) is False


def test_processes_that_found_different_checkpoints_do_not_start(tmp_path: Path) -> None:
    check_same_start(tmp_path, 3, lambda first: [first, first])
    with pytest.raises(EveryProcessError, match=r"different checkpoints in .* \(they would begin with \[1, 3\]\)"):
        check_same_start(tmp_path, 3, lambda first: [1, first])
