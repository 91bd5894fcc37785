import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from flgen.callbacks import Callback, RoundProgress
from flgen.callbacks.progress import headline_text
from flgen.errors import UsageError

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"

FIT = """
import os, signal, sys
from types import SimpleNamespace
from flgen.callbacks import RoundProgress
trainer = SimpleNamespace(rounds=3, first_round=1, is_global_zero=True)
progress = RoundProgress(refresh_per_second=1e9)
progress.on_fit_start(trainer)
try:
    for round in (1, 2, 3):
        progress.on_round_start(trainer, round)
        for client in (4, 5):
            progress.on_client_start(trainer, round, client)
            for step in (1, 2):
                progress.on_local_step(trainer, round, client, step, 2)
        print("output", round)
        if sys.argv[1:] == ["interrupt"]:
            raise KeyboardInterrupt
        if sys.argv[1:] == ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        progress.on_evaluation_start(trainer, round)
        progress.on_evaluation_end(trainer, round, {"fid/digits": 8.0 / round}, {})
        progress.on_round_end(trainer, round, {"train/loss": 0.5 / round})
    progress.on_fit_end(trainer)
except KeyboardInterrupt as error:
    progress.on_exception(trainer, error)
"""


class TerminalText(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def trainer():
    return SimpleNamespace(rounds=3, first_round=1, is_global_zero=True)


def open_terminal(monkeypatch):
    text = TerminalText()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", text)
    return text


def run_round(callback, trainer, round, steps=2):
    callback.on_round_start(trainer, round)
    callback.on_client_start(trainer, round, 4)
    for step in range(1, steps + 1):
        callback.on_local_step(trainer, round, 4, step, steps)
    callback.on_round_end(trainer, round, {"train/loss": 0.5})


def fit_on_a_terminal(*arguments):
    """Return (exit status, stdout, what the terminal behind stderr received)."""
    master, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-c", FIT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment) as process:
        os.close(terminal)
        received = b""
        try:
            while chunk := os.read(master, 65536):
                received += chunk
        except OSError:  # how Linux tells that the other side has closed
            pass
        output = process.stdout.read().decode()
    os.close(master)
    return process.returncode, output, received.decode()


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_every_hook_of_the_base_class_does_nothing(trainer, tmp_path):
    callback = Callback()
    run_round(callback, trainer, 1)
    callback.on_fit_start(trainer)
    callback.on_client_end(trainer, 1, 4)
    callback.on_evaluation_start(trainer, 1)
    callback.on_evaluation_end(trainer, 1, {}, {})
    callback.on_checkpoint(trainer, 1, tmp_path)
    callback.on_fit_end(trainer)
    callback.on_exception(trainer, KeyboardInterrupt())
    assert vars(callback) == {}


def test_a_pipe_receives_one_line_per_round_on_stderr(trainer, capsys):
    progress = RoundProgress()
    progress.on_fit_start(trainer)
    for round in (1, 2, 3):
        run_round(progress, trainer, round)
    progress.on_fit_end(trainer)
    output, errors = capsys.readouterr()
    assert output == ""
    assert [re.sub(r"[\d.]+ s$", "T", line) for line in errors.splitlines()] == [
        "round 1/3  train/loss 0.5  T",
        "round 2/3  train/loss 0.5  T",
        "round 3/3  train/loss 0.5  T",
    ]


def test_an_evaluation_inside_the_round_joins_its_line_and_one_after_it_has_its_own(trainer, capsys):
    progress = RoundProgress()
    progress.on_fit_start(trainer)
    progress.on_round_start(trainer, 1)
    progress.on_evaluation_start(trainer, 1)
    progress.on_evaluation_end(trainer, 1, {"fid/digits": 12.34567}, {})
    progress.on_round_end(trainer, 1, {"train/loss": 0.25})
    progress.on_evaluation_start(trainer, 1)
    progress.on_evaluation_end(trainer, 1, {"test/accuracy": 0.5}, {})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("round 1/3  train/loss 0.25  fid/digits 12.35  ")
    assert second.startswith("round 1/3 evaluated  test/accuracy 0.5  ")


def test_only_rank_0_speaks(trainer, capsys, monkeypatch):
    trainer.is_global_zero = False
    progress = RoundProgress()
    progress.on_fit_start(trainer)
    run_round(progress, trainer, 1)
    progress.on_fit_end(trainer)
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_gone_away_does_not_end_the_run(trainer, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    progress = RoundProgress()
    progress.on_fit_start(trainer)
    run_round(progress, trainer, 1)
    progress.on_fit_end(trainer)


def test_a_terminal_that_has_gone_away_does_not_end_the_run(trainer, monkeypatch):
    terminal = open_terminal(monkeypatch)
    progress = RoundProgress(refresh_per_second=1e9)
    progress.on_fit_start(trainer)
    run_round(progress, trainer, 1)
    before = terminal.getvalue()

    def fail(text):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(terminal, "write", fail)
    run_round(progress, trainer, 2)
    progress.on_fit_end(trainer)
    assert sys.stderr is terminal
    assert "step 2/2" in before
    assert terminal.getvalue() == before


def test_a_terminal_shows_rounds_steps_and_metrics_and_leaves_stdout_alone():
    status, output, shown = fit_on_a_terminal()
    assert status == 0
    assert output == "output 1\noutput 2\noutput 3\n"
    assert re.search(r"round 2/3 .* elapsed, 0:\d\d:\d\d left", plain(shown))
    assert re.search(r"client 5 .* step 2/2", plain(shown))
    assert "evaluation" in plain(shown)
    last_frame = plain(shown).rpartition("round 3/3")[2]
    assert "train/loss 0.1667  fid/digits 2.667" in last_frame
    assert "client" not in last_frame


@pytest.mark.parametrize(("ending", "status"), [("", 0), ("interrupt", 0), ("kill", -9)])
def test_the_cursor_is_visible_however_the_run_ends(ending, status):
    returncode, output, shown = fit_on_a_terminal(*filter(None, [ending]))
    assert returncode == status
    assert shown.count(HIDE) >= 1
    assert shown.rindex(SHOW) > shown.rindex(HIDE)
    if ending == "interrupt":
        assert output == "output 1\n"
        assert "client 5" not in plain(shown).rpartition("round 1/3")[2]


def test_output_is_redirected_only_while_the_bars_stand_and_by_no_thread(trainer, monkeypatch):
    terminal = open_terminal(monkeypatch)
    threads, stdout = threading.active_count(), sys.stdout
    progress = RoundProgress()
    progress.on_fit_start(trainer)
    assert sys.stdout is stdout
    assert sys.stderr is not terminal
    assert threading.active_count() == threads
    print("a warning", file=sys.stderr)
    progress.on_exception(trainer, RuntimeError("stop"))
    assert sys.stderr is terminal
    assert "a warning\n" in plain(terminal.getvalue())


def test_drawing_is_throttled_however_many_steps_there_are(trainer, monkeypatch):
    terminal = open_terminal(monkeypatch)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = RoundProgress(refresh_per_second=4)
    progress.on_fit_start(trainer)
    progress.on_round_start(trainer, 1)
    for step in range(1, 2001):  # two seconds of steps of a millisecond
        now[0] += 0.001
        progress.on_local_step(trainer, 1, 7, step, 2000)
    frames = plain(terminal.getvalue()).count("round 1/3")
    assert 7 <= frames <= 10
    progress.on_fit_end(trainer)


def test_the_time_left_is_the_mean_round_times_the_rounds_to_come(monkeypatch):
    terminal = open_terminal(monkeypatch)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    resumed = SimpleNamespace(rounds=20, first_round=11, is_global_zero=True)
    progress = RoundProgress(refresh_per_second=1e9)
    progress.on_fit_start(resumed)
    for round in (11, 12):
        now[0] += 30
        run_round(progress, resumed, round)
    assert "round 12/20" in plain(terminal.getvalue())
    assert "0:01:00 elapsed, 0:04:00 left" in plain(terminal.getvalue())
    progress.on_fit_end(resumed)


def test_a_dumb_terminal_gets_plain_lines(trainer, monkeypatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    progress = RoundProgress()
    progress.on_fit_start(trainer)
    run_round(progress, trainer, 1)
    assert terminal.getvalue().startswith("round 1/3  train/loss 0.5  ")
    assert "\x1b" not in terminal.getvalue()


def test_the_headline_follows_the_patterns_in_their_order():
    metrics = {"comm/up_bytes": 9, "fid/digits": 2.0, "mask/density": 0.5, "train/loss": 1.0, "fid/mnist": 3}
    assert headline_text(metrics) == "train/loss 1  fid/digits 2  fid/mnist 3"
    assert headline_text(metrics, ["mask/*", "fid/mnist"]) == "mask/density 0.5  fid/mnist 3"
    assert headline_text(metrics, []) == ""
    assert headline_text({"comm/up_bytes": 9, "mask/drift": 0.125, "time/round_s": 1}) == "mask/drift 0.125"


def test_a_refresh_rate_of_zero_is_refused():
    with pytest.raises(UsageError, match="refresh_per_second is 0"):
        RoundProgress(refresh_per_second=0)


def test_importing_the_callbacks_imports_nothing_heavy():
    heavy = ("torch", "lightning", "wandb", "rich", "tensorboard")
    check = f"import sys, flgen.callbacks; assert not {{*sys.modules}} & {{*{heavy!r}}}"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
