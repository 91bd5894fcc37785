"""The display of a synthesis."""

from __future__ import annotations

import time

import pytest

from flgen.callbacks.sample_progress import SampleProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = SampleProgress(processes=2)
    progress.start(done=40, total=100, own=30)
    for _ in range(20):
        clock[0] += 2.0
        progress.advance()
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "40 of 100 samples are there already",
        "samples of process 1 of 2 8/30  0.5/s  0:00:44 left",
        "samples of process 1 of 2 16/30  0.5/s  0:00:28 left",
    ]


def test_a_terminal_gets_a_bar(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    progress = SampleProgress()
    progress.start(done=0, total=4, own=4)
    for _ in range(4):
        clock[0] += 1.0
        progress.advance()
    progress.close()
    assert "4/4" in capsys.readouterr().err


def test_other_processes_show_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = SampleProgress(shown=False)
    progress.start(done=1, total=3, own=2)
    clock[0] += 1000.0
    progress.advance()
    progress.close()
    assert capsys.readouterr().err == ""
